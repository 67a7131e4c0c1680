"""Write down what was decided: the walk of each request, its tokens, and what its cache keeps."""

# Kernels take the compiler's own values, which have no types that a checker knows.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mtp_verify.verifier.kernels.device import layout
from mtp_verify.verifier.kernels.device.triton_.race import winners
from mtp_verify.verifier.kernels.device.triton_.rows import OPTIONS, weights

if TYPE_CHECKING:
    from mtp_verify.verifier.kernels.device.layout import Step
    from mtp_verify.verifier.kernels.device.triton_.rows import Source
    from mtp_verify.verifier.kernels.device.triton_.workspace import Workspace

__all__ = ["write_outcomes"]

# Nodes of a tree that a program looks at together.
LANES = 32

COUPLED = tl.constexpr(layout.COUPLED)
FALLBACK = tl.constexpr(layout.FALLBACK)
LIFTED = tl.constexpr(layout.LIFTED)
TOPDOWN = tl.constexpr(layout.TOPDOWN)
ZERO_DRAFT = tl.constexpr(layout.ZERO_DRAFT)


def write_outcomes(step: Step, workspace: Workspace, target: Source) -> None:
    """Write the outcomes of a step whose nodes are decided.

    Args:
        step: Trees; its outcomes are written.
        workspace: Of the step's capacity.
        target: The target's rows.
    """
    walk[step.capacity.requests,](
        step.nodes, step.requests, target, workspace.target, workspace.states, workspace.races,
        workspace.tests, workspace.stops, step.outcomes, step.outcomes.path.shape[1],
        LEVELS=triton.next_power_of_2(step.capacity.depth + 1), LANES=LANES, num_warps=1,
        **OPTIONS,
    )  # fmt: skip


@triton.jit
def _follow(nodes, records, states, races, root, count, core, LANES: tl.constexpr):
    """Set `next` of the nodes of a request whose drawn token one of their children has.

    Races have been run in parts; their winners are found here.
    """
    for start in range(0, count, LANES):
        place = start + tl.arange(0, LANES)
        rows = root + place
        drawn = tl.load(states.drawn + rows, place < count, -1)
        if core == COUPLED:
            runs = tl.load(records.status + rows, place < count, 1) == 0
            drawn = winners(races, rows, runs)
            tl.store(states.drawn + rows, drawn, place < count)
        known = tl.load(states.next + rows, place < count, 0)
        looks = (place < count) & (known < 0) & (drawn >= 0)
        child = tl.load(nodes.first_child + rows, looks, -1)
        found = tl.full((LANES,), -1, tl.int32)
        while tl.max(child, 0) >= 0:
            is_child = child >= 0
            same = tl.load(nodes.token + child, is_child, -1) == drawn
            # A token that was sampled and rejected is not accepted by being drawn again.
            sampled = tl.load(nodes.sampled + child, is_child, 0)
            hit = is_child & same & ((core != TOPDOWN) | (sampled == 0))
            found = tl.where(hit, child, found)
            child = tl.where(hit, -1, tl.load(nodes.next_sibling + child, is_child, -1))
        tl.store(states.next + rows, found, found >= 0)


@triton.jit
def _path_down(states, root, levels, LEVELS: tl.constexpr):
    """Return the rows of a walk along `next`, and the row after each; -1 where there is none."""
    path = tl.full((LEVELS,), -1, tl.int32)
    after = path
    row = root
    level = 0
    while row >= 0:
        path = tl.where(levels == level, row, path)
        after = tl.where(levels == level - 1, row, after)
        row = tl.load(states.next + row)
        level += 1
    return path, after


@triton.jit
def _path_up(nodes, stop, levels, LEVELS: tl.constexpr):
    """Return the same for the way from the root to `stop`."""
    path = tl.full((LEVELS,), -1, tl.int32)
    after = path
    row = stop
    level = tl.load(nodes.depth + stop)
    while row >= 0:
        path = tl.where(levels == level, row, path)
        after = tl.where(levels == level - 1, row, after)
        row = tl.load(nodes.parent + row)
        level -= 1
    return path, after


@triton.jit
def _store_errors(
    outcomes, request, nodes, records, states, tests, stops, core, rows, visited, levels
):
    """Write the status of a request: the first error that its walk comes to, or a fall back."""
    status = tl.load(records.status + rows, visited, 0)
    status = tl.where(status != 0, status, tl.load(states.status + rows, visited, 0))
    if core == LIFTED:
        # Rows above the last are read, too, and a bad one is a leaf; only the draw needs its row.
        status = tl.where(levels == tl.max(tl.where(visited, levels, 0), 0), status, 0)
    first = tl.min(tl.where(status != 0, levels, levels.shape[0]), 0)
    bits = tl.sum(tl.where(levels == first, status, 0), 0)
    row = tl.max(tl.where((levels == first) & visited, rows, -1), 0)
    before = tl.load(stops.status + request, core == LIFTED, 0)
    if before != 0:
        bits = before
        row = tl.load(stops.row + request)
    if bits == ZERO_DRAFT:
        # That is about the child, others about the row after its parent.
        row = tl.load(tests.child + row)
    fault = tl.load(nodes.number + row, row >= 0, -1)
    fell_back = tl.max(tl.load(states.fell_back + rows, visited, 0), 0)
    tl.store(outcomes.status + request, bits | tl.where(fell_back != 0, FALLBACK, 0))
    tl.store(outcomes.fault + request, fault)


