"""Look every child up: its probabilities under target and drafter, and the mass it was drawn from.

A sampled child was drawn from the drafter's row outside the set S and, without replacement, its
earlier sampled siblings. What the drafter's row has there is summed, never taken from 1: blocks
without such a token have the sums that they have, the others are summed anew.
"""

# Kernels take the compiler's own values, which have no types that a checker knows.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from mtp_verify.verifier.kernels.device import layout
from mtp_verify.verifier.kernels.device.triton_.residual import (
    add_mark,
    columns_of,
    no_marks,
    sum_blocks,
    weigh_drafted,
)
from mtp_verify.verifier.kernels.device.triton_.rows import fold, weights

__all__ = ["look_up"]

BLOCK = tl.constexpr(layout.BLOCK)
TOPDOWN = tl.constexpr(layout.TOPDOWN)
NOT_NORMALISED = tl.constexpr(layout.NOT_NORMALISED)
ZERO_DRAFT = tl.constexpr(layout.ZERO_DRAFT)
# Blocks that are summed anew side by side.
TOGETHER = tl.constexpr(8)
# How far a row of probabilities may be from summing to 1 (`src/verify/drafted.rs`).
SUM_TOLERANCE = tl.constexpr(1e-2)


@triton.jit
def _left_out(nodes, column, sibling, is_earlier, without, has_set):
    """Return the column that a child was drawn outside of because of a sibling, or -1."""
    is_sampled = tl.load(nodes.sampled + sibling) != 0
    is_out = tl.where(is_sampled, is_earlier & (without != 0), has_set != 0)
    return tl.where(is_out, columns_of(column, tl.load(nodes.token + sibling), is_out), -1)


@triton.jit
def _sum_rest(
    nodes,
    drafter,
    drafter_records,
    column,
    row,
    drafted,
    without,
    has_set,
    BLOCKS: tl.constexpr,
):
    """Return the sum of the weights that a child was drawn from."""
    children = tl.load(nodes.first_child + tl.load(nodes.parent + row))
    places = tl.arange(0, TOGETHER)
    blocks = tl.arange(0, BLOCKS)
    width = tl.cdiv(drafter.width, BLOCK)
    sums = tl.load(drafter_records.sums + drafted * width + blocks, blocks < width, 0.0)
    start, end = 0, 1
    while start < end:
        # The blocks of the next tokens that are left out, and all such tokens in them.
        # Places without one are behind the end of the row, where nothing is read.
        touched = tl.zeros((TOGETHER,), tl.int32) + width
        found = 0
        is_earlier = children != row
        sibling = children
        while sibling >= 0:
            is_earlier = is_earlier & (sibling != row)
            at = _left_out(nodes, column, sibling, is_earlier, without, has_set)
            touched = tl.where((places == found - start) & (at >= 0), at // BLOCK, touched)
            found += (at >= 0).to(tl.int32)
            sibling = tl.load(nodes.next_sibling + sibling)
        end = found
        if start < end:
            marks = no_marks(TOGETHER)
            is_earlier = children != row
            sibling = children
            while sibling >= 0:
                is_earlier = is_earlier & (sibling != row)
                at = _left_out(nodes, column, sibling, is_earlier, without, has_set)
                marks = add_mark(marks, touched, at, at >= 0)
                sibling = tl.load(nodes.next_sibling + sibling)
            anew = sum_blocks(
                drafter, drafter_records, drafted, None, None, drafted, None, 0.0,
                touched, marks, marks, MARKED=True,
            )  # fmt: skip
            # A block that two tokens touch is summed twice alike.
            for place in range(tl.minimum(end - start, TOGETHER)):
                block = tl.sum(tl.where(places == place, touched, 0), 0)
                own = tl.sum(tl.where(places == place, anew, 0.0), 0)
                sums = tl.where(blocks == block, own, sums)
        start += TOGETHER
    return tl.sum(fold(sums[None, :]), 0)


@triton.jit
def _drafted_fault(nodes, drafter, drafter_records, node, drafted):
    """Return the status of the drafter's row of a node, if its children are tested."""
    fault = tl.load(drafter_records.status + drafted)
    if drafter.temperature is None:
        total = tl.load(drafter_records.total + drafted)
        # Only the row after the root is sure to be read whatever chance says.
        is_off = (tl.load(nodes.parent + node) < 0) & (tl.abs(total - 1.0) > SUM_TOLERANCE)
        fault = tl.where((fault == 0) & is_off, NOT_NORMALISED, fault)
    return fault


@triton.jit
def _look_up(
    nodes,
    requests,
    target,
    target_records,
    drafter,
    drafter_records,
    column,
    tests,
    row,
    BLOCKS: tl.constexpr,
):
    node = tl.load(nodes.parent + row)
    token = tl.load(nodes.token + row)
    is_sampled = tl.load(nodes.sampled + row) != 0
    fault = tl.load(target_records.status + node)
    whole = weights(target, target_records, node, token, token >= 0).to(tl.float64)
    tl.store(tests.p + row, whole / tl.load(target_records.total + node))
    if drafter is not None:  # noqa: SIM102  # Decided by the compiler.
        if is_sampled:
            drafted = tl.load(nodes.drafted + node)
            own = weigh_drafted(drafter, drafter_records, column, drafted, token, token >= 0)
            q = own.to(tl.float64) / tl.load(drafter_records.total + drafted)
            found = _drafted_fault(nodes, drafter, drafter_records, node, drafted)
            found = tl.where((found == 0) & ~(q > 0.0), ZERO_DRAFT, found)
            fault = tl.where(fault == 0, found, fault)
            request = tl.load(nodes.request + row)
            without = tl.load(requests.without + request)
            has_set = tl.load(requests.has_set + request)
            rest = tl.full((), 1.0, tl.float64)
            if (without | has_set) != 0:
                rest = _sum_rest(
                    nodes, drafter, drafter_records, column, row, drafted, without, has_set,
                    BLOCKS,
                ) / tl.load(drafter_records.total + drafted)  # fmt: skip
            tl.store(tests.q + row, q)
            tl.store(tests.rest + row, rest)
    tl.store(tests.fault + row, fault)


@triton.jit
def look_up(
    nodes, requests, target, target_records, drafter, drafter_records, column, tests,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """Write what is known of each child of requests that test children: grid (R,).

    BLOCKS is a power of two that the blocks of a drafter's row do not exceed.
    """
    row = tl.program_id(0)
    request = tl.load(nodes.request + row)
    tests_children = tl.load(requests.core + request, request >= 0, 0) >= TOPDOWN
    if tests_children & (tl.load(nodes.parent + row) >= 0):
        _look_up(
            nodes, requests, target, target_records, drafter, drafter_records, column, tests, row,
            BLOCKS,
        )  # fmt: skip
