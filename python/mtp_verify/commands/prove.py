"""`mtp-verify prove`: every rule on every law, the rows that ship, the field's rules, and mistakes.

The proof is compiled into builds with the cargo feature `proof` alone, and the mutants with
`mutants`: `make prove` makes such a build; a wheel has neither.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mtp_verify import _core
from mtp_verify.commands.command import Command
from mtp_verify.console.report import Report, Table
from mtp_verify.console.worker import Worker

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Sequence
    from multiprocessing.connection import Connection

__all__ = ["COMMAND", "add_arguments", "run"]

_Line = dict[str, Any]  # of a table of the core
_Columns = dict[str, str | tuple[str, str | None]]

# The sources of steps on a device.
_BACKENDS = ("torch", "triton")

# Of each table: the headings, each with the key of its figure, or of a distance and its bound.
_PLACE: _Columns = {"target / drafter": "format", "instructions": "level"}
_PROOF: _Columns = {
    "rule": "rule",
    "law": "law",
    "cases": "cases",
    "in steps": "steps",
    "generated": "generated",
    "branches": "branches",
    "distance": "distance",
    "in float64": "f64_difference",
}
_FLOATS: _Columns = {
    **_PLACE,
    "cases": "cases",
    "branches": "branches",
    "decisions": ("decisions", "decisions_bound"),
    "target's rows": ("target_rows", "target_bound"),
    "drafter's rows": ("drafter_rows", "drafter_bound"),
    "whole steps": "whole",
}
_DRAWS: _Columns = {
    **_PLACE,
    "draws": "draws",
    "of draws": ("distance", "draw_bound"),
    "of equals": ("exact", None),
    "acceptances": "acceptances",
    "of those": ("difference", "accept_bound"),
}
_FIELD: _Columns = {
    "rule": "rule",
    "drafts": "law",
    "claimed": "claimed",
    "found": "found",
    "distance": "distance",
    "generated": "generated",
    "biased": "generated_biased",
    "tried": "tried",
    "smallest counterexample": "example",
}
_LENGTHS: _Columns = {
    "rule": "rule",
    "model, shape": "case",
    "distance": "distance",
    "mean length": "expected",
    "rules that ship": "beside",
}
_DEVICE: _Columns = {
    "rule": "rule",
    "law": "law",
    "cases": "cases",
    "drafts": "drafts",
    "cells": "cells",
    "asked": "asked",
    "distance": ("distance", "bound"),
    "left out": ("left_out", "bound"),
}
_SLIPS: _Columns = {
    "mistake": "name",
    "change": "change",
    "case": "case",
    "bias": "distance",
    "other answers": "answers",
}
_TRIALS: _Columns = {
    "mistake": "name",
    "change": "change",
    "case": "case",
    "bias": "distance",
    "stated": "stated",
}

_SIDES = ("target", "drafter")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: there is nothing to choose."""
    del parser


