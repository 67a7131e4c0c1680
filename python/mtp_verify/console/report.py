"""One report object for every command, rendered as text for people or as JSON for machines."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Report", "Table"]

_NO_LIMIT = 1 << 20  # columns: wider than any table


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

    def to_text(self, width: int | None = None) -> str:
        """Render with columns padded to their widest cell.

        Args:
            width: Columns of the terminal: cells of a table that is wider go on below themselves.
                None: nothing is broken, as files and pipes want it.
        """
        from rich.console import Console
        from rich.rule import Rule
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for j, name in enumerate(self.columns):
            justify: Literal["left", "right"] = "left" if j < self.left else "right"
            grid.add_column(Text(name), justify=justify, overflow="fold")
        grid.add_row(*(Rule(characters="-") for _ in self.columns))
        for row in self.rows:
            grid.add_row(*map(Text, row))
        # rich leaves out what finds no place at all: a column keeps two columns, and two beside it.
        width = _NO_LIMIT if width is None else max(width, 4 * len(self.columns))
        out = io.StringIO()
        Console(file=out, width=width, color_system=None).print(grid)
        lines = [line.rstrip() for line in out.getvalue().splitlines()]
        return "\n".join([*([self.title] if self.title else []), *lines, *self.notes])


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

    def to_text(self, width: int | None = None) -> str:
        """Render for people: the sections, then the summary; `width` as that of a table."""
        parts = [part.to_text(width) if isinstance(part, Table) else part for part in self.sections]
        return "\n\n".join([*parts, self.summary] if self.summary else parts)

    def to_json(self) -> str:
        """Render as one JSON document with the keys `command`, `status` and those of `data`."""
        document = {"command": self.command, "status": "ok" if self.ok else "failed"} | self.data
        return json.dumps(_plain(document), indent=2, allow_nan=False)


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
