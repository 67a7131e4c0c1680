"""The law of the kernels by enumeration, in the interpreter, and mistakes that it finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mtp_verify.testing.device.backends import BACKENDS
from mtp_verify.testing.device.cases import MODELS, Case, few_cases
from mtp_verify.testing.device.proof import Task, find
from mtp_verify.testing.device.triton_mutants import TRITON

if TYPE_CHECKING:
    from mtp_verify.testing.device.mutants import Mutant

_, BACKEND = BACKENDS


def assert_law_of(case: Case) -> None:
    found = find(Task(BACKEND, case, None))
    assert found.holds, (found.distance, found.left_out, found.mistakes[:3])


def test_steps_have_the_target_s_law() -> None:
    assert_law_of(Case(MODELS[0], "block", "chain", (1,)))


def test_a_mistake_is_found() -> None:
    mutant = next(mutant for mutant in TRITON if mutant.name == "shaping/top_p_ignored")
    assert not find(Task(BACKEND, mutant.case, mutant)).holds


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", list(few_cases()), ids=lambda case: f"{case.rule} on {case}")
def test_more_steps_have_the_target_s_law(case: Case) -> None:
    assert_law_of(case)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutant", TRITON, ids=lambda mutant: mutant.name)
def test_mistakes_in_the_kernels_are_found(mutant: Mutant) -> None:
    assert_law_of(mutant.case)
    assert not find(Task(BACKEND, mutant.case, mutant)).holds
