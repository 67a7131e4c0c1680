"""The proof as a report: rules on laws, rows in floating point, misdeclared drafts, mutants.

A build with the cargo feature `mutants` (`make prove`) also tries each mutant; a wheel cannot.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from mtp_verify import _core
from mtp_verify.console.report import Report, Table
from mtp_verify.console.worker import Worker

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["run"]

# Keys of the core's tables that a person reads, with their headings; the rest is in the JSON.
_LINES = {
    "rule": "rule",
    "law": "law",
    "cases": "cases",
    "steps": "in steps",
    "generated": "generated",
    "branches": "branches",
    "distance": "distance",
    "f64_difference": "in float64",
}
_PLACE = {"format": "target / drafter", "level": "instructions"}
# Distances, each with the key of its bound.
_FLOATS = {
    "decisions": ("decisions", "decisions_bound"),
    "target_rows": ("target's rows", "target_bound"),
    "drafter_rows": ("drafter's rows", "drafter_bound"),
}
_TRIALS = {
    "name": "mistake",
    "change": "change",
    "case": "case",
    "distance": "bias",
    "stated": "stated",
}


def run() -> Report:
    """Enumerate every rule, every misdeclared draft and, in a build that has them, every mutant."""
    start = time.perf_counter()
    rows, floats, draws, misdeclared, mutants = _tables()
    seconds = time.perf_counter() - start
    failed = [row for row in rows if not row["holds"]]
    beyond = [line for line in (*floats, *draws) if not line["holds"]]
    trials = [*misdeclared, *(mutants or [])]
    alive = [trial for trial in trials if not trial["killed"]]
    sections: list[Table | str] = [
        _proof(rows),
        _floats(floats),
        _draws(draws),
        _trials("misdeclared drafts", misdeclared),
    ]
    if mutants is not None:
        sections.append(_trials("mutants: one line of the code changed", mutants))
    summary = [
        f"FAILED: {len(failed)} of {len(rows)} pairs of rule and law are not lossless"
        if failed
        else f"all {len(rows)} pairs of rule and law are lossless: every distance is exactly 0",
        f"FAILED: {len(beyond)} of {len(floats) + len(draws)} lines of floating point are beyond "
        "their bounds: " + "; ".join(_place(line) for line in beyond)
        if beyond
        else f"floating point: every distance of {len(floats)} pairs of format and instruction set "
        "is within its bound",
        f"FAILED: {len(alive)} of {len(trials)} mistakes are not found as expected: "
        + ", ".join(trial["name"] for trial in alive)
        if alive
        else f"all {len(trials)} mistakes are found",
    ]
    groups = dict(Counter(mutant["group"] for mutant in mutants or []))
    tried = "not compiled in" if mutants is None else mutants
    note = "; mutants are not compiled in" if mutants is None else ""
    data = {"rows": rows, "floats": floats, "draws": draws, "misdeclared": misdeclared}
    return Report(
        "certify",
        ok=not failed and not beyond and not alive,
        data=data | {"mutants": tried, "mutant_groups": groups, "seconds": seconds},
        sections=sections,
        summary="\n".join([*summary, f"({seconds:.0f} s{note})"]),
    )


def _tables() -> tuple[Any, ...]:
    """What `_enumerate` finds in another process: Ctrl-C ends that one, but not a call here.

    The core does not look at signals before it has done its work.
    """
    worker = Worker(_send)
    try:
        found: tuple[Any, ...] = worker.receive()
    finally:
        worker.stop()
    return found


def _send(connection: Connection) -> None:
    """Send what `_enumerate` finds, or why it failed."""
    try:
        connection.send(_enumerate())
    except Exception as error:  # noqa: BLE001, whatever it is, the parent must say it
        connection.send(error)


def _enumerate() -> tuple[Any, ...]:
    """The core's tables: rules, rows in floating point, draws, misdeclared drafts and mutants."""
    return (
        _core.prove_rules(),
        _core.prove_floats(),
        _core.prove_draws(),
        _core.misdeclared(),
        _core.mutants(),
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


def _floats(lines: list[dict[str, Any]]) -> Table:
    return Table(
        title="rows in floating point",
        columns=(
            *_PLACE.values(),
            *("cases", "branches"),
            *(heading for heading, _ in _FLOATS.values()),
            "whole steps",
        ),
        rows=tuple(
            (
                *(line[key] for key in _PLACE),
                *(_cell(line[key]) for key in ("cases", "branches")),
                *(_beside(line, key, bound) for key, (_, bound) in _FLOATS.items()),
                f"{line['whole']:.1%}",
            )
            for line in lines
        ),
        left=2,
        notes=(
            "",
            "the largest distance (total variation) of all cases / its bound.",
            "decisions: of a step's law over all 2^53 numbers from the law of the rows as read.",
            "rows: of a row as read from the exact row of the rounded values.",
            "whole steps: of a step's law from that of the exact rows, as a share of its bound.",
        ),
    )


def _draws(lines: list[dict[str, Any]]) -> Table:
    return Table(
        title="draws and acceptances over all 2^53 numbers",
        columns=(*_PLACE.values(), "draws", "of draws", "of equals", "acceptances", "of those"),
        rows=tuple(
            (
                *(line[key] for key in _PLACE),
                _cell(line["draws"]),
                _beside(line, "distance", "draw_bound"),
                _beside(line, "exact", None),
                _cell(line["acceptances"]),
                _beside(line, "difference", "accept_bound"),
            )
            for line in lines
        ),
        left=2,
        notes=(
            "",
            "of draws: distance from the weights as read, for each token of the row / bound.",
            "of equals: the same for 1, 2, 4 and 8 equal tokens, which are drawn exactly.",
            "of those: difference from the probability min(1, p / q) / bound.",
        ),
    )


def _beside(line: dict[str, Any], key: str, bound: str | None) -> str:
    return f"{_cell(line[key])} / {line[bound] if bound else 0:.2g}"


def _place(line: dict[str, Any]) -> str:
    where = f"{line['format']}, {line['level']}"
    return f"{where} ({line['worst']})" if "worst" in line else where


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
