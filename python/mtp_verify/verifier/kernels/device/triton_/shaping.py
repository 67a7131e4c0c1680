"""Cut rows by top-k, top-p and min-p, and describe what is left of them.

Five kernels. `bound` finds a logit, by the leaves, that no cut is below. `gather` lists the tokens
from there on. `select` finds the cut among them (see `selection`). `total` sums the blocks that
reach it, and `settle` brings the sums to the unit of what is left. Rows that nothing truncates stay
as they are.
"""

# Kernels take the compiler's own values, which have no types that a checker knows.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from mtp_verify.verifier.kernels.device import layout
from mtp_verify.verifier.kernels.device.triton_.rows import (
    COUNTS,
    OPTIONS,
    ceiling_of,
    drafter_source,
    even_exponent,
    exponent_around,
    floor_of,
    fold,
    opened,
    power_of_two,
    scaled,
    sum_blocks,
    target_source,
    weight,
)
from mtp_verify.verifier.kernels.device.triton_.selection import (
    UNITS,
    append,
    crossing,
    end_of,
    find,
    kept,
    key_of,
    logit_of,
)
from mtp_verify.verifier.kernels.device.triton_.workspace import ROOM as _ROOM

if TYPE_CHECKING:
    from mtp_verify.verifier.kernels.device.layout import Step
    from mtp_verify.verifier.kernels.device.triton_.workspace import Workspace

__all__ = ["shape"]

