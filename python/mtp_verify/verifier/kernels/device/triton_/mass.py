"""Sum what rejections leave: the blocks of the residual of each node that waits for its mass."""

# Kernels take the compiler's own values, which have no types that a checker knows.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from mtp_verify.verifier.kernels.device import layout
from mtp_verify.verifier.kernels.device.triton_.residual import (
    factor_of,
    marks_of,
    sum_blocks,
)
from mtp_verify.verifier.kernels.device.triton_.rounds import ALL, TOUCHED_OF_TARGET

__all__ = ["renew"]

BLOCK = tl.constexpr(layout.BLOCK)


@triton.jit
def _renew(
    nodes,
    target,
    target_records,
    drafter,
    drafter_records,
    column,
    states,
    row,
    part,
    job,
    GROUP: tl.constexpr,
):
    count = tl.cdiv(target.width, BLOCK)
    blocks = part * GROUP + tl.arange(0, GROUP)
    removed, untouched, marked = marks_of(nodes, states, row, blocks)
    at = row.to(tl.int64) * count + blocks
    taken = tl.load(states.taken + row)
    drafted = tl.load(nodes.drafted + row)
    factor = factor_of(taken, target_records, row, drafter_records, drafted)
    if (job != ALL) & (marked == 0):
        if job == TOUCHED_OF_TARGET:
            sums = tl.load(target_records.sums + at, blocks < count, 0.0)
            tl.store(states.residual_sums + at, sums, blocks < count)
    elif marked == 0:
        sums = sum_blocks(
            target, target_records, row, drafter, drafter_records, drafted, column, factor,
            blocks, removed, untouched, MARKED=False,
        )  # fmt: skip
        tl.store(states.residual_sums + at, sums, blocks < count)
    else:
        sums = sum_blocks(
            target, target_records, row, drafter, drafter_records, drafted, column, factor,
            blocks, removed, untouched, MARKED=True,
        )  # fmt: skip
        if job == TOUCHED_OF_TARGET:
            # The target's own sums hold for the blocks of which nothing is removed.
            low, high = removed
            is_touched = tl.max(((low | high) != 0).to(tl.int32), 1) > 0
            known = tl.load(target_records.sums + at, blocks < count, 0.0)
            sums = tl.where(is_touched, sums, known)
        tl.store(states.residual_sums + at, sums, blocks < count)


@triton.jit
def renew(
    nodes, target, target_records, drafter, drafter_records, column, states, tests,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Renew the sums of residuals' blocks where `rounds` asks for it: grid (R, parts of a row).

    The sum of a block depends on the residual alone, so GROUP, the blocks of a program, changes no
    bit.
    """
    row = tl.program_id(0)
    if tl.load(nodes.request + row) >= 0:
        job = tl.load(tests.job + row)
        if job != 0:
            _renew(
                nodes, target, target_records, drafter, drafter_records, column, states, row,
                tl.program_id(1), job, GROUP,
            )  # fmt: skip