@triton.jit
def _store_commit(outcomes, request, start, numbers, levels, accepted, DEPTH):
    """Write what a cache keeps, whose entry of node i is ``start + i``."""
    moves = (levels >= 1) & (levels <= accepted) & (numbers != levels)
    place = tl.cumsum(moves.to(tl.int32), 0) - 1
    at = outcomes.moves + 2 * (request.to(tl.int64) * DEPTH + place)
    tl.store(at, start + numbers, moves)
    tl.store(at + 1, start + levels, moves)
    at = outcomes.moves + 2 * (request.to(tl.int64) * DEPTH + levels)
    unused = (levels >= tl.sum(moves.to(tl.int32), 0)) & (levels < DEPTH)
    tl.store(at, -1, unused)
    tl.store(at + 1, -1, unused)
    tl.store(outcomes.length + request, start + 1 + accepted)
    last = tl.sum(tl.where(levels == accepted, numbers, 0), 0)
    tl.store(outcomes.state_select + request, last)


@triton.jit
def _clear(outcomes, request, levels, DEPTH, LEVELS: tl.constexpr):
    """Fill what lies behind the levels that the step's trees may have."""
    for start in range(0, DEPTH + 1 - LEVELS, LEVELS):
        level = levels + start
        at = request.to(tl.int64) * (DEPTH + 1) + level
        tl.store(outcomes.tokens + at, -1, level <= DEPTH)
        tl.store(outcomes.logprobs + at, 0.0, level <= DEPTH)
        at = request.to(tl.int64) * DEPTH + level
        tl.store(outcomes.path + at - 1, -1, level <= DEPTH)
        tl.store(outcomes.moves + 2 * at, -1, level < DEPTH)
        tl.store(outcomes.moves + 2 * at + 1, -1, level < DEPTH)


@triton.jit
def walk(
    nodes,
    requests,
    target,
    records,
    states,
    races,
    tests,
    stops,
    outcomes,
    DEPTH,
    LEVELS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Write the outcomes of requests: grid (B,).

    LEVELS is a power of two above the depth of trees, DEPTH the levels that outcomes have.
    """
    request = tl.program_id(0)
    root = tl.load(requests.root + request)
    if root >= 0:
        core = tl.load(requests.core + request)
        levels = tl.arange(0, LEVELS)
        if core == LIFTED:
            path, after = _path_up(nodes, tl.load(stops.row + request), levels, LEVELS)
        else:
            _follow(
                nodes, records, states, races, root, tl.load(requests.count + request), core, LANES
            )
            tl.debug_barrier()
            path, after = _path_down(states, root, levels, LEVELS)
        visited = path >= 0
        rows = tl.where(visited, path, root)
        accepted = tl.sum((after >= 0).to(tl.int32), 0)
        numbers = tl.load(nodes.number + rows, visited, 0)
        drawn = tl.load(states.drawn + rows, visited, -1)
        tokens = tl.where(after >= 0, tl.load(nodes.token + after, after >= 0, -1), drawn)
        emitted = (tokens >= 0) & (tl.load(records.status + rows) == 0)
        total = tl.load(records.total + rows, emitted, 1.0)
        weight = weights(target, records, rows, tokens, emitted).to(tl.float64)
        logprobs = tl.log(tl.where(emitted, weight / total, 1.0)).to(tl.float32)
        edge = tl.load(states.edge + rows, visited, float("inf"))

        at = request.to(tl.int64) * (DEPTH + 1) + levels
        tl.store(outcomes.tokens + at, tokens, levels <= DEPTH)
        tl.store(outcomes.logprobs + at, logprobs, levels <= DEPTH)
        at = request.to(tl.int64) * DEPTH + levels - 1
        within = (levels >= 1) & (levels <= DEPTH)
        tl.store(outcomes.path + at, tl.where(visited, numbers, -1), within)
        _clear(outcomes, request, levels + LEVELS, DEPTH, LEVELS)
        tl.store(outcomes.num_accepted + request, accepted)
        tl.store(outcomes.margin + request, tl.min(edge, 0))
        start = tl.load(requests.start + request)
        _store_commit(outcomes, request, start, numbers, levels, accepted, DEPTH)
        _store_errors(
            outcomes, request, nodes, records, states, tests, stops, core, rows, visited, levels
        )
