"""Draw the token after each node that wants one: a block by its sum, a token by its weight.

A point is a number in [0, 1) times the residual's total. The core adds weights one after the other,
here prefix sums are scans: the same token but where the point is as near to a cell's edge as
roundings are, and how near it was is noted.
"""

# Kernels take the compiler's own values, which have no types that a checker knows.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from mtp_verify.verifier.kernels.device import layout
from mtp_verify.verifier.kernels.device.triton_.noise import SAMPLE, uniform
from mtp_verify.verifier.kernels.device.triton_.residual import (
    factor_of,
    left_of,
    marks_of,
    sum_blocks,
    weigh_drafted,
)
from mtp_verify.verifier.kernels.device.triton_.rows import fold, weights

__all__ = ["draw"]

BLOCK = tl.constexpr(layout.BLOCK)
COUPLED = tl.constexpr(layout.COUPLED)


@triton.jit
def _number_of(nodes, requests, given, row):
    """Return the number in [0, 1) by which a token is drawn after a node."""
    if given is not None:
        return tl.load(given + 2 * row + 1)
    else:
        request = tl.load(nodes.request + row)
        seed = tl.load(requests.seed + request)
        position = tl.load(requests.position + request)
        return uniform(seed, position, tl.load(nodes.number + row), SAMPLE)


@triton.jit
def _sums_without(nodes, target, target_records, states, row, sums):
    """Return the sums of the blocks of the target's row without a node's removed tokens."""
    blocks = tl.arange(0, sums.shape[0])
    child = tl.load(nodes.first_child + row)
    while child >= 0:
        if tl.load(states.gone + child) != 0:
            block = tl.load(nodes.token + child) // BLOCK
            own = block + tl.zeros((1,), tl.int32)
            removed, _, _ = marks_of(nodes, states, row, own)
            anew = sum_blocks(
                target, target_records, row, None, None, row, None, 0.0,
                own, removed, removed, MARKED=True,
            )  # fmt: skip
            sums = tl.where(blocks == block, tl.sum(anew, 0), sums)
        child = tl.load(nodes.next_sibling + child)
    return sums


@triton.jit
def _block_of(sums, blocks, point):
    """Return the block in which a point lies, or the last positive one, and the sum before it."""
    ends = tl.cumsum(sums, 0)
    lies = (sums > 0.0) & (point < ends)
    found = tl.min(tl.where(lies, blocks, sums.shape[0]), 0)
    last = tl.max(tl.where(sums > 0.0, blocks, 0), 0)
    found = tl.where(found < sums.shape[0], found, last)
    before = tl.sum(tl.where(blocks == found - 1, ends, 0.0), 0)
    return found, before


@triton.jit
def _weights_in(
    nodes,
    target,
    target_records,
    drafter,
    drafter_records,
    column,
    states,
    row,
    factor,
    removes,
    block,
):
    """Return a block's tokens and their weights in the residual of a node."""
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    within = tokens < target.width
    left = weights(target, target_records, row, tokens, within).to(tl.float64)
    if drafter is not None:  # noqa: SIM102  # Decided by the compiler.
        if factor > 0.0:
            drafted = tl.load(nodes.drafted + row)
            taken = weigh_drafted(drafter, drafter_records, column, drafted, tokens, within)
            child = tl.load(nodes.first_child + row)
            while child >= 0:
                is_in_set = tl.load(nodes.sampled + child) == 0
                own = (tokens == tl.load(nodes.token + child)) & is_in_set
                taken = tl.where(own, 0.0, taken)
                child = tl.load(nodes.next_sibling + child)
            left = left_of(left, taken, factor)
    if removes:
        child = tl.load(nodes.first_child + row)
        while child >= 0:
            is_gone = tl.load(states.gone + child) != 0
            own = (tokens == tl.load(nodes.token + child)) & is_gone
            left = tl.where(own, 0.0, left)
            child = tl.load(nodes.next_sibling + child)
    return tokens, left


