"""Comparisons of two samplers for people and machines: a table, JSON, one self-contained page."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from mtp_verify.certification.report import PAGE_STYLE
from mtp_verify.certification.two_tally import SIDES
from mtp_verify.console.report import Report, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.certification.two_sample import Comparison
    from mtp_verify.testing import stats

__all__ = ["ComparisonReport", "comparison_report"]

_NOT_ENOUGH, _TOO_RARE = "not enough data", "too rare"
_UNDECIDED = (_NOT_ENOUGH, _TOO_RARE)
_MOST_ROWS = 5
# Attributes of a comparison that its data have under the same names.
_SETTINGS = ("min_tv", "alpha", "power", "length", "num_cells")
_SEEN = ("resolved", "resolved_first", "served_tv")


@dataclass
class ComparisonReport(Report):
    """A report with an HTML page; its exit code is 2 if there was not enough data to decide."""

    comparisons: Sequence[Comparison] = field(default=())

    @property
    def exit_code(self) -> int:
        """0 pass, 1 biased, 2 not enough data, or strings too rare to tell."""
        if not self.ok:
            return 1
        return 2 if any(c.verdict in _UNDECIDED for c in self.comparisons) else 0

    def to_html(self) -> str:
        """Render one page that loads nothing."""
        tables = "".join(_html(part) for part in self.sections if isinstance(part, Table))
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8">'
            f"<title>mtp-verify certify</title><style>{PAGE_STYLE}</style>"
            f"<h1>mtp-verify certify</h1><p>{escape(self.summary)}</p>{tables}</html>\n"
        )


def comparison_report(comparisons: Sequence[Comparison]) -> ComparisonReport:
    """Make one report of one or several comparisons."""
    biased = [c for c in comparisons if c.verdict == "biased"]
    short = [c for c in comparisons if c.verdict in _UNDECIDED]
    if biased:
        found = ", ".join(f"{c.name} (TV {_interval(c.tv)})" for c in biased)
        summary = f"FAILED: the distributions differ: {found}"
    elif short:
        summary = "; ".join(f"{c.name}: {c.verdict}, {_missing(c)}" for c in short)
    else:
        least = min(c.min_tv for c in comparisons)
        summary = f"no difference of total variation {least} or more found between the cells"
    return ComparisonReport(
        "certify",
        ok=not biased,
        data={
            "status": "failed" if biased else short[0].verdict.replace(" ", "_") if short else "ok",
            "comparisons": [_as_data(c) for c in comparisons],
        },
        sections=[_table(comparisons), *(part for c in biased for part in _where(c))],
        summary=summary,
        comparisons=comparisons,
    )


def _missing(c: Comparison) -> str:
    if c.verdict == _TOO_RARE:
        return (
            f"{c.resolved_first:.1%} of the first tokens have a cell of their own; wanted "
            f"{c.min_tv:.1%} or more: take a lower temperature or top-k"
        )
    return f"{c.num_missing:,} samples of each side missing"


def _interval(interval: stats.Interval) -> str:
    return f"{interval.estimate:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def _table(comparisons: Sequence[Comparison]) -> Table:
    rows = []
    for c in comparisons:
        least = min(check.adjusted for check in c.checks)
        counts = (f"{c.num_samples:,}", f"{c.num_needed:,}", f"{least:.1e}", _interval(c.tv))
        rows.append(
            (c.name, c.verdict, *counts, f"{c.samples_per_second:,.0f}", f"{c.seconds:.0f}")
        )
    first = comparisons[0]
    notes = [
        "",
        f"looked for: TV >= {first.min_tv} of the cells with power {first.power}; two samplers of "
        f"one law fail with probability {first.alpha:.2g}.",
        "samples: of each side, beside the pilot's; p: the least p-value after Holm's correction.",
    ]
    for c in comparisons:
        notes.append(
            f"{c.name}: {c.num_cells} cells behind {len(c.prompts)} prompts; "
            f"{c.resolved_first:.0%} of the first tokens and {c.resolved:.0%} of the strings of "
            f"{c.length} have a cell of their own, the others share."
        )
        if c.served_tv is not None:
            notes.append(
                f"{c.name}: the served laws of the first token differ by {c.served_tv:.4f}."
            )
        if c.verdict == _NOT_ENOUGH:
            notes.append(f"{c.name} ended early: {_missing(c)}.")
    notes.append(
        f"not seen: differences inside a cell, behind {first.length} tokens, or behind other "
        "prompts."
    )
    columns = ("samplers", "verdict", "samples", "needed", "p", "TV [95 %]", "1/s", "s")
    return Table("", columns, tuple(rows), left=2, notes=tuple(notes))


def _where(c: Comparison) -> list[Table]:
    """Show which tests failed, and the cells that differ most behind the worst prompt."""
    failed = sorted((k for k in c.checks if k.adjusted < c.alpha), key=lambda k: k.adjusted)
    tests = tuple(
        (
            check.name + ("" if check.prompt is None else f", prompt {check.prompt + 1}"),
            f"{check.fit.statistic:.1f}",
            f"{check.fit.df}",
            f"{check.adjusted:.1e}",
        )
        for check in failed[:_MOST_ROWS]
    )
    of_prompts = [(k.fit.p_value, k.prompt) for k in c.checks if k.prompt is not None]
    worst = min(of_prompts)[1]
    rows = tuple(
        (cell, f"{one:.4f}", f"{other:.4f}")
        for cell, one, other in c.tallies[worst].most_off(_MOST_ROWS)
    )
    title = f"{c.name}: cells most off behind prompt {worst + 1}, {c.prompts[worst]}"
    return [
        Table(f"{c.name}: where", ("test", "statistic", "df", "p"), tests),
        Table(title, ("tokens", *SIDES), rows),
    ]


def _as_data(c: Comparison) -> dict[str, Any]:
    return {
        "samplers": c.name,
        "verdict": c.verdict,
        "total_variation": vars(c.tv),
        "samples": c.num_samples,
        "samples_needed": c.num_needed,
        "samples_missing": c.num_missing,
        "samples_of_pilot": c.num_pilot,
        **{name: getattr(c, name) for name in (*_SETTINGS, *_SEEN)},
        "seeds": {"first": c.seeds[0], "last": c.seeds[1]},
        "prompts": [
            {"tokens": prompt, "total_variation": vars(interval), "worst": _worst(tally)}
            for prompt, interval, tally in zip(c.prompts, c.intervals, c.tallies, strict=True)
        ],
        "tests": [
            {"name": check.name, "prompt": check.prompt, "adjusted_p": check.adjusted}
            | vars(check.fit)
            for check in c.checks
        ],
        "seconds": c.seconds,
        "samples_per_second": c.samples_per_second,
        **c.details,
    }


def _worst(tally: Any) -> dict[str, Any]:
    cell, one, other = tally.most_off(1)[0]
    return {"cell": cell, **dict(zip(SIDES, (one, other), strict=True))}


def _html(table: Table) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}" for cell in cells)

    rows = "".join(line(row, "td") for row in table.rows)
    notes = "".join(f"<p>{escape(note)}" for note in table.notes if note)
    head = line(table.columns, "th")
    return f"<h2>{escape(table.title)}</h2><table>{head}{rows}</table>{notes}"
