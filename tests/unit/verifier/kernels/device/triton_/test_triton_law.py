"""The law of the kernels by enumeration, in the interpreter, and mistakes that it finds."""

from __future__ import annotations

import pytest

from mtp_verify.testing import device_law
from mtp_verify.testing.device_law import MODELS, Case, find_law
from mtp_verify.testing.device_mutants import TRITON, Mutant, mutated
from mtp_verify.verifier.kernels.device.triton_ import Workspace, run
from tests.unit.verifier.kernels.device.triton_.conftest import PACKAGE, enlarge_programs

# Some of those of `device_law`, on which the interpreter takes seconds.
CASES = (
    Case(MODELS[0], "lifted", "chain", (1, 1), is_logits=True),
    Case(MODELS[0], "topdown", "swor", (2,)),
    Case(MODELS[1], "topdown", "top_plus_one", (3,), is_logits=True),
    Case(MODELS[2], "lifted", "mixed", (2, 1)),
)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    # A program that decides a tree has a lane for each node of its step.
    monkeypatch.setattr(device_law, "_BATCH", 16)


def assert_law_of(case: Case) -> None:
    found = find_law(case, run, Workspace)
    assert found.holds, (found.distance, found.left_out, found.mistakes[:3])


def test_steps_have_the_target_s_law() -> None:
    assert_law_of(Case(MODELS[0], "lifted", "chain", (1,)))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.rule}-{case.law}")
def test_more_steps_have_the_target_s_law(case: Case) -> None:
    assert_law_of(case)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutant", TRITON, ids=lambda mutant: mutant.name)
def test_mistakes_in_the_kernels_are_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_law(mutant.case, run, Workspace, asks_ends=False).holds
    with mutated(PACKAGE, mutant) as module:
        enlarge_programs(module.__name__, monkeypatch)
        found = find_law(mutant.case, module.run, module.Workspace, asks_ends=False)
    assert not found.holds
