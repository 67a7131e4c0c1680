"""The toy server: its law is the one of its rows, and each fault does what its line says."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from mtp_verify.errors import ParamsError
from mtp_verify.testing import exact_law
from mtp_verify.testing.asserts import assert_same_law
from mtp_verify.testing.server import FAULTS, ToyServer
from tests.toys import ROWS

PROMPT = [1, 2, 3]


def asked(app, **fields):
    body = {"model": "toy", "prompt": PROMPT, "max_tokens": 2, "return_token_ids": True, **fields}
    work = app.respond("POST", "/v1/completions", json.dumps(body).encode())
    status, _, answer = asyncio.run(work)
    return status, answer


def drawn(app, count, **fields):
    status, answer = asked(app, n=count, **fields)
    assert status == 200
    return np.array([choice["token_ids"] for choice in json.loads(answer)["choices"]])


@pytest.mark.parametrize(
    "fields", [{}, {"temperature": 0.5}, {"top_k": 2}, {"min_p": 0.3}], ids=str
)
def test_it_has_the_law_of_its_rows(fields):
    from mtp_verify.verifier.params import SamplingParams

    # Of 5,000 strings of 16, a bias of 0.12 shows; a right law fails with probability 1e-9.
    law = exact_law(ROWS, PROMPT, 2, SamplingParams(**fields))
    assert_same_law(drawn(ToyServer(ROWS), 5000, seed=1, **fields), law, min_tv=0.12)


def test_a_bias_has_the_size_that_is_said():
    # 0.3 of the likeliest second token's probability, which is about 0.5 here.
    law = exact_law(ROWS, PROMPT, 2).probs
    counts = exact_law(ROWS, PROMPT, 2).counts(drawn(ToyServer(ROWS, ["bias"]), 20_000, seed=1))
    tv = abs(counts / counts.sum() - law).sum() / 2
    most = sum(row.max() for row in law.reshape(4, 4))
    assert abs(tv - 0.3 * most) < 0.02


def test_seeds_repeat_and_differ():
    app = ToyServer(ROWS)
    assert (drawn(app, 50, seed=3) == drawn(app, 50, seed=3)).all()
    assert (drawn(app, 50, seed=3) != drawn(app, 50, seed=4)).any()
    assert (drawn(app, 50) != drawn(app, 50)).any()


def test_texts_end_at_the_end_token():
    app = ToyServer(ROWS, eos=2)
    ended = json.loads(asked(app, n=50, seed=1, max_tokens=9)[1])["choices"]
    assert {choice["finish_reason"] for choice in ended} == {"stop", "length"}
    assert all((c["finish_reason"] == "stop") == (c["token_ids"][-1] == 2) for c in ended)
    assert all(2 not in choice["token_ids"][:-1] for choice in ended)
    others = json.loads(asked(app, n=50, seed=1, max_tokens=9, ignore_eos=True)[1])["choices"]
    assert {choice["finish_reason"] for choice in others} == {"length"}


def test_wrong_requests_are_refused():
    assert asked(ToyServer(ROWS), model="gpt")[0] == 404
    assert asked(ToyServer(ROWS, ["strict"]), top_k=3)[0] == 400
    assert asked(ToyServer(ROWS, ["text_prompts"]))[0] == 422
    assert asyncio.run(ToyServer(ROWS).respond("GET", "/models", b""))[0] == 404


def test_an_unknown_fault_is_refused():
    with pytest.raises(ParamsError, match="wanted one of: bias") as caught:
        ToyServer(ROWS, ["gremlins"])
    assert caught.value.slug == "unknown_fault"
    for fault in FAULTS:
        assert ToyServer(ROWS, [fault]).faults == {fault}
