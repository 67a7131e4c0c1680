"""Weigh what the target's row of a node has left while its children are tested.

In weights, as the core has it (`src/verify/residual.rs`): ``max(u - factor v, 0)`` with the weights
u and v of target and drafter; v counts as 0 for tokens of the set S, and removed tokens weigh 0. S
and removed tokens are tokens of the node's children, so a block has few of them: they are noted as
bits, one for each stripe of a lane (`marks_of`), and tested only in blocks that hold one.
"""

# Kernels take the compiler's own values, which have no types that a checker knows.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from mtp_verify.verifier.kernels.device import layout
from mtp_verify.verifier.kernels.device.triton_.rows import (
    fold,
    opened,
    reached,
    weigh,
    weigh_reached,
)

__all__ = [
    "add_mark",
    "columns_of",
    "factor_of",
    "left_of",
    "marks_of",
    "no_marks",
    "sum_blocks",
    "weigh_drafted",
]

BLOCK = tl.constexpr(layout.BLOCK)
LANES = tl.constexpr(layout.LANES)
STRIPES = tl.constexpr(layout.BLOCK // layout.LANES)
# Stripes between two turns of a loop.
UNROLLED = tl.constexpr(8)
# Bits of a word of marks.
WORD = tl.constexpr(64)


@triton.jit
def left_of(whole, taken, factor):
    """Return max(whole - factor taken, 0) as float64; a difference rounds once."""
    left = tl.fma(-factor, taken.to(tl.float64), whole.to(tl.float64))
    return tl.where(left > 0.0, left, 0.0)


@triton.jit
def factor_of(taken, target_records, row, drafter_records, drafted):
    """Return b in weights: what is taken off for each unit of a drafter's weight; 0 if b is."""
    factor = taken * 0.0
    if drafter_records is not None:  # noqa: SIM102  # Decided by the compiler.
        if taken > 0.0:
            total = tl.load(target_records.total + row)
            factor = taken * (total / tl.load(drafter_records.total + drafted))
    return factor


@triton.jit
def columns_of(column, tokens, within):
    """Return the columns of tokens in the drafter's rows, -1 where there is none."""
    columns = tokens
    if column is not None:
        columns = tl.load(column + tokens, within, -1)
    return columns


@triton.jit
def weigh_drafted(drafter, drafter_records, column, drafted, tokens, within):
    """Return the weights of tokens in a drafter's row; 0 where not `within` or without a column."""
    columns = columns_of(column, tokens, within)
    own = within & (columns >= 0)
    return weigh(drafter, opened(drafter_records, drafted), drafted, columns, own)


@triton.jit
def no_marks(BLOCKS: tl.constexpr):
    """Return marks of blocks in which no token is marked: two words for each lane."""
    none = tl.zeros((BLOCKS, LANES), tl.int64)
    return none, none


@triton.jit
def add_mark(marks, blocks, token, is_marked):
    """Return the marks with a token's added, if it is one and lies in one of the blocks."""
    low, high = marks
    is_here = (blocks == token // BLOCK)[:, None] & (tl.arange(0, LANES) == token % LANES)[None, :]
    stripe = token % BLOCK // LANES
    bit = tl.full((), 1, tl.int64) << (stripe % WORD).to(tl.int64)
    low = tl.where(is_here & is_marked & (stripe < WORD), low | bit, low)
    high = tl.where(is_here & is_marked & (stripe >= WORD), high | bit, high)
    return low, high


@triton.jit
def marks_of(nodes, states, row, blocks):
    """Return the marks of a node's removed tokens, those of its set, and how many lie in blocks.

    The blocks follow one another. Of a sampled token that was rejected nothing is left but for
    rounding: it is marked so that the bits are the core's.
    """
    removed = no_marks(blocks.shape[0])
    untouched = no_marks(blocks.shape[0])
    first, last = tl.min(blocks, 0), tl.max(blocks, 0)
    count = 0
    child = tl.load(nodes.first_child + row)
    while child >= 0:
        token = tl.load(nodes.token + child)
        block = token // BLOCK
        if (block >= first) & (block <= last):
            is_removed = tl.load(states.gone + child) != 0
            is_in_set = tl.load(nodes.sampled + child) == 0
            removed = add_mark(removed, blocks, token, is_removed)
            untouched = add_mark(untouched, blocks, token, is_in_set)
            count += (is_removed | is_in_set).to(tl.int32)
        child = tl.load(nodes.next_sibling + child)
    return removed, untouched, count


@triton.jit
def _is_marked(marks, stripe):
    low, high = marks
    word = tl.where(stripe < WORD, low, high)
    return ((word >> (stripe % WORD)) & 1) != 0


@triton.jit
def sum_blocks(
    target, target_records, row, drafter, drafter_records, drafted, column, factor, blocks,
    removed, untouched, MARKED: tl.constexpr,
):  # fmt: skip
    """Return the sums of a residual's weights in some blocks, (BLOCKS,) float64.

    Args:
        target: Rows of which one is summed, and their records; any `Source` if nothing is taken.
        target_records: See `target`.
        row: Which.
        drafter: Rows of which a multiple is taken off; None for nothing.
        drafter_records: Their records.
        drafted: Which of them.
        column: Their columns of tokens, or None.
        factor: How much of it.
        blocks: (BLOCKS,) int32.
        removed: Marks of tokens that weigh 0.
        untouched: Marks of tokens from which nothing is taken.
        MARKED: Whether there may be marks.
    """
    place, target_row = reached(target, row), opened(target_records, row)
    lanes = tl.arange(0, LANES)
    first = blocks[:, None] * BLOCK + lanes[None, :]
    sums = tl.zeros((blocks.shape[0], LANES), tl.float64)
    if drafter is not None:
        drafter_place = reached(drafter, drafted)
        drafter_row = opened(drafter_records, drafted)
        # Nothing is read of a row of which nothing is taken.
        end = tl.where(factor > 0.0, target.width, 0)
    # Behind the end of a row are zeros, which change no sum.
    longest = target.width - tl.min(blocks, 0) * BLOCK
    for start in range(0, tl.minimum(tl.cdiv(longest, LANES), STRIPES), UNROLLED):
        for next_stripe in tl.static_range(UNROLLED):
            stripe = start + next_stripe
            tokens = first + stripe * LANES
            within = tokens < target.width
            if MARKED:
                within = within & ~_is_marked(removed, stripe)
            whole = weigh_reached(target, place, target_row, tokens, within)
            if drafter is None:
                sums += whole.to(tl.float64)
            else:
                takes = within & (tokens < end)
                if MARKED:
                    takes = takes & ~_is_marked(untouched, stripe)
                columns = columns_of(column, tokens, takes)
                takes = takes & (columns >= 0)
                taken = weigh_reached(drafter, drafter_place, drafter_row, columns, takes)
                sums += left_of(whole, taken, factor)
    return fold(sums)
