"""Two servers compared: no law is known."""

from __future__ import annotations

import json

import pytest

from mtp_verify.certification.server import ServerPlan, compare_servers
from mtp_verify.errors import ParamsError, ServerError
from mtp_verify.testing.server import ToyServer
from tests.toys import ROWS, client_of

TEXTS = ("t1 t2 t3", "t0 t3", "t2")
PLAN = {"loads": ("n",), "length": 2, "min_tv": 0.25}


def compared(faults=(), others=(), prompts=TEXTS, **options):
    """Two toys; a difference of 0.25 shows with probability 0.99, false alarms have 1e-4."""
    one, other = (client_of(ToyServer(ROWS, each)) for each in (faults, others))
    with one, other:
        return compare_servers(one, other, ServerPlan(**(PLAN | options)), prompts)


@pytest.mark.parametrize("others", [(), ("strict",), ("no_token_ids",)])
def test_two_right_servers_agree_whatever_form_their_answers_have(others):
    made = compared(others=others)
    assert (made.exit_code, made.data["status"]) == (0, "ok")
    assert made.data["tokens_from"] == ("text" if others else "token ids")
    wanted = [True, True, None if others else True, True]
    assert [entry["ok"] for entry in made.data["beside_the_law"]] == wanted
    (one,) = made.comparisons
    assert (one.served_tv is None) == bool(others)
    assert json.loads(made.to_json())["comparisons"][0]["served_tv"] in (None, 0)
    assert "greedy texts are the other server" in made.to_html()


@pytest.mark.parametrize("faults", [("shared_noise",), ("other_weights",)])
def test_a_difference_is_found(faults):
    made = compared(faults)
    assert made.exit_code == 1
    assert made.comparisons[0].verdict == "biased"


def test_log_probabilities_that_are_not_of_the_served_law_are_found():
    # Of 0.3, as first tokens are compared with what both servers say of them.
    assert compared(("wrong_logprobs",), ("wrong_logprobs",)).comparisons[0].verdict == "biased"


def test_greedy_texts_that_differ_are_a_failure_of_their_own():
    made = compared(("not_greedy",))
    assert [c.verdict for c in made.comparisons] == ["pass"]
    assert made.exit_code == 1
    assert "token 3 after prompt 1" in made.to_text()


def test_a_server_that_dies_leaves_counts(tmp_path):
    with pytest.raises(ServerError, match="--resume"):
        compared(others=("dies",), resume=tmp_path)
    wanted = compared().comparisons[0]
    with pytest.raises(ServerError):
        compared(others=("dies",), resume=tmp_path)
    assert compared(resume=tmp_path).comparisons[0].verdict == wanted.verdict == "pass"


def test_loads_of_tokens_are_refused():
    with pytest.raises(ParamsError, match="cache and long need a checkpoint"):
        compared(loads=("cache",))
