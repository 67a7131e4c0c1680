"""A step from rows to outcomes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtp_verify.verifier.kernels.device.layout import COUPLED
from mtp_verify.verifier.kernels.device.torch_.drafter import Drafter
from mtp_verify.verifier.kernels.device.torch_.draw import draw, race
from mtp_verify.verifier.kernels.device.torch_.noise import Noise
from mtp_verify.verifier.kernels.device.torch_.residual import Rows
from mtp_verify.verifier.kernels.device.torch_.rounds import settle
from mtp_verify.verifier.kernels.device.torch_.rows import Logits
from mtp_verify.verifier.kernels.device.torch_.shaping import shape
from mtp_verify.verifier.kernels.device.torch_.trees import tables
from mtp_verify.verifier.kernels.device.torch_.walk import follow, write

if TYPE_CHECKING:
    from mtp_verify.verifier.kernels.device.layout import Step
    from mtp_verify.verifier.kernels.device.torch_.workspace import Workspace

__all__ = ["run"]


def run(step: Step, workspace: Workspace) -> None:
    """Decide a step and write its outcomes."""
    trees = tables(step)
    # Rows that are not used may name any place.
    place = step.nodes.place.clamp(0, len(step.logits) - 1).long()
    logits = Logits(step.logits, place, step.shaping, step.edited)
    num_drafted = 1 if step.drafted is None else step.drafted.number
    rows = Rows(
        trees=trees,
        logits=logits,
        target=shape(logits, truncates=step.truncates, workspace=workspace),
        drafter=Drafter.of(step, workspace),
        drafted=step.nodes.drafted.clamp(0, num_drafted - 1).long(),
    )
    noise = Noise(step, trees.request, workspace.wide)
    u = noise.accepts()
    state = settle(step, rows, u, workspace)
    drawn = draw(step, rows, state, noise.samples())
    if step.races:
        winner = race(step, rows, noise, workspace)
        is_coupled = trees.core == COUPLED
        drawn = drawn._replace(
            token=torch.where(is_coupled, winner, drawn.token),
            edge=torch.where(is_coupled, torch.inf, drawn.edge),
        )
    write(step, rows, state, drawn, follow(step, rows, state, drawn, u))
