"""The law of device code by enumeration: what holds, and what is found."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from mtp_verify.testing.device.cases import MODELS, PAIRS, Case, cases
from mtp_verify.testing.device.law import find_law
from mtp_verify.verifier.kernels.device.torch_ import Workspace, run
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from mtp_verify.testing.device.law import Finding
    from mtp_verify.verifier.words import Law, RuleName


def assert_holds(found: Finding) -> None:
    assert found.holds, (found.distance, found.left_out, found.mistakes[:3])


@pytest.mark.parametrize(("rule", "law"), PAIRS)
def test_steps_in_torch_operators_have_the_target_s_law(rule: RuleName, law: Law) -> None:
    params = SamplingParams(temperature=0 if rule == "greedy" else 1)
    for number, shape in enumerate(PAIRS[rule, law][:2]):
        for is_logits in (False, True):
            case = Case(
                MODELS[number], rule, law, shape, params, is_logits, has_noise=rule == "coupled"
            )
            found = find_law(case, run, Workspace)
            assert_holds(found)
            assert found.asked > found.cells > found.drafts - 1
            if rule == "greedy":
                assert found.cells == found.drafts
                assert found.distance == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_cases_have_the_target_s_law() -> None:
    for case in cases():
        assert_holds(find_law(case, run, Workspace))


def test_middles_alone_give_the_law_too() -> None:
    case = Case(MODELS[0], "token", "chain", (1, 1))
    found = find_law(case, run, Workspace, asks="middle")
    assert_holds(found)
    assert found.asked == found.cells
    assert not dataclasses.replace(found, distance=1e-9).holds


def test_what_no_position_decides_is_left_out() -> None:
    case = Case(MODELS[3], "coupled", "chain", (1, 1), has_noise=True)
    found = find_law(case, run, Workspace, asks="middle")
    assert not found.mistakes
    assert found.left_out > 1e-12
    assert found.distance == pytest.approx(found.left_out / 2, rel=1e-6)
    assert not found.holds
