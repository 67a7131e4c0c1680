"""Run a step: its stages in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtp_verify.verifier.kernels.device.triton_ import race, shaping, stats, walk
from mtp_verify.verifier.kernels.device.triton_.rows import drafter_source, target_source
from mtp_verify.verifier.kernels.device.triton_.trees import decide_trees

if TYPE_CHECKING:
    from mtp_verify.verifier.kernels.device.layout import Step
    from mtp_verify.verifier.kernels.device.triton_.workspace import Workspace

__all__ = ["run"]


def run(step: Step, workspace: Workspace) -> None:
    """Decide a step into its outcomes; waits for nothing and allocates nothing.

    Args:
        step: Trees, rows and noise; only its outcomes are written.
        workspace: Of the step's capacity, on its device; nothing else may use it at a time.
    """
    target, drafter = target_source(step), drafter_source(step)
    stats.summarise(step, workspace, target, drafter)
    if step.truncates:
        shaping.shape(step, workspace)
    decide_trees(step, workspace, target, drafter)
    if step.races:
        race.run_races(step, workspace, target)
    walk.write_outcomes(step, workspace, target)