def run(args: argparse.Namespace) -> Report:
    """Enumerate every rule, every misdeclared draft and, in a build that has them, every mutant."""
    del args
    if not hasattr(_core, "prove_rules"):
        message = (
            "this build does not hold the proof; run `make prove` in a checkout of the repository, "
            "which makes a build that does (no wheel holds it)"
        )
        raise ImportError(message, name="mtp_verify._core")
    start = time.perf_counter()
    rows, floats, draws, misdeclared, mutants, field = _core_tables()
    device, slips = _device_tables()
    seconds = time.perf_counter() - start
    failed = [row for row in rows if not row["holds"]]
    beyond = [line for line in (*floats, *draws) if not line["holds"]]
    unexpected = [line for line in field if not line["holds"]]
    unlike = [line for line in device if not line["holds"]]
    trials = [*misdeclared, *(mutants or []), *slips]
    alive = [trial for trial in trials if not trial["killed"]]
    sections: list[Table | str] = [
        _table(
            "", _PROOF, rows,
            "cases: models x tree shapes x shapings. branches: paths through every random choice.",
            "in steps: cases of three tokens over as many steps as they take.",
            "generated: models of random rows with zeros, ties and near-certainties.",
            "distance: between the joint law of the emitted tokens and the target's, a rational.",
            "in float64: the largest difference of the same code over float64 rows.",
        ),
        _table(
            "rows in floating point",
            _FLOATS,
            [line | {"whole": f"{line['whole']:.1%}"} for line in floats],
            "the largest distance (total variation) of all cases / its bound.",
            "decisions: of a step's law over all 2^53 numbers from the law of the rows as read.",
            "rows: of a row as read from the exact row of the rounded values.",
            "whole steps: of a step's law from that of the exact rows, as a share of its bound.",
        ),
        _table(
            "draws and acceptances over all 2^53 numbers", _DRAWS, draws,
            "of draws: distance from the weights as read, for each token of the row / bound.",
            "of equals: the same for 1, 2, 4 and 8 equal tokens, which are drawn exactly.",
            "of those: difference from the probability min(1, p / q) / bound.",
        ),
        _trials("misdeclared drafts: their law is not the one that they state", misdeclared),
    ]  # fmt: skip
    sections.append(
        _table(
            "the field's rules on the bench",
            _FIELD,
            [line | _verdict(line) for line in field],
            "claimed: whether its authors call it lossless. found: what enumeration says.",
            "distance: the largest on the golden models, a rational.",
            "generated: models of random rows. biased: how many of them show a distance.",
            "tried: models of two tokens (or three), from the smallest on, until one showed it.",
            left=4,
        )
    )
    sections.append(
        _table(
            "mean lengths of the field's rules, one step",
            _LENGTHS,
            [
                case | {"rule": line["rule"], "beside": _beside(case)}
                for line in field
                for case in line["cases"]
                if case["expected"]
            ],
            "rules that ship: on the same drafts. On chains block is the longest lossless one with",
            "one call of the target; hsd_naive makes more calls.",
        )
    )
    if mutants is not None:
        sections.append(_trials("mutants: one line of the code changed", mutants))
    for backend in dict.fromkeys(line["backend"] for line in device):
        own = [line for line in device if line["backend"] == backend]
        found = [slip for slip in slips if slip["backend"] == backend]
        sections += [
            _table(
                f"steps on a device in {backend}, by their numbers", _DEVICE, own,
                "cells: sets of numbers of one outcome. asked: in their middles and near ends.",
                "distance: from a step's law, over drafts and numbers, to the target's / bound.",
                "left out: the weight of cells too narrow to be asked about / bound.",
            ),
            _table(
                f"mistakes in the source of steps on a device in {backend}", _SLIPS, found,
                "bias: total variation from the target's law. other answers: than the reference's.",
                left=3,
            ),
        ]  # fmt: skip
    summary = [
        f"FAILED: {len(failed)} of {len(rows)} pairs of rule and law are not lossless"
        if failed
        else f"all {len(rows)} pairs of rule and law are lossless: every distance is exactly 0",
        f"FAILED: {len(beyond)} of {len(floats) + len(draws)} lines of floating point are beyond "
        "their bounds: " + "; ".join(_place(line) for line in beyond)
        if beyond
        else f"floating point: every distance of {len(floats)} pairs of format and instruction set "
        "is within its bound",
        _about_field(field, unexpected),
        *(_about_device(backend, device) for backend in _BACKENDS),
        f"FAILED: {len(alive)} of {len(trials)} mistakes are not found as expected: "
        + ", ".join(_name(trial) for trial in alive)
        if alive
        else f"all {len(trials)} mistakes are found",
        f"({seconds:.0f} s{'; mutants are not compiled in' if mutants is None else ''})",
    ]
    data = {
        "rows": rows,
        "floats": floats,
        "draws": draws,
        "field": field,
        "device": device,
        "device_mistakes": slips,
        "misdeclared": misdeclared,
        "mutants": "not compiled in" if mutants is None else mutants,
        "mutant_groups": dict(Counter(mutant["group"] for mutant in mutants or [])),
        "seconds": seconds,
    }
    ok = not (failed or beyond or unexpected or unlike or alive)
    return Report("prove", ok=ok, data=data, sections=sections, summary="\n".join(summary))


def _core_tables() -> list[Any]:
    """Let the core enumerate in another process: Ctrl-C ends that one, but no call of the core."""
    (tables,) = _in_workers(_enumerate, [()])
    return list(tables)


def _device_tables() -> tuple[list[_Line], list[_Line]]:
    """Enumerate steps on devices, and try mistakes in their sources, if torch is there."""
    if find_spec("torch") is None:
        return [], []
    from mtp_verify.testing.device import proof

    count = min(os.cpu_count() or 1, 8)
    shares = _in_workers(proof.work, [(share, count) for share in range(count)])
    return _lines_of({number: finding for share in shares for number, finding in share.items()})


