"""Read every row once: the sums of its blocks, its largest values, and what describes it.

Two kernels. `measure` reads rows, a few blocks a program, and leaves the sums of blocks and their
leaves. `describe` brings a row's sums to one unit, finds the tokens of greedy rows, and resets the
states of nodes.
"""

# Kernels take the compiler's own values, which have no types that a checker knows.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from mtp_verify.verifier.kernels.device import layout
from mtp_verify.verifier.kernels.device.triton_.rows import (
    COUNTS,
    OPTIONS,
    ceiling_of,
    divide,
    divisor_of,
    even_exponent,
    exponent_around,
    floor_of,
    fold,
    located,
    power_of_two,
    raw,
    read,
    sum_blocks,
    weight,
)

if TYPE_CHECKING:
    from mtp_verify.verifier.kernels.device.layout import Step
    from mtp_verify.verifier.kernels.device.triton_.rows import Source
    from mtp_verify.verifier.kernels.device.triton_.workspace import Workspace

__all__ = ["summarise"]

# The most blocks that a program of `measure` sums, and how many programs fill a device: they are
# smaller if there are fewer. No bit depends on it.
GROUP = 16
PROGRAMS = 1024

BLOCK = tl.constexpr(layout.BLOCK)
LANES = tl.constexpr(layout.LANES)
STRIPES = tl.constexpr(layout.BLOCK // layout.LANES)
TARGET_ONLY = tl.constexpr(layout.TARGET_ONLY)
NOT_FINITE = tl.constexpr(layout.NOT_FINITE)
EMPTY = tl.constexpr(layout.EMPTY)
NOT_NORMALISED = tl.constexpr(layout.NOT_NORMALISED)

# Beyond it a row is shifted by its largest value first (`src/rows/simd/exp.rs`).
REACH = tl.constexpr(1048576.0)
# Powers of two that a block's largest weight may lie below 1 without the small ones being lost.
SLACK = tl.constexpr(24)


def summarise(step: Step, workspace: Workspace, target: Source, drafter: Source | None) -> None:
    """Read all rows of a step once, and write their records; reset the states of nodes.

    Args:
        step: Trees and rows.
        workspace: Of the step's capacity.
        target: The target's rows.
        drafter: The drafter's rows, or None.
    """
    rows, drafted = step.capacity.rows, 0 if step.drafted is None else step.drafted.number
    blocks = triton.cdiv(step.capacity.vocab, layout.BLOCK)
    drafter_blocks = triton.cdiv(step.capacity.columns, layout.BLOCK)
    share = (rows * blocks + drafted * drafter_blocks) // PROGRAMS
    group = min(GROUP, triton.next_power_of_2(max(share, 2)))
    groups = triton.cdiv(rows * blocks, group)
    records = None if drafter is None else workspace.drafter
    measure[groups + triton.cdiv(drafted * drafter_blocks, group),](
        step.nodes, target, workspace.target, drafter, records, rows, drafted, groups,
        GROUP=group, UNROLLED=max(8, min(32, 128 // group)), num_warps=1, **OPTIONS,
    )  # fmt: skip
    describe[rows + drafted,](
        step.nodes, step.requests, target, workspace.target, drafter, records, workspace.states,
        rows,
        TARGET_BLOCKS=triton.next_power_of_2(blocks),
        DRAFTER_BLOCKS=triton.next_power_of_2(max(1, drafter_blocks)),
        **OPTIONS,
    )  # fmt: skip


@triton.jit
def _add_weights(
    source,
    place,
    first,
    within,
    stripes,
    exponent,
    divisor,
    reciprocal,
    SCALES: tl.constexpr,
    UNROLLED: tl.constexpr,
):
    """Return the sums of weights and the largest values of lanes, (GROUP, LANES) each."""
    ceiling, cut = ceiling_of(exponent), floor_of(exponent)
    sums = tl.zeros(first.shape, tl.float64)
    largest = tl.full(first.shape, float("-inf"), tl.float32)
    for start in range(0, stripes, UNROLLED):
        for stripe in tl.static_range(UNROLLED):
            tokens = first + (start + stripe) * LANES
            y = read(source, place, tokens, within & (tokens < source.width))
            if SCALES:
                y = divide(y, divisor, reciprocal)
            largest = tl.maximum(largest, y, propagate_nan=tl.PropagateNan.ALL)
            sums += weight(y, exponent, ceiling, cut).to(tl.float64)
    return sums, largest


@triton.jit
def _exponent_of(top):
    """Return the exponent around the largest value of a block; 0 if that is not within reach."""
    return exponent_around(tl.where(tl.abs(top) <= REACH, top, 0.0))


@triton.jit
def _measure_shaped(
    source,
    place,
    first,
    within,
    stripes,
    divisor,
    reciprocal,
    SCALES: tl.constexpr,
    UNROLLED: tl.constexpr,
):
    """Return the same with the exponents of blocks.

    An exponent is guessed by a block's first stripe. Where the largest value shows that it does not
    hold the block, the blocks are summed again: a block's sum depends on its own values alone.
    """
    y = divide(read(source, place, first, within & (first < source.width)), divisor, reciprocal)
    exponent = _exponent_of(tl.max(y, 1))[:, None]
    sums, largest = _add_weights(
        source, place, first, within, stripes, exponent, divisor, reciprocal, SCALES, UNROLLED
    )
    top = tl.max(largest, 1)[:, None]
    better = _exponent_of(top)
    misses = (top >= ceiling_of(exponent)) | (better < exponent - SLACK)
    misses = misses & (tl.abs(top) <= REACH)
    if tl.max(tl.max(misses.to(tl.int32), 1), 0) > 0:
        exponent = tl.where(misses, better, exponent)
        # Rare: a short loop, since compilers take the square of the loads.
        sums, largest = _add_weights(
            source, place, first, within, stripes, exponent, divisor, reciprocal, SCALES, 1
        )
    return sums, largest, exponent


@triton.jit
def _largest(source, place, first, within, stripes, UNROLLED: tl.constexpr):
    """Return the largest values of lanes: all that greedy rows need."""
    largest = tl.full(first.shape, float("-inf"), tl.float32)
    for start in range(0, stripes, UNROLLED):
        for stripe in tl.static_range(UNROLLED):
            tokens = first + (start + stripe) * LANES
            y = read(source, place, tokens, within & (tokens < source.width))
            largest = tl.maximum(largest, y, propagate_nan=tl.PropagateNan.ALL)
    return largest


@triton.jit
def _add_probabilities(source, rows, first, within, stripes, UNROLLED: tl.constexpr):
    """Return the sums of lanes; NaN where a value is below 0."""
    sums = tl.zeros(first.shape, tl.float64)
    least = tl.zeros(first.shape, tl.float32)
    at = source.data + rows.to(tl.int64) * source.stride
    for start in range(0, stripes, UNROLLED):
        for stripe in tl.static_range(UNROLLED):
            tokens = first + (start + stripe) * LANES
            q = tl.load(at + tokens, within & (tokens < source.width), 0.0).to(tl.float32)
            least = tl.minimum(least, q)
            sums += q.to(tl.float64)
    return tl.where(least < 0.0, float("nan"), sums)


@triton.jit
def _measure_group(
    source, records, request, ROWS, group, GROUP: tl.constexpr, UNROLLED: tl.constexpr
):
    """Sum a group of blocks, those of one row behind those of another."""
    count = tl.cdiv(source.width, BLOCK)
    at = group * GROUP + tl.arange(0, GROUP)
    used = at < ROWS * count
    rows = tl.where(used, at // count, 0)
    if request is not None:
        used = used & (tl.load(request + rows) >= 0)
    lanes = tl.arange(0, LANES)[None, :]
    first = (at % count)[:, None] * BLOCK + lanes
    within = used[:, None]
    stripes = tl.minimum(tl.cdiv(source.width, LANES), STRIPES)
    if source.temperature is None:
        sums = _add_probabilities(source, rows[:, None], first, within, stripes, UNROLLED)
        tl.store(records.sums + at, fold(sums), used)
    else:
        place = located(source, rows[:, None])
        temperature = tl.load(source.temperature + rows, used, 0.0)
        divisor, reciprocal = divisor_of(source, rows[:, None])
        # Long loops wait for memory, not for arithmetic: one of them serves all temperatures.
        is_long: tl.constexpr = UNROLLED > 8
        if is_long or tl.max(temperature, 0) > 0.0:
            if is_long or tl.max(tl.max((divisor != 1.0).to(tl.int32), 1), 0) > 0:
                sums, largest, exponent = _measure_shaped(
                    source,
                    place,
                    first,
                    within,
                    stripes,
                    divisor,
                    reciprocal,
                    SCALES=True,
                    UNROLLED=UNROLLED,
                )
            else:
                sums, largest, exponent = _measure_shaped(
                    source,
                    place,
                    first,
                    within,
                    stripes,
                    divisor,
                    reciprocal,
                    SCALES=False,
                    UNROLLED=UNROLLED,
                )
            tl.store(records.sums + at, fold(sums), used)
            tl.store(records.block_exponent + at[:, None], exponent, within)
        else:
            largest = _largest(source, place, first, within, stripes, UNROLLED)
        tl.store(records.leaf + at[:, None] * LANES + lanes, largest, within)


@triton.jit(do_not_specialize=COUNTS)
def measure(
    nodes,
    target,
    target_records,
    drafter,
    drafter_records,
    NODES,
    DRAFTED,
    TARGET_GROUPS,
    GROUP: tl.constexpr,
    UNROLLED: tl.constexpr,
):
    """Sum the blocks of all rows: grid (groups of the target's blocks and of the drafter's,).

    GROUP blocks a group, UNROLLED stripes between two turns of a loop: no bit depends on them.
    """
    group = tl.program_id(0)
    if group < TARGET_GROUPS:
        _measure_group(target, target_records, nodes.request, NODES, group, GROUP, UNROLLED)
    elif drafter is not None:
        group -= TARGET_GROUPS
        _measure_group(drafter, drafter_records, None, DRAFTED, group, GROUP, UNROLLED)


@triton.jit
def _has_infinity(source, row, SIZE: tl.constexpr):
    """Return whether a row's own logits hold +inf: a division by the temperature makes it, too."""
    found = 0
    for start in range(0, source.width, SIZE):
        tokens = start + tl.arange(0, SIZE)
        x = raw(source, row, tokens, tokens < source.width)
        found = tl.maximum(found, tl.max((x == float("inf")).to(tl.int32), 0))
    return found


@triton.jit
def _fault_of(source, row, leaf, top):
    """Return the status of a row of logits, given its leaves and the largest of them."""
    fault = tl.where(top == float("-inf"), EMPTY, 0)
    if tl.max((leaf != leaf).to(tl.int32), 0) > 0:
        fault = NOT_FINITE + tl.zeros_like(fault)
    elif top == float("inf"):
        fault = tl.where(_has_infinity(source, row, BLOCK) > 0, NOT_FINITE, EMPTY)
    return fault


@triton.jit
def _first_of(source, row, leaf, places, top):
    """Return the lowest token of the largest logit of a greedy row."""
    block = tl.min(tl.where(leaf == top, places // LANES, source.width), 0)
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    x = raw(source, row, tokens, tokens < source.width)
    return tl.min(tl.where(x == top, tokens, source.width), 0)


@triton.jit
def _sum_shifted(source, row, origin, blocks):
    """Return the sums of the blocks of a row under the exponent 0, its origin taken off.

    One program reads all of the row; such rows are rare.
    """
    exponent = tl.zeros((), tl.int32)
    shifted = exponent, ceiling_of(exponent), floor_of(exponent), 0x7FFFFFFF, origin, exponent - 1
    sums = tl.zeros(blocks.shape, tl.float64)
    for block in range(tl.cdiv(source.width, BLOCK)):
        own = sum_blocks(source, shifted, row, block + tl.zeros((1,), tl.int32), 1)
        sums = tl.where(blocks == block, own, sums)
    return sums


@triton.jit
def _describe_shaped(records, row, sums, exponent, origin):
    """Write the record of a row of logits that nothing truncates; returns its sums in its unit."""
    highest = tl.max(tl.where(sums > 0.0, exponent, -0x40000000), 0)
    sums *= power_of_two(exponent - highest)
    total = tl.sum(fold(sums[None, :]), 0)
    shift = even_exponent(total)
    factor = power_of_two(-shift)
    tl.store(records.exponent + row, highest + shift)
    tl.store(records.total + row, total * factor)
    tl.store(records.cut + row, floor_of(highest + shift))
    tl.store(records.tie_end + row, 0x7FFFFFFF)
    tl.store(records.origin + row, origin)
    return sums * factor


@triton.jit
def _describe_greedy(records, row, top, token):
    """Write the record of a greedy row, whose one token has the weight 1."""
    tl.store(records.exponent + row, 0)
    tl.store(records.total + row, 1.0)
    tl.store(records.cut + row, top)
    tl.store(records.tie_end + row, token + 1)
    tl.store(records.origin + row, 0.0)


@triton.jit
def _describe_row(source, records, row, BLOCKS: tl.constexpr):
    """Write what is known of a row; returns a greedy row's token (else -1), and the status."""
    count = tl.cdiv(source.width, BLOCK)
    blocks = tl.arange(0, BLOCKS)
    at = row * count + blocks
    sums = tl.load(records.sums + at, blocks < count, 0.0)
    only = -1
    if source.temperature is None:
        total = tl.sum(fold(sums[None, :]), 0)
        fault = tl.where(total > 0.0, 0, NOT_NORMALISED)
        fault = tl.where(tl.abs(total) < float("inf"), fault, NOT_FINITE)
        tl.store(records.total + row, total)
    else:
        places = tl.arange(0, BLOCKS * LANES)
        leaf = records.leaf + row * count * LANES + places
        leaf = tl.load(leaf, places < count * LANES, float("-inf"))
        top = tl.max(leaf, 0)
        fault = _fault_of(source, row, leaf, top)
        if tl.load(source.temperature + row) > 0.0:
            exponent = tl.load(records.block_exponent + at, blocks < count, 0)
            origin = tl.where((tl.abs(top) > REACH) & (fault == 0), top, 0.0)
            if origin != 0.0:
                sums = _sum_shifted(source, row, origin, blocks)
                exponent = tl.zeros_like(exponent)
            sums = _describe_shaped(records, row, sums, exponent, origin)
        else:
            only = tl.where(fault == 0, _first_of(source, row, leaf, places, top), -1)
            sums = (blocks == only // BLOCK).to(tl.float64)
            _describe_greedy(records, row, top, only)
        tl.store(records.sums + at, sums, blocks < count)
    tl.store(records.only + row, only)
    tl.store(records.status + row, fault)
    return only, fault


@triton.jit
def _reset(states, row, wants, only):
    """Put the state of a node back to where no child has been tested."""
    tl.store(states.taken + row, 0.0)
    tl.store(states.gone + row, 0)
    tl.store(states.next + row, -1)
    tl.store(states.wants + row, wants.to(tl.int32))
    tl.store(states.drawn + row, only)
    tl.store(states.edge + row, float("inf"))
    tl.store(states.fell_back + row, 0)
    tl.store(states.status + row, 0)


@triton.jit(do_not_specialize=COUNTS)
def describe(
    nodes,
    requests,
    target,
    target_records,
    drafter,
    drafter_records,
    states,
    NODES,
    TARGET_BLOCKS: tl.constexpr,
    DRAFTER_BLOCKS: tl.constexpr,
):
    """Write the records of all rows and reset the states of nodes: grid (rows of both,)."""
    row = tl.program_id(0)
    if row < NODES:
        request = tl.load(nodes.request + row)
        if request >= 0:
            only, fault = _describe_row(target, target_records, row, TARGET_BLOCKS)
            wants = (tl.load(requests.core + request) == TARGET_ONLY) & (fault == 0)
            _reset(states, row, wants, only)
    elif drafter is not None:
        _describe_row(drafter, drafter_records, row - NODES, DRAFTER_BLOCKS)
