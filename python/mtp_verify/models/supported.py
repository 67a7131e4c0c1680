"""The versions of transformers that the tests were run with, and what is said about later ones.

A later version is no reason to refuse: what the package needs of the library is found by asking and
trying (`mtp_verify.caches`). It is a reason to say so, once.
"""

from __future__ import annotations

import re
import warnings

__all__ = ["FIRST", "LAST", "TESTED", "minor_of", "warn_if_untested"]

# As pyproject.toml declares, and `make compat` tries.
FIRST, LAST = (5, 16), (5, 24)
TESTED = f"{FIRST[0]}.{FIRST[1]} to {LAST[0]}.{LAST[1]}"

_warned: set[str] = set()


def minor_of(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version; one that has none counts as later than all."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (1 << 30, 0)


def warn_if_untested(version: str) -> None:
    """Warn of a version of transformers that is later than those tested, once in a process."""
    if minor_of(version) <= LAST or version in _warned:
        return
    _warned.add(version)
    warnings.warn(
        f"transformers {version} is later than the versions that mtp-verify was tested with "
        f"({TESTED}); `mtp-verify doctor` shows whether its hooks work",
        stacklevel=3,
    )
