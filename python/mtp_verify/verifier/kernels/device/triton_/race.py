"""Run the exponential races of `coupled`, one after each node: ``-ln(1 - u) / weight`` is least.

A part of a row is a program; `walk` picks the earliest of the parts.
"""

# Kernels take the compiler's own values, which have no types that a checker knows.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mtp_verify.verifier.kernels.device import layout
from mtp_verify.verifier.kernels.device.triton_.noise import race_uniforms
from mtp_verify.verifier.kernels.device.triton_.rows import (
    OPTIONS,
    opened,
    reached,
    weigh_reached,
)
from mtp_verify.verifier.kernels.device.triton_.workspace import PART

if TYPE_CHECKING:
    from mtp_verify.verifier.kernels.device.layout import Step
    from mtp_verify.verifier.kernels.device.triton_.rows import Source
    from mtp_verify.verifier.kernels.device.triton_.workspace import Workspace

__all__ = ["run_races", "winners"]

# Pairs of tokens that a program looks at together: no bit depends on it.
PAIRS = 512

COUPLED = tl.constexpr(layout.COUPLED)
NOBODY = tl.constexpr(0x7FFFFFFF)
# Later than any token: the last one of the least weight comes before 1e40.
NEVER = tl.constexpr(1e300)


def run_races(step: Step, workspace: Workspace, target: Source) -> None:
    """Run the races of requests of COUPLED; the records of rows are known.

    Args:
        step: Trees and noise.
        workspace: Of the step's capacity.
        target: The target's rows.
    """
    race[step.capacity.rows, workspace.races.parts](
        step.nodes, step.requests, target, workspace.target, workspace.races,
        TOKENS=PART, PAIRS=PAIRS, **OPTIONS,
    )  # fmt: skip


@triton.jit
def _run(source, records, row, seed, position, first, last, PAIRS: tl.constexpr):
    """Return the earliest time and its token from `first` to below `last`; ties to the lowest."""
    place, row_seen = reached(source, row), opened(records, row)
    earliest = tl.full((), NEVER, tl.float64)
    winner = tl.full((), NOBODY, tl.int32)
    for start in range(first, last, 2 * PAIRS):
        pairs = start // 2 + tl.arange(0, PAIRS)
        tokens = 2 * pairs[:, None] + tl.arange(0, 2)[None, :]
        within = tokens < last
        even, odd = race_uniforms(seed, position, pairs)
        u = tl.join(even, odd)
        weight = weigh_reached(source, place, row_seen, tokens, within).to(tl.float64)
        # A time is at least u / weight, so most stripes lose without a logarithm.
        enters = (weight > 0.0) & (u < earliest * weight)
        if tl.max(tl.max(enters.to(tl.int32), 1), 0) > 0:
            times = (0.0 - tl.log(1.0 - u)) / tl.where(enters, weight, 1.0)
            times = tl.where(enters, times, NEVER)
            best = tl.min(tl.min(times, 1), 0)
            lowest = tl.min(tl.min(tl.where(times == best, tokens, NOBODY), 1), 0)
            winner = tl.where(best < earliest, lowest, winner)
            earliest = tl.minimum(earliest, best)
    return earliest, winner


@triton.jit
def race(nodes, requests, target, records, races, TOKENS: tl.constexpr, PAIRS: tl.constexpr):
    """Run the races of COUPLED: grid (R, parts); TOKENS a part, 2 PAIRS at a time."""
    row = tl.program_id(0)
    part = tl.program_id(1)
    request = tl.load(nodes.request + row)
    if request >= 0:
        is_coupled = tl.load(requests.core + request) == COUPLED
        if is_coupled & (tl.load(records.status + row) == 0):
            # The first token that is emitted stands behind the root.
            position = tl.load(requests.position + request) + 1 + tl.load(nodes.depth + row)
            seed = tl.load(requests.seed + request)
            last = tl.minimum((part + 1) * TOKENS, target.width)
            time, token = _run(target, records, row, seed, position, part * TOKENS, last, PAIRS)
            at = row * races.parts + part
            tl.store(races.times + at, time)
            tl.store(races.tokens + at, token)


@triton.jit
def winners(races, rows, runs):
    """Return the winners of the races of rows (N,) where `runs`; -1 elsewhere."""
    earliest = tl.full(rows.shape, NEVER, tl.float64)
    winner = tl.full(rows.shape, -1, tl.int32)
    for part in range(races.parts):
        at = rows * races.parts + part
        time = tl.load(races.times + at, runs, NEVER)
        # Parts ascend, so that the lowest token of equal times stays.
        winner = tl.where(time < earliest, tl.load(races.tokens + at, runs, -1), winner)
        earliest = tl.minimum(earliest, time)
    return winner
