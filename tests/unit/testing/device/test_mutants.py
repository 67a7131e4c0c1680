"""Mistakes in the sources of device code: the right source holds where they show, they do not."""

from __future__ import annotations

import pytest

from mtp_verify.testing.device.backends import BACKENDS
from mtp_verify.testing.device.mutants import Mutant, mutated
from mtp_verify.testing.device.proof import Task, find
from mtp_verify.testing.device.torch_mutants import TORCH
from mtp_verify.testing.device.triton_mutants import TRITON

# The modules of what a step goes through.
STAGES = {
    "rows": {"rows", "drafter", "stats", "rest"},
    "shaping": {"shaping"},
    "rounds": {"rounds"},
    "residual": {"residual", "mass"},
    "draw": {"draw", "race"},
    "noise": {"noise"},
    "walk": {"walk"},
}


@pytest.mark.parametrize("mutant", TORCH, ids=lambda mutant: mutant.name)
def test_mistakes_in_the_source_are_found(mutant: Mutant) -> None:
    assert find(Task(BACKENDS[0], mutant.case, None)).holds
    assert not find(Task(BACKENDS[0], mutant.case, mutant)).holds


@pytest.mark.parametrize("mutants", [TORCH, TRITON], ids=["torch", "triton"])
def test_every_stage_has_mistakes(mutants: tuple[Mutant, ...]) -> None:
    names = [mutant.name for mutant in mutants]
    assert len(set(names)) == len(names)
    for modules in STAGES.values():
        assert sum(mutant.module in modules for mutant in mutants) >= 2, modules


def test_mistakes_are_made_in_both_sources() -> None:
    # Marks and sums that are kept are Triton's alone.
    own = {mutant.name for mutant in TRITON} - {mutant.name for mutant in TORCH}
    assert {mutant.name for mutant in TORCH} <= {mutant.name for mutant in TRITON}
    assert own == {
        "rows/exponents_of_blocks_ignored",
        "residual/set_not_marked",
        "residual/set_not_counted",
        "residual/touched_block_keeps_its_sum",
        "residual/others_are_as_in_the_target",
        "draw/set_taken_from",
    }


def test_a_mistake_that_no_longer_fits_is_refused() -> None:
    stale = TORCH[0]._replace(before="nothing of the kind")
    with pytest.raises(ValueError, match="is not once"), mutated(BACKENDS[0].package, stale):
        pass
