"""Decide the trees of a step, and draw what they want: launches in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from triton import cdiv, next_power_of_2

from mtp_verify.verifier.kernels.device.layout import BLOCK
from mtp_verify.verifier.kernels.device.triton_ import draw, mass, rest, rounds
from mtp_verify.verifier.kernels.device.triton_.rows import OPTIONS

if TYPE_CHECKING:
    from mtp_verify.verifier.kernels.device.layout import Step
    from mtp_verify.verifier.kernels.device.triton_.rows import Source
    from mtp_verify.verifier.kernels.device.triton_.workspace import Workspace

__all__ = ["decide_trees"]

# Blocks of a row that one program of `mass` sums, and sums that a warp of `rounds` folds at a time:
# no bit depends on them. A lane of a block adds 128 values one after the other, so groups are
# small.
GROUP = 4
FOLDED = 512


def decide_trees(step: Step, workspace: Workspace, target: Source, drafter: Source | None) -> None:
    """Decide where trees stop, and draw tokens; the records of rows are known.

    Args:
        step: Trees, rows and noise.
        workspace: Of the step's capacity.
        target: The target's rows.
        drafter: The drafter's rows, or None.
    """
    nodes, requests, capacity = step.nodes, step.requests, step.capacity
    target_records, states, tests = workspace.target, workspace.states, workspace.tests
    drafter_records = None if drafter is None else workspace.drafter
    column = None if step.drafted is None else step.drafted.column
    blocks = cdiv(capacity.vocab, BLOCK)
    width = next_power_of_2(blocks)
    lanes = next_power_of_2(capacity.nodes)
    warps = min(max(1, lanes // 32), 16)
    if capacity.rounds > 0:
        rest.look_up[capacity.rows,](
            nodes, requests, target, target_records, drafter, drafter_records, column, tests,
            BLOCKS=next_power_of_2(max(1, cdiv(capacity.columns, BLOCK))),
            num_warps=4, **OPTIONS,
        )  # fmt: skip
    for turn in range(capacity.rounds + 1):
        if turn > 0:
            mass.renew[capacity.rows, cdiv(blocks, GROUP)](
                nodes, target, target_records, drafter, drafter_records, column, states, tests,
                GROUP=GROUP, num_warps=1, **OPTIONS,
            )  # fmt: skip
        rounds.decide[capacity.requests,](
            nodes, requests, step.given, target_records, states, tests, workspace.stops,
            FIRST=turn == 0, LANES=lanes, BLOCKS=blocks, WIDTH=width,
            FOLDED=min(lanes, max(1, FOLDED * warps // width)), num_warps=warps, **OPTIONS,
        )  # fmt: skip
    draw.draw[capacity.rows,](
        nodes, requests, step.given, target, target_records, drafter, drafter_records, column,
        states, tests, WIDTH=width, num_warps=8, **OPTIONS,
    )  # fmt: skip
