"""Find where a row is cut, by how many tokens or how much mass lies above; nothing is ever sorted.

Tokens stand in one order without ties: by their logits, and of equal logits the lowest token is the
highest. A place in it is an int64 (`order_of`), so that a search halves a range of whole numbers.
Masses are whole numbers too, of 2**-60: their sums have no order, hence no rounding of their own.
"""

# Kernels take the compiler's own values, which have no types that a checker knows.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from mtp_verify.verifier.kernels.device.triton_ import workspace
from mtp_verify.verifier.kernels.device.triton_.rows import (
    ceiling_of,
    floor_of,
    scaled,
    weight,
)

__all__ = [
    "UNITS",
    "append",
    "crossing",
    "end_of",
    "find",
    "kept",
    "key_of",
    "logit_of",
    "mass_of",
    "order_of",
]

ROOM = tl.constexpr(workspace.ROOM)
# Masses are whole numbers of 1 / UNITS.
UNITS = tl.constexpr(2.0**60)
# Tokens that a pass over a row takes at a time, and ranges into which it divides what is left.
TILE = tl.constexpr(2048)
PIVOTS = tl.constexpr(4)


@triton.jit
def key_of(y):
    """Return int32 whose order is that of float32 logits; 0 and -0 are the same logit."""
    bits = tl.where(y == 0.0, 0.0, y).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def logit_of(key):
    """Return the logit of a key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def order_of(y, tokens, BITS: tl.constexpr):
    """Return the places of tokens, all of them below 2**BITS."""
    return (key_of(y).to(tl.int64) << BITS) | ((1 << BITS) - 1 - tokens)


@triton.jit
def end_of(order, BITS: tl.constexpr):
    """Return the logit of a place, and the token behind its own: a cut, and where its ties end."""
    token = (1 << BITS) - 1 - (order & ((1 << BITS) - 1))
    return logit_of((order >> BITS).to(tl.int32)), token.to(tl.int32) + 1


@triton.jit
def mass_of(total):
    """Return a weight of less than 8, or a sum of them, as a mass."""
    return (total.to(tl.float64) * UNITS).to(tl.int64)


@triton.jit
def _parts(low, high):
    """Return places that divide low..high into equal parts; all above `low`."""
    step = tl.maximum((high - low) // (PIVOTS + 1), 1)
    return tl.minimum(low + step * (tl.arange(0, PIVOTS) + 1), high)


@triton.jit
def _between(pivots, reaches, low, high):
    """Return the range in which the crossing is, given from which pivots the goal is reached."""
    low = tl.max(tl.where(reaches, pivots, low), 0)
    return low, tl.min(tl.where(reaches, high, pivots - 1), 0)


@triton.jit
def crossing(order, measure, low, high, goal):
    """Return the highest place in low..high from which measures reach a goal, `low` if none.

    Args:
        order: (1, N) int64, places.
        measure: (1, N) int64, what is summed.
        low: int64.
        high: int64.
        goal: int64.
    """
    while low < high:
        pivots = _parts(low, high)
        sums = tl.sum(tl.where(order >= pivots[:, None], measure, 0), 1)
        low, high = _between(pivots, sums >= goal, low, high)
    return low


@triton.jit
def append(candidates, at, tokens, is_in):
    """Append tokens to a row's list, in any order; those without room are counted alone."""
    found = tl.sum(is_in.to(tl.int32), 0)
    if found > 0:
        first = tl.atomic_add(candidates.found + at, found)
        place = first + tl.cumsum(is_in.to(tl.int32), 0) - 1
        to = candidates.tokens + at.to(tl.int64) * ROOM + place
        tl.store(to, tokens, is_in & (place < ROOM))


@triton.jit
def _read(source, records, row, tokens, within, BITS: tl.constexpr):
    """Return the places and masses of tokens; the lowest place and 0 where not `within`."""
    y = scaled(source, row, tokens, within) - tl.load(records.origin + row)
    exponent = tl.load(records.exponent + row)
    w = weight(y, exponent, ceiling_of(exponent), floor_of(exponent))
    return order_of(y, tokens, BITS), mass_of(w)


@triton.jit
def _listed(source, records, candidates, row, at, count, BITS: tl.constexpr):
    """Return the places and masses of a row's list, (1, ROOM) each."""
    places = tl.arange(0, ROOM)[None, :]
    within = places < count
    tokens = tl.load(candidates.tokens + at.to(tl.int64) * ROOM + places, within, 0)
    return _read(source, records, row, tokens, within, BITS)