BLOCK = tl.constexpr(layout.BLOCK)
LANES = tl.constexpr(layout.LANES)
# Tokens of a leaf.
STRIPES = tl.constexpr(layout.BLOCK // layout.LANES)
ROOM = tl.constexpr(_ROOM)
# No token is behind it.
ALL = tl.constexpr(0x7FFFFFFF)
# Halvings by which `bound` looks for a cut of top-p.
LOOKS = tl.constexpr(12)
# What it leaves for rounding: it looks for less than the mass that may be left out.
CAUTION = tl.constexpr(0.999)

# Blocks of a row that one program of `total` sums: no bit depends on it.
GROUP = 16


def shape(step: Step, workspace: Workspace) -> None:
    """Launch the kernels of a step in which rows are truncated, after those of `stats`.

    Args:
        step: The step.
        workspace: With the records of all rows.
    """
    capacity = step.capacity
    target = target_source(step), step.shaping, workspace.target
    drafter: tuple[Any, ...] = (None, None, None)
    rows, width = capacity.rows, capacity.vocab
    if step.drafted is not None and step.drafted.shaping is not None:
        drafter = drafter_source(step), step.drafted.shaping, workspace.drafter
        rows, width = rows + step.drafted.number, max(width, capacity.columns)
    blocks = triton.cdiv(width, layout.BLOCK)
    padded = triton.next_power_of_2(blocks)
    sides = step.nodes.request, capacity.rows, *target, *drafter
    candidates = workspace.candidates
    bound[rows,](*sides, candidates, BLOCKS=padded, **OPTIONS)
    gather[rows, blocks](*sides, candidates, **OPTIONS)
    bits = (padded * layout.BLOCK).bit_length() - 1
    select[rows,](*sides, candidates, BLOCKS=padded, BITS=bits, num_warps=8, **OPTIONS)
    total[rows, triton.cdiv(blocks, GROUP)](*sides, GROUP=GROUP, num_warps=1, **OPTIONS)
    settle[rows,](*sides, BLOCKS=padded, **OPTIONS)


@triton.jit
def _cuts(source, shaping, records, row):
    """Return whether a row is truncated, and by which top-k, top-p and min-p."""
    width = source.width
    top_k = tl.load(shaping.top_k + row)
    top_p = tl.load(shaping.top_p + row)
    min_p = tl.load(shaping.min_p + row)
    is_drawn = (tl.load(source.temperature + row) > 0.0) & (tl.load(records.status + row) == 0)
    truncates = is_drawn & ((top_k > 0) | (top_p < 1.0) | (min_p > 0.0))
    return truncates, tl.where(top_k < width, top_k, 0), top_p, min_p > 0.0


@triton.jit
def _leaves(source, records, row, BLOCKS: tl.constexpr):
    """Return the largest scaled logits of lanes of blocks, (BLOCKS, LANES), less the origin."""
    count = tl.cdiv(source.width, BLOCK)
    blocks = tl.arange(0, BLOCKS)[:, None]
    places = blocks * LANES + tl.arange(0, LANES)[None, :]
    leaf = records.leaf + row * count * LANES + places
    leaf = tl.load(leaf, blocks < count, float("-inf"))
    return leaf - tl.load(records.origin + row)


@triton.jit
def _start(records, row, top, top_k, has_min_p):
    """Return the exponent under which a row's kept weights are summed.

    As in the core: around the largest logit, or that of the whole row where the core sums it first.
    """
    whole = tl.load(records.exponent + row)
    return tl.where((top_k > 0) | has_min_p, exponent_around(top), whole)


@triton.jit
def _min_p_cut(shaping, row, top):
    """Return the least float32 that is not below ``top + ln(min_p)``."""
    cut = top.to(tl.float64) + tl.load(shaping.log_min_p + row)
    near = cut.to(tl.float32)
    return tl.where(near.to(tl.float64) < cut, logit_of(key_of(near) + 1), near)


@triton.jit
def _kth_leaf(leaf, lowest, top, top_k, SIZE: tl.constexpr):
    """Return the k-th largest leaf if it is above `lowest`; so many logits are not below it."""
    keys = tl.reshape(key_of(leaf).to(tl.int64), (1, SIZE))
    ones = tl.full((1, SIZE), 1, tl.int64)
    low, high = key_of(lowest).to(tl.int64), key_of(top).to(tl.int64)
    return logit_of(crossing(keys, ones, low, high, top_k.to(tl.int64)).to(tl.int32))


@triton.jit
def _nucleus_floor(source, records, row, leaf, lowest, top, top_p, BLOCKS: tl.constexpr):
    """Return a logit that top-p's cut is not below, if it is taken of the whole row.

    All tokens below a logit have less mass together than if those of each leaf had that logit, or
    the leaf's largest where that is less; and those of a block have no more than the block.
    """
    count = tl.cdiv(source.width, BLOCK)
    blocks = tl.arange(0, BLOCKS)
    sums = tl.load(records.sums + row * count + blocks, blocks < count, 0.0)
    exponent = tl.load(records.exponent + row)
    spare = CAUTION * (1.0 - top_p) * tl.load(records.total + row)
    low, high = lowest, top
    for _ in range(LOOKS):
        middle = low + (high - low) * 0.5
        y = tl.minimum(leaf, middle)
        w = weight(y, exponent, ceiling_of(exponent), floor_of(exponent)).to(tl.float64)
        below = tl.sum(tl.minimum(tl.sum(w, 1) * STRIPES, sums), 0)
        fits = below < spare
        low = tl.where(fits, middle, low)
        high = tl.where(fits, high, middle)
    return low


@triton.jit
def _bound_row(source, shaping, records, candidates, row, at, BLOCKS: tl.constexpr):
    """Make a logit that no cut is below the row's cut, and the row's list empty."""
    truncates, top_k, top_p, has_min_p = _cuts(source, shaping, records, row)
    if truncates:
        leaf = _leaves(source, records, row, BLOCKS)
        top = tl.max(leaf)
        exponent = _start(records, row, top, tl.load(shaping.top_k + row), has_min_p)
        lowest = floor_of(exponent)
        is_first = has_min_p & (tl.load(shaping.min_p_first + row) != 0)
        if top_k > 0:
            lowest = _kth_leaf(leaf, lowest, top, top_k, BLOCKS * LANES)
        elif (top_p < 1.0) & ~is_first:
            lowest = _nucleus_floor(source, records, row, leaf, lowest, top, top_p, BLOCKS)
        # Behind a top-p that needs the mass of what top-k left, min-p says nothing of that.
        if has_min_p & (is_first | (top_k == 0) | (top_p >= 1.0)):
            lowest = tl.maximum(lowest, _min_p_cut(shaping, row, top))
        tl.store(records.cut + row, lowest)
        tl.store(candidates.found + at, 0)


@triton.jit
def _gather_row(source, shaping, records, candidates, row, at, block):
    """List the tokens of a block that are not below the row's cut so far."""
    truncates, _, _, _ = _cuts(source, shaping, records, row)
    count = tl.cdiv(source.width, BLOCK)
    if truncates & (block < count):
        cut = tl.load(records.cut + row)
        origin = tl.load(records.origin + row)
        leaf = records.leaf + (row * count + block) * LANES + tl.arange(0, LANES)
        if tl.max(tl.load(leaf) - origin, 0) >= cut:
            tokens = block * BLOCK + tl.arange(0, BLOCK)
            y = scaled(source, row, tokens, tokens < source.width) - origin
            append(candidates, at, tokens, y >= cut)


@triton.jit
def _select_row(
    source, shaping, records, candidates, row, at, BLOCKS: tl.constexpr, BITS: tl.constexpr
):
    """Find a row's cut and where its ties end, in the order of its preset."""
    truncates, top_k, top_p, has_min_p = _cuts(source, shaping, records, row)
    if truncates:
        top = tl.max(_leaves(source, records, row, BLOCKS))
        high = ((key_of(top).to(tl.int64) + 1) << BITS) - 1
        count = tl.load(candidates.found + at)
        is_listed = count <= ROOM
        is_first = has_min_p & (tl.load(shaping.min_p_first + row) != 0)
        cut = tl.load(records.cut + row)
        low = key_of(cut).to(tl.int64) << BITS
        tie_end = ALL
        if top_k > 0:
            place = find(
                source, records, candidates, row, at, low, high, count, is_listed,
                top_k.to(tl.int64), BY_MASS=False, BITS=BITS,
            )  # fmt: skip
            cut, _ = end_of(place, BITS)
            low = key_of(cut).to(tl.int64) << BITS
        if top_p < 1.0:
            goal = top_p * tl.load(records.total + row) * UNITS
            if (top_k > 0) | is_first:
                count, mass = kept(source, records, candidates, row, at, low, is_listed, BITS)
                goal = top_p * mass.to(tl.float64)
            place = find(
                source, records, candidates, row, at, low, high, count, is_listed,
                tl.ceil(goal).to(tl.int64), BY_MASS=True, BITS=BITS,
            )  # fmt: skip
            cut, tie_end = end_of(place, BITS)
        if has_min_p & (_min_p_cut(shaping, row, top) > cut):
            cut, tie_end = _min_p_cut(shaping, row, top), ALL
        asked = tl.load(shaping.top_k + row)
        tl.store(records.exponent + row, _start(records, row, top, asked, has_min_p))
        tl.store(records.cut + row, cut)
        tl.store(records.tie_end + row, tie_end)


@triton.jit
def _total_row(source, shaping, records, row, part, GROUP: tl.constexpr):
    """Sum the kept weights of some blocks of a row."""
    truncates, _, _, _ = _cuts(source, shaping, records, row)
    count = tl.cdiv(source.width, BLOCK)
    blocks = part * GROUP + tl.arange(0, GROUP)
    if truncates & (part * GROUP < count):
        leaf = (row * count + blocks)[:, None] * LANES + tl.arange(0, LANES)[None, :]
        leaf = tl.load(records.leaf + leaf, (blocks < count)[:, None], float("-inf"))
        largest = tl.max(leaf, 1) - tl.load(records.origin + row)
        reaches = largest >= tl.load(records.cut + row)
        # Blocks that do not reach the cut are as if they were behind the end.
        reached = tl.where(reaches, blocks, count)
        sums = sum_blocks(source, opened(records, row), row, reached, GROUP)
        tl.store(records.sums + row * count + blocks, sums, blocks < count)


@triton.jit
def _settle_row(source, shaping, records, row, BLOCKS: tl.constexpr):
    """Bring a row's sums to the unit in which their total is in [1, 4)."""
    truncates, _, _, _ = _cuts(source, shaping, records, row)
    if truncates:
        records = records
        count = tl.cdiv(source.width, BLOCK)
        blocks = tl.arange(0, BLOCKS)
        at = records.sums + row * count + blocks
        sums = tl.load(at, blocks < count, 0.0)
        whole = tl.sum(fold(sums[None, :]), 0)
        shift = even_exponent(whole)
        factor = power_of_two(-shift)
        exponent = tl.load(records.exponent + row) + shift
        tl.store(at, sums * factor, blocks < count)
        tl.store(records.total + row, whole * factor)
        tl.store(records.exponent + row, exponent)
        lowest = floor_of(exponent)
        if lowest > tl.load(records.cut + row):
            tl.store(records.cut + row, lowest)
            tl.store(records.tie_end + row, ALL)


@triton.jit(do_not_specialize=COUNTS)
def bound(
    request, NODES, target, target_shaping, target_records,
    drafter, drafter_shaping, drafter_records, candidates, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Find what no cut is below: grid (rows of both,)."""
    row = tl.program_id(0)
    if row < NODES:
        if tl.load(request + row) >= 0:
            _bound_row(target, target_shaping, target_records, candidates, row, row, BLOCKS)
    elif drafter is not None:
        _bound_row(drafter, drafter_shaping, drafter_records, candidates, row - NODES, row, BLOCKS)


@triton.jit(do_not_specialize=COUNTS)
def gather(
    request, NODES, target, target_shaping, target_records,
    drafter, drafter_shaping, drafter_records, candidates,
):  # fmt: skip
    """List what may be kept: grid (rows of both, blocks of a row)."""
    row, block = tl.program_id(0), tl.program_id(1)
    if row < NODES:
        if tl.load(request + row) >= 0:
            _gather_row(target, target_shaping, target_records, candidates, row, row, block)
    elif drafter is not None:
        _gather_row(drafter, drafter_shaping, drafter_records, candidates, row - NODES, row, block)


@triton.jit(do_not_specialize=COUNTS)
def select(
    request, NODES, target, target_shaping, target_records,
    drafter, drafter_shaping, drafter_records, candidates, BLOCKS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Find the cuts: grid (rows of both,)."""
    row = tl.program_id(0)
    if row < NODES:
        if tl.load(request + row) >= 0:
            _select_row(target, target_shaping, target_records, candidates, row, row, BLOCKS, BITS)
    elif drafter is not None:
        _select_row(
            drafter, drafter_shaping, drafter_records, candidates, row - NODES, row, BLOCKS, BITS
        )


@triton.jit(do_not_specialize=COUNTS)
def total(
    request, NODES, target, target_shaping, target_records,
    drafter, drafter_shaping, drafter_records, GROUP: tl.constexpr,
):  # fmt: skip
    """Sum what is kept of blocks: grid (rows of both, parts of a row)."""
    row, part = tl.program_id(0), tl.program_id(1)
    if row < NODES:
        if tl.load(request + row) >= 0:
            _total_row(target, target_shaping, target_records, row, part, GROUP)
    elif drafter is not None:
        _total_row(drafter, drafter_shaping, drafter_records, row - NODES, part, GROUP)


@triton.jit(do_not_specialize=COUNTS)
def settle(
    request, NODES, target, target_shaping, target_records,
    drafter, drafter_shaping, drafter_records, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Describe what is kept: grid (rows of both,)."""
    row = tl.program_id(0)
    if row < NODES:
        if tl.load(request + row) >= 0:
            _settle_row(target, target_shaping, target_records, row, BLOCKS)
    elif drafter is not None:
        _settle_row(drafter, drafter_shaping, drafter_records, row - NODES, BLOCKS)