@triton.jit
def _token_of(tokens, left, before, point):
    """Return the token in whose cell a point lies, and how near its edge is; -1 if none has weight.

    On overrun it is the last token of positive weight.
    """
    ends = before + tl.cumsum(left, 0)
    none: tl.constexpr = 0x7FFFFFFF
    found = tl.min(tl.where((left > 0.0) & (point < ends), tokens, none), 0)
    last = tl.max(tl.where(left > 0.0, tokens, -1), 0)
    found = tl.where(found < none, found, last)
    is_found = tokens == found
    end = tl.sum(tl.where(is_found, ends, 0.0), 0)
    width = tl.sum(tl.where(is_found, left, 0.0), 0)
    return found, tl.minimum(tl.abs(end - point), tl.abs(point - (end - width)))


@triton.jit
def _draw(
    nodes,
    requests,
    given,
    target,
    target_records,
    drafter,
    drafter_records,
    column,
    states,
    tests,
    row,
    WIDTH: tl.constexpr,
):
    count = tl.cdiv(target.width, BLOCK)
    blocks = tl.arange(0, WIDTH)
    at = row.to(tl.int64) * count + blocks
    removes = tl.load(tests.summed + row) != 0
    taken = tl.load(states.taken + row)
    unit = 1.0 / tl.load(target_records.total + row)
    sums = tl.load(target_records.sums + at, blocks < count, 0.0)
    fell_back = 0
    if removes:
        known = sums
        sums = tl.load(states.residual_sums + at, blocks < count, 0.0)
        total = tl.sum(fold(sums[None, :]), 0) * unit
        if total <= 0.0:
            # Exactly, a rejection leaves mass. If rounding took it, target and drafter are equal up
            # to rounding, and the target's row without the rejected tokens is the closest law there
            # is.
            fell_back += 1
            taken = taken * 0.0
            sums = _sums_without(nodes, target, target_records, states, row, known)
            total = tl.sum(fold(sums[None, :]), 0) * unit
            if total <= 0.0:
                removes = removes & False
                sums = known
    drafted = tl.load(nodes.drafted + row)
    factor = factor_of(taken, target_records, row, drafter_records, drafted)
    whole = tl.sum(fold(sums[None, :]), 0)
    point = _number_of(nodes, requests, given, row) * (whole * unit) / unit
    block, before = _block_of(sums, blocks, point)
    tokens, left = _weights_in(
        nodes, target, target_records, drafter, drafter_records, column, states, row, factor,
        removes, block,
    )  # fmt: skip
    token, edge = _token_of(tokens, left, before, point)
    if token < 0:
        # A block may have a sum (below 2**-100) and no token above the row's cut: the next token of
        # positive weight, or else the first one.
        edge = edge * 0.0
        for turn in range(2 * count):
            other = turn - count * (turn >= count).to(tl.int32)
            if (token < 0) & ((turn > block) | (turn >= count)):
                tokens, left = _weights_in(
                    nodes, target, target_records, drafter, drafter_records, column, states, row,
                    factor, removes, other,
                )  # fmt: skip
                first = tl.min(tl.where(left > 0.0, tokens, 0x7FFFFFFF), 0)
                token = tl.where(first < 0x7FFFFFFF, first, -1)
    tl.store(states.drawn + row, token)
    tl.store(states.edge + row, edge / whole)
    tl.store(states.fell_back + row, fell_back)


@triton.jit
def draw(
    nodes, requests, given, target, target_records, drafter, drafter_records, column, states,
    tests, WIDTH: tl.constexpr,
):  # fmt: skip
    """Draw after all nodes that want a token: grid (R,).

    WIDTH is a power of two that the blocks of a row do not exceed.
    """
    row = tl.program_id(0)
    if tl.load(nodes.request + row) >= 0:
        wants = tl.load(states.wants + row) != 0
        if wants & (tl.load(target_records.status + row) == 0):
            _draw(
                nodes, requests, given, target, target_records, drafter, drafter_records, column,
                states, tests, row, WIDTH,
            )  # fmt: skip