def _lines_of(found: dict[int, Any]) -> tuple[list[_Line], list[_Line]]:
    from mtp_verify.testing.device import proof

    listed = proof.tasks()
    return proof.lines_of_laws(listed, found), proof.lines_of_mutants(listed, found)


def _in_workers(work: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Return what some work gives for each of several arguments, each in a process of its own."""
    workers = []
    try:
        for own in arguments:
            workers.append(Worker(_send, work, *own))  # noqa: PERF401  # All are stopped.
        return [worker.receive() for worker in workers]
    finally:
        for worker in workers:
            worker.stop()


def _send(connection: Connection, work: Callable[..., Any], *arguments: Any) -> None:
    """Send what some work gives, or why it failed."""
    try:
        connection.send(work(*arguments))
    except Exception as error:  # noqa: BLE001 - the parent reports any error
        connection.send(error)


def _enumerate() -> list[Any]:
    tables = (_core.prove_rules, _core.prove_floats, _core.prove_draws, _core.misdeclared)
    return [table() for table in (*tables, _core.mutants, _core.prove_field)]


def _about_field(field: list[_Line], unexpected: list[_Line]) -> str:
    if unexpected:
        names = ", ".join(line["rule"] for line in unexpected)
        return f"FAILED: {len(unexpected)} of {len(field)} rules of the field differ: {names}"
    count = sum(line["lossless"] for line in field)
    biased = len(field) - count
    return f"{len(field)} rules of the field: {count} without a distance, {biased} refuted"


def _verdict(line: _Line) -> _Line:
    """Return a line's verdict and its counterexample in words."""
    return {
        "claimed": "lossless" if line["claimed_lossless"] else "-",
        "found": "lossless" if line["lossless"] else "biased",
        "example": _example(line["counterexample"]),
    }


def _beside(case: _Line) -> str:
    return ", ".join(f"{name} {mean}" for name, mean in case["shipped"])


def _example(example: _Line | None) -> str:
    if example is None:
        return "-"
    rows = [" ".join(f"({', '.join(row)})" for row in example[side]) for side in _SIDES]
    tokens = " | ".join(" ".join(map(str, tokens)) for tokens in example["tokens"])
    shape = f"{example['shape']}: {tokens} with {example['emitted']}, not {example['wanted']}"
    return f"p {rows[0]}; q {rows[1]}; {shape}"


def _about_device(backend: str, device: list[_Line]) -> str:
    own = [line for line in device if line["backend"] == backend]
    unlike = [line for line in own if not line["holds"]]
    if not own:
        missing = "torch" if find_spec("torch") is None else backend
        return f"steps on a device in {backend}: not run: {missing} is not installed"
    if unlike:
        pairs = "; ".join(f"{line['rule']} on {line['law']}" for line in unlike)
        return f"FAILED: {len(unlike)} of {len(own)} pairs on a device in {backend}: {pairs}"
    return f"steps on a device in {backend}: every distance of {len(own)} pairs is within its bound"


def _table(
    title: str, columns: _Columns, lines: Iterable[_Line], *notes: str, left: int = 2
) -> Table:
    rows = tuple(tuple(_cell(line, keys) for keys in columns.values()) for line in lines)
    return Table(title, tuple(columns), rows, left=left, notes=("", *notes))


def _trials(title: str, trials: Sequence[_Line]) -> Table:
    note = "bias: total variation from the target's law, a rational."
    return _table(title, _TRIALS, trials, note, left=3)


def _cell(line: _Line, keys: str | tuple[str, str | None]) -> str:
    """Return a figure of a line, or a distance with its bound."""
    if isinstance(keys, tuple):
        key, bound = keys
        return f"{_cell(line, key)} / {line[bound] if bound else 0:.2g}"
    value = line[keys]
    if isinstance(value, float):
        return f"{value:.1e}" if value else "0"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _name(trial: _Line) -> str:
    return f"{trial['name']} ({trial['backend']})" if "backend" in trial else str(trial["name"])


def _place(line: _Line) -> str:
    where = f"{line['format']}, {line['level']}"
    return f"{where} ({line['worst']})" if "worst" in line else where


COMMAND = Command(
    "prove",
    "Prove this package's own rules by exact enumeration (needs a build of `make prove`).",
    "make prove",
    add_arguments,
    run,
    activity="enumerating every choice of every rule (some minutes) ...",
)
