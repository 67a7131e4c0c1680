"""One report object for every command, rendered as text for people or as JSON for machines."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Report", "Table"]


@dataclass(frozen=True)
class Table:
    """A titled table of ready-made cells.

    Args:
        title: One line above the table; empty for none.
        columns: Column headings.
        rows: Cells as text, one tuple a row, as many cells as `columns`.
        left: How many leading columns hold text; those are aligned to the left, the rest (figures)
            to the right.
        notes: Lines below the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    notes: tuple[str, ...] = ()

    def to_text(self) -> str:
        """Render with columns padded to their widest cell."""
        lines = [self.columns, *self.rows]
        widths = [max(_width(line[j]) for line in lines) for j in range(len(self.columns))]

        def render(line: Sequence[str]) -> str:
            cells = []
            for j, (cell, width) in enumerate(zip(line, widths, strict=True)):
                gap = " " * (width - _width(cell))
                cells.append(cell + gap if j < self.left else gap + cell)
            return "  ".join(cells).rstrip()

        out = [self.title] if self.title else []
        out += [render(self.columns), "  ".join("-" * width for width in widths)]
        out += [render(row) for row in self.rows]
        out += self.notes
        return "\n".join(out)


@dataclass
class Report:
    """What a command found.

    Args:
        command: The command's name.
        ok: False if a comparison or a check failed: the command then exits with 1.
        data: The findings for machines; keys are kept in order. May hold NumPy scalars and arrays.
        sections: The findings for people: tables, and paragraphs as plain text.
        summary: The last line of the text.
    """

    command: str
    ok: bool = True
    data: dict[str, Any] = field(default_factory=dict)
    sections: list[Table | str] = field(default_factory=list)
    summary: str = ""

    @property
    def exit_code(self) -> int:
        """0 if all is well, 1 if the command found a failure."""
        return 0 if self.ok else 1

    def to_text(self) -> str:
        """Render for a terminal: the sections, then the summary."""
        parts = [part.to_text() if isinstance(part, Table) else part for part in self.sections]
        if self.summary:
            parts.append(self.summary)
        return "\n\n".join(parts)

    def to_json(self) -> str:
        """Render as one JSON document with the keys `command`, `status` and those of `data`."""
        document = {"command": self.command, "status": "ok" if self.ok else "failed"} | self.data
        return json.dumps(_plain(document), indent=2, allow_nan=False)


def _width(text: str) -> int:
    """Columns that `text` takes in a terminal: wide characters take two, combining ones none."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) != 0 for c in text)


def _plain(value: Any) -> Any:
    """Turn NumPy values and tuples into what `json` takes; not-finite numbers become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str) or value is None:
        return value
    if hasattr(value, "tolist"):  # NumPy scalars and arrays, torch tensors
        return _plain(value.tolist())
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return None
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return value
