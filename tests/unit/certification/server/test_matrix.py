"""A server's report: case after case, and what it promises beside the law."""

from __future__ import annotations

import json

import pytest

from mtp_verify.certification.server import Reference, ServerPlan, certify_server
from mtp_verify.certification.server.loads import LOADS, matrix, words_of
from mtp_verify.errors import ParamsError, ServerError
from mtp_verify.testing.server import ToyServer
from mtp_verify.verifier.params import SamplingParams
from tests.toys import ROWS, client_of

REFERENCE = Reference(ROWS, None, "there is no tokenizer", 1024)
QUICK = {"length": 2, "horizon": 3, "min_tv": 0.3}


def certified(*faults, reference=REFERENCE, model="toy", **options):
    with client_of(ToyServer(ROWS, faults, model=model)) as client:
        return certify_server(client, reference, ServerPlan(**(QUICK | options)))


def test_a_right_server_passes():
    made = certified(loads=("n",))
    assert (made.exit_code, made.data["status"]) == (0, "ok")
    (case,) = made.data["certificates"]
    assert case["engine"] == "toy, load n, temperature 1"
    assert case["requests"] > 0
    assert [entry["ok"] for entry in made.data["beside_the_law"]] == [True] * 5
    assert made.data["tokens_from"] == "token ids"
    assert "beside the law" in made.to_text()
    assert "greedy texts are the reference" in made.to_html()


@pytest.mark.parametrize(("params", "verdict"), [({"top_k": 3}, "biased"), ({}, "pass")])
def test_a_bias_with_one_kind_of_shaping(params, verdict):
    made = certified("bias_with_top_k", loads=("n",), params=SamplingParams(**params), min_tv=0.6)
    assert [c.verdict for c in made.certificates] == [verdict]
    assert ("top-k 3" in made.certificates[0].name) == (verdict == "biased")


@pytest.mark.slow
def test_a_bias_names_the_load_and_the_shaping_that_it_needs():
    made = certified("bias_with_top_k", is_whole=True, min_tv=0.6)
    document = json.loads(made.to_json())
    biased = [c["engine"] for c in document["certificates"] if c["verdict"] == "biased"]
    assert biased == ["toy, load batch, top-k 3"]
    assert len(document["certificates"]) == len(LOADS) + 9
    assert made.exit_code == 1
    assert "top-k 3" in made.summary
    # A right server passes all cases together with probability 1 - 1e-4.
    assert document["certificates"][0]["alpha"] * len(document["certificates"]) == pytest.approx(
        1e-4
    )


def test_a_broken_promise_alone_fails_the_report():
    made = certified("not_greedy", loads=("n",))
    assert [c.verdict for c in made.certificates] == ["pass"]
    assert made.exit_code == 1
    assert made.data["status"] == "failed"
    assert "greedy texts are the reference's" in made.summary


def test_another_checkpoint_is_refused_before_any_case():
    with pytest.raises(ServerError, match="is not this checkpoint"):
        certified("other_weights")


def test_why_texts_do_not_help_is_said():
    with pytest.raises(ServerError, match=r"found no token ids.*\(there is no tokenizer\)"):
        certified("no_token_ids")


def test_a_load_that_is_too_long_for_the_model():
    short = REFERENCE._replace(longest=128)
    with pytest.raises(ParamsError, match="load cache: found a model of 128 tokens"):
        certified(reference=short, loads=("cache",))


def test_a_run_without_time_left_says_so():
    made = certified(loads=("n", "alone"), max_seconds=0.0)
    assert [c.verdict for c in made.certificates] == ["not enough data"] * 2
    assert made.exit_code == 2


def test_counts_are_kept_for_each_case(tmp_path):
    folder = tmp_path / "counts"
    options = {"loads": ("n",), "resume": folder, "model": "org/model:7b"}
    first = certified(**options)
    assert [path.name for path in folder.iterdir()] == ["org-model-7b-load-n-temperature-1.json"]
    again = certified(**options)
    assert again.certificates[0].checks == first.certificates[0].checks
    assert again.data["certificates"][0]["requests"] < first.data["certificates"][0]["requests"]


def test_the_matrix_holds_each_load_and_each_shaping_once():
    cases = matrix(SamplingParams(top_k=3), is_whole=True)
    assert len({case.name for case in cases}) == len(cases) == len(LOADS) + 9
    assert [case.load.name for case in matrix(SamplingParams(), ("n", "alone", "n"))] == [
        "n",
        "alone",
    ]
    with pytest.raises(ParamsError, match="wanted one of: batch, alone"):
        matrix(SamplingParams(), ("crowd",))


def test_shaping_in_words():
    assert words_of(SamplingParams()) == "temperature 1"
    assert words_of(SamplingParams(temperature=0, top_p=0.5)) == "temperature 0, top-p 0.5"


def test_prompts_of_a_load_begin_with_the_same_tokens():
    one, other = LOADS["cache"].lengthened([(1, 2), (3,)])
    assert one[:160] == other[:160]
    assert (one[160:], other[160:]) == ((1, 2), (3,))
