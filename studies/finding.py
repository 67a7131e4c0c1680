"""What an experiment finds, in one form for the terminal, JSON and plots."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mtp_verify.console.report import Table

__all__ = ["Finding"]


@dataclass(frozen=True)
class Finding:
    """The outcome of an experiment.

    Attributes:
        claim: what is claimed, in one sentence.
        rule: when the claim counts as reproduced.
        verdict: "reproduced", "mixed" or "not reproduced".
        result: what was found, in one sentence with figures.
        data: everything that was measured, for JSON.
        tables: for people.
        draw: writes the plot, for those who have matplotlib.
    """

    claim: str
    rule: str
    verdict: str
    result: str
    data: dict[str, Any]
    tables: tuple[Table, ...] = ()
    draw: Callable[[Path], None] | None = field(default=None, repr=False)
