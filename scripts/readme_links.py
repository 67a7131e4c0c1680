"""Make the relative links of the README absolute, for readers who see it away from the repository.

PyPI shows the README of a wheel, where `docs/README.md` leads nowhere. The repository's address
stands in one place, `Repository` under `[project.urls]` of pyproject.toml; releases are built by
`scripts/release_check.py` with the links that this module makes of it.
"""

from __future__ import annotations

import re

__all__ = ["absolute", "relative"]

# Targets of inline links and images; code is left alone by `_outside_code`.
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)


def relative(text: str) -> list[str]:
    """The targets of links that are relative to the repository, in order."""
    found: list[str] = []
    for part in _outside_code(text):
        found += [link[3] for link in _LINK.finditer(part) if not _is_absolute(link[3])]
    return found


def absolute(text: str, address: str, ref: str) -> str:
    """The text with all links absolute.

    Args:
        text: Markdown.
        address: Of the repository, as a browser shows it: `https://host/owner/name`.
        ref: The tag that is linked to, so that a release keeps its own pages.
    """
    base = address.rstrip("/")

    def replaced(link: re.Match[str]) -> str:
        mark, label, target = link.groups()
        label = _LINK.sub(replaced, label)
        if not _is_absolute(target):
            target = f"{base}/{'raw' if mark else 'blob'}/{ref}/{target}"
        return f"{mark}[{label}]({target})"

    pieces = _CODE.split(text)
    return "".join(
        piece if index % 2 else _LINK.sub(replaced, piece) for index, piece in enumerate(pieces)
    )


def _outside_code(text: str) -> list[str]:
    return _CODE.split(text)[::2]


def _is_absolute(target: str) -> bool:
    return target.startswith("#") or re.match(r"[a-z][a-z0-9+.-]*:", target) is not None
