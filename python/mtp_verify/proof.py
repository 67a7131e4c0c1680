"""The proof as a report: every rule on every law, drafts that lie, and mutants.

A build with the cargo feature `mutants` (`make certify`) also tries each mutant; a wheel cannot.
"""

from __future__ import annotations

import time
from typing import Any

from mtp_verify import _core
from mtp_verify.report import Report, Table

__all__ = ["run"]

# Keys of the core's tables that a person reads, with their headings; the rest is in the JSON.
_LINES = {
    "rule": "rule",
    "law": "law",
    "cases": "cases",
    "rounds": "in steps",
    "generated": "generated",
    "branches": "branches",
    "distance": "distance",
    "f64_difference": "in float64",
}
_TRIALS = {
    "name": "mistake",
    "change": "change",
    "case": "case",
    "distance": "bias",
    "stated": "stated",
}


def run() -> Report:
    """Enumerate every rule, every lie and, in a build that has them, every mutant."""
    start = time.perf_counter()
    rows = _core.certify()
    lies = _core.lies()
    mutants = _core.mutants()
    seconds = time.perf_counter() - start
    failed = [row for row in rows if not row["holds"]]
    trials = [*lies, *(mutants or [])]
    alive = [trial for trial in trials if not trial["killed"]]
    sections: list[Table | str] = [_proof(rows), _trials("drafts that lie about their law", lies)]
    if mutants is not None:
        sections.append(_trials("mutants: one line of the code changed", mutants))
    summary = [
        f"FAILED: {len(failed)} of {len(rows)} pairs of rule and law are not lossless"
        if failed
        else f"all {len(rows)} pairs of rule and law are lossless: every distance is exactly 0",
        f"FAILED: {len(alive)} of {len(trials)} mistakes are not found as expected: "
        + ", ".join(trial["name"] for trial in alive)
        if alive
        else f"all {len(trials)} mistakes are found",
    ]
    tried = "not compiled in" if mutants is None else mutants
    note = "; mutants are not compiled in" if mutants is None else ""
    return Report(
        "certify",
        ok=not failed and not alive,
        data={"rows": rows, "lies": lies, "mutants": tried, "seconds": seconds},
        sections=sections,
        summary="\n".join([*summary, f"({seconds:.0f} s{note})"]),
    )


def _proof(rows: list[dict[str, Any]]) -> Table:
    return Table(
        title="",
        columns=tuple(_LINES.values()),
        rows=tuple(tuple(_cell(row[key]) for key in _LINES) for row in rows),
        left=2,
        notes=(
            "",
            "cases: models x tree shapes x shapings. branches: paths through every random choice.",
            "in steps: cases of three tokens over as many steps as they take.",
            "generated: models of random rows with zeros, ties and near-certainties.",
            "distance: between the joint law of the emitted tokens and the target's, a rational.",
            "in float64: the largest difference of the same code over float64 rows.",
        ),
    )


def _trials(title: str, trials: list[dict[str, Any]]) -> Table:
    return Table(
        title=title,
        columns=tuple(_TRIALS.values()),
        rows=tuple(tuple(_cell(trial[key]) for key in _TRIALS) for trial in trials),
        left=3,
        notes=("", "bias: total variation from the target's law, a rational."),
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if value else "0"
    return f"{value:,}" if isinstance(value, int) else str(value)