@triton.jit
def _tally(source, records, row, pivots, BITS: tl.constexpr):
    """Return how many tokens are not below each pivot, and their masses: a pass over the row."""
    counts = tl.zeros((PIVOTS, TILE), tl.int32)
    masses = tl.zeros((PIVOTS, TILE), tl.int64)
    for start in range(0, source.width, TILE):
        tokens = start + tl.arange(0, TILE)[None, :]
        order, mass = _read(source, records, row, tokens, tokens < source.width, BITS)
        is_in = (order >= pivots[:, None]) & (tokens < source.width)
        counts += is_in.to(tl.int32)
        masses += tl.where(is_in, mass, 0)
    return tl.sum(counts, 1), tl.sum(masses, 1)


@triton.jit
def _pivots(low, high, BITS: tl.constexpr):
    """Return places that divide low..high, by logits while it has several; all above `low`."""
    pivots = _parts(low, high)
    first, last = (low >> BITS).to(tl.int32), (high >> BITS).to(tl.int32)
    if first < last:
        bottom, top = logit_of(first), logit_of(last)
        share = (tl.arange(0, PIVOTS) + 1).to(tl.float32) * (1.0 / (PIVOTS + 1))
        key = tl.minimum(tl.maximum(key_of(bottom + (top - bottom) * share), first + 1), last)
        pivots = key.to(tl.int64) << BITS
    return pivots


@triton.jit
def _narrow(
    source, records, row, low, high, count, goal, BY_MASS: tl.constexpr, BITS: tl.constexpr
):
    """Narrow low..high down to a range around the crossing for whose tokens a list has room.

    Returns:
        The range, how many tokens it holds, and the measure above it.
    """
    holds, beyond, above = count, tl.zeros_like(count), tl.zeros_like(goal)
    while holds - beyond > ROOM:
        pivots = _pivots(low, high, BITS)
        counts, masses = _tally(source, records, row, pivots, BITS)
        measures = masses if BY_MASS else counts.to(tl.int64)
        reaches = measures >= goal
        low, high = _between(pivots, reaches, low, high)
        holds = tl.min(tl.where(reaches, counts, holds), 0)
        beyond = tl.max(tl.where(reaches, beyond, counts), 0)
        above = tl.max(tl.where(reaches, above, measures), 0)
    return low, high, holds - beyond, above


@triton.jit
def _collect(source, records, candidates, row, at, low, high, BITS: tl.constexpr):
    """Make the row's list that of the tokens in low..high."""
    tl.debug_barrier()
    tl.store(candidates.found + at, 0)
    tl.debug_barrier()
    for start in range(0, source.width, TILE):
        tokens = start + tl.arange(0, TILE)
        within = tokens < source.width
        order, _ = _read(source, records, row, tokens, within, BITS)
        append(candidates, at, tokens, within & (order >= low) & (order <= high))
    tl.debug_barrier()


@triton.jit
def find(
    source, records, candidates, row, at, low, high, count, is_listed, goal,
    BY_MASS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Return the highest place in low..high from which tokens reach a goal, `low` if there is none.

    Args:
        source: Rows.
        records: With the origin and the exponent of the row.
        candidates: Lists.
        row: Which row.
        at: Which list.
        low: A place.
        high: A place that no token is above.
        count: How many tokens are not below `low`.
        is_listed: Whether the list holds them all.
        goal: int64, a mass or a number of tokens.
        BY_MASS: Which of both.
        BITS: Tokens are below 2**BITS.
    """
    above = tl.zeros_like(goal)
    size = tl.load(candidates.found + at)
    if not is_listed:
        low, high, size, above = _narrow(
            source, records, row, low, high, count, goal, BY_MASS, BITS
        )
        _collect(source, records, candidates, row, at, low, high, BITS)
    order, mass = _listed(source, records, candidates, row, at, size, BITS)
    measure = mass if BY_MASS else tl.full((1, ROOM), 1, tl.int64)
    return crossing(order, measure, low, high, goal - above)


@triton.jit
def kept(source, records, candidates, row, at, low, is_listed, BITS: tl.constexpr):
    """Return how many tokens are not below a place, and their mass."""
    if is_listed:
        size = tl.load(candidates.found + at)
        order, mass = _listed(source, records, candidates, row, at, size, BITS)
        is_kept = order >= low
        return tl.sum(is_kept.to(tl.int32)), tl.sum(tl.where(is_kept, mass, 0))
    else:
        pivots = low + tl.zeros((PIVOTS,), tl.int64)
        counts, masses = _tally(source, records, row, pivots, BITS)
        return tl.max(counts, 0), tl.max(masses, 0)
