"""Write the table of drafters, from `mv.drafters.REGISTRY`, into the page that has its marks.

    .venv/bin/python scripts/gen_drafter_docs.py

`tests/docs/test_drafters_table.py` checks that the table is current.
"""

from __future__ import annotations

from pathlib import Path

import mtp_verify as mv

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- drafters: scripts/gen_drafter_docs.py -->", "<!-- end of drafters -->"
COLUMNS = ("drafter", "guesses from", "needs", "`--drafter`")


def render() -> str:
    """Return the table for the installed package."""
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    for kind, entry in mv.drafters.REGISTRY.items():
        needs = "the text alone" if entry.needs == "text" else f"a {entry.needs}"
        needs = "two or more drafters" if entry.needs == "drafters" else needs
        lines.append((f"`{kind}`", entry.guess, needs, f"`{entry.name}`" if entry.name else ""))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def pages() -> list[Path]:
    """Return the pages that mark a place for the table."""
    return [page for page in sorted(DOCS.rglob("*.md")) if BEGIN in page.read_text()]


def fill(text: str) -> str:
    """Return a page's text with the table in its place."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{render()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    for page in pages():
        page.write_text(fill(page.read_text()))
