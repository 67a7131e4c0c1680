"""What is tried on a device: as many pairs as the core's proof has, none forgotten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mtp_verify as mv
from mtp_verify.testing.device.cases import MODELS, PAIRS, REFUSED, Case, cases, few_cases
from mtp_verify.verifier.kernels.device.drafts import DeviceDrafts
from mtp_verify.verifier.kernels.device.verifier import DeviceVerifier

PROOF = Path(__file__).parents[4] / "docs" / "data" / "proof.json"


def test_pairs_are_those_of_the_proof():
    proven = {(row["rule"], row["law"]) for row in json.loads(PROOF.read_text())["rows"]}
    decided = {pair for pair in PAIRS if pair[0] != "greedy"}
    assert decided | set(REFUSED) == proven
    assert not decided & set(REFUSED)


@pytest.mark.parametrize("listed", [cases, few_cases])
def test_every_pair_has_a_case(listed):
    assert {(case.rule, case.law) for case in listed()} == PAIRS.keys()


@pytest.mark.parametrize(("rule", "law"), REFUSED)
def test_a_device_refuses_rules_of_several_paths(rule, law):
    verifier = DeviceVerifier(1, 2, 3, device="cpu")
    drafts = DeviceDrafts([0, 2], [-1, 0], [0, 1], law)
    with pytest.raises(mv.errors.RuleError, match="runs on the host alone") as caught:
        verifier.plan(drafts, rule=rule, seeds=[0], positions=[0])
    assert caught.value.slug == "not_supported"


def test_every_option_is_tried_on_both():
    for listed in (cases, few_cases):
        found = list(listed())
        assert any(case.forbidden for case in found)
        assert any(case.vocab for case in found)
        assert any(case.is_spread for case in found)
        assert any(case.has_noise and case.core != "coupled" for case in found)
        assert any(case.params.presence_penalty for case in found)
        assert any(case.params.top_p < 1 and case.is_logits for case in found)


def test_a_case_describes_itself():
    assert str(Case(MODELS[0], "token", "chain", (1, 1))) == "chain 1-1, alike"
    spread = Case(MODELS[4], "hu", "mixed", (2,), is_spread=True, forbidden=(1,))
    assert str(spread) == "mixed 2, leaning, masked, long rows"
