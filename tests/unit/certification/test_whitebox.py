from __future__ import annotations

import json

import pytest

import mtp_verify as mv
from mtp_verify.certification import accept_report, certify_accept
from mtp_verify.testing import mutants

# K = 1 on the two-token model, (1/3, 2/3) against (2/3, 1/3).
RESIDUAL_IS_P = 1 / 9


@pytest.mark.parametrize("mistake", mutants.ACCEPTS)
def test_the_right_function_passes_and_mutants_are_found(mistake):
    found = certify_accept(mutants.accept(mistake), num_drafts=1 + (mistake == "shared_uniform"))
    assert found.verdict == ("pass" if mistake == "none" else "biased")
    assert found.is_sound


def test_total_variation_is_exact():
    found = certify_accept(mutants.accept("residual_is_p"), num_drafts=1)
    assert found.distances["two tokens, K=1"] == pytest.approx(RESIDUAL_IS_P, abs=1e-8)


def test_equality_at_zero_is_found_by_the_edge_cases_alone():
    found = certify_accept(mutants.accept("le_at_zero"), num_drafts=1)
    assert max(found.distances.values()) < 1e-8
    assert {e.name for e in found.edges if e.problem} == {
        "u = 0, target probability 0",
        "u = 0, last uniform 0",
    }


def test_a_function_that_raises_is_reported():
    right = mutants.accept()

    def accept(p, q, tokens, uniforms):
        if q.max() == 1:
            raise ZeroDivisionError("no residual")
        return right(p, q, tokens, uniforms)

    found = certify_accept(accept, num_drafts=1)
    assert any("no residual" in edge.found for edge in found.edges)
    made = accept_report(found)
    assert made.exit_code == 1
    assert json.loads(made.to_json())["verdict"] == "biased"


def test_output_that_is_no_emission_is_biased():
    found = certify_accept(lambda p, q, tokens, uniforms: [0, 0, 0], num_drafts=1)
    assert set(found.distances.values()) == {1.0}


def test_chains_too_long_to_integrate_are_refused():
    with pytest.raises(mv.errors.ParamsError, match="wanted an integer <= 2"):
        certify_accept(mutants.accept(), num_drafts=5)


def test_transformers_accepts_at_zero_and_is_right_otherwise():
    pytest.importorskip("transformers")
    from mtp_verify.certification.whitebox import transformers_accept

    found = certify_accept(transformers_accept(), num_drafts=1)
    assert max(found.distances.values()) < 1e-6
    assert [e.name for e in found.edges if e.problem] == [
        "u = 0, target probability 0",
        "u = 0, last uniform 0",
    ]
