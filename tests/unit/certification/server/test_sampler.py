"""A served model as a sampler: the forms of its answers, and every fault of the toy server."""

from __future__ import annotations

import numpy as np
import pytest

from mtp_verify.certification.blackbox import certify
from mtp_verify.certification.server.loads import LOADS
from mtp_verify.certification.server.sampler import Form, ServerSampler, body_of, seed_of
from mtp_verify.certification.server.texts import WordTexts
from mtp_verify.errors import ParamsError, ServerError
from mtp_verify.testing import exact_law
from mtp_verify.testing.asserts import assert_same_law
from mtp_verify.testing.server import ToyServer
from mtp_verify.verifier.params import SamplingParams
from tests.toys import PROMPTS, ROWS, Words, client_of, sampler_of


def certified(*faults, load="n", min_tv=0.2, **options):
    """A certificate for a bias of `min_tv`, with false alarms of 1e-4 and a power of 0.99."""
    sampler = sampler_of(*faults, load=load, **options)
    with sampler.client:
        prompts = sampler.load.lengthened(PROMPTS)
        return certify(sampler, prompts=prompts, length=2, min_tv=min_tv)


@pytest.mark.parametrize(
    ("fault", "load"),
    [
        ("bias", "n"),
        ("bias_in_batch", "batch"),
        ("bias_on_cache_hit", "cache"),
        ("bias_in_stream", "stream"),
        ("shared_noise", "n"),
    ],
)
def test_a_bias_is_found_under_its_load(fault, load):
    assert certified(fault, load=load).verdict == "biased"


@pytest.mark.parametrize(
    ("fault", "load"),
    [(None, "mixed"), ("bias_in_batch", "alone"), ("bias_on_cache_hit", "n"), ("busy", "free")],
)
def test_nothing_is_found_where_nothing_is(fault, load):
    assert certified(*filter(None, [fault]), load=load, min_tv=0.4).verdict == "pass"


@pytest.mark.parametrize(
    ("faults", "form"),
    [
        ((), Form("token ids", (("return_token_ids", True), ("return_tokens", True)))),
        (("no_token_ids",), Form("text")),
        (("strict",), Form("text", dialect="openai")),
        (("forbids_extras",), Form("token ids", (("return_token_ids", True),), dialect="common")),
        (("text_prompts",), Form("text", has_text_prompts=True)),
        (("text_prompts", "strict"), Form("text", has_text_prompts=True, dialect="openai")),
    ],
)
def test_each_form_of_answers_has_the_same_tokens(faults, form):
    sampler = sampler_of(*faults, texts=WordTexts(Words()))
    usual = sampler_of()
    with sampler.client, usual.client:
        assert np.array_equal(sampler((1, 2), 40, 3), usual((1, 2), 40, 3))
    assert sampler.form == form


@pytest.mark.parametrize("fault", ["no_token_ids", "strict", "text_prompts"])
def test_without_ids_and_without_a_tokenizer_it_is_said(fault):
    sampler = sampler_of(fault)
    with sampler.client, pytest.raises(ServerError, match="found no token ids") as caught:
        sampler((1, 2), 4, 0)
    assert caught.value.slug == "no_token_ids"


def test_a_tokenizer_whose_tokens_cannot_be_read_off_their_text_is_refused():
    class Merging(Words):
        def encode(self, text, **_):
            return [min(token, 2) for token in super().encode(text)]

    with pytest.raises(ParamsError, match="its law cannot be seen") as caught:
        WordTexts(Merging())
    assert caught.value.slug == "ambiguous_text"


def test_texts_that_end_have_the_law_with_their_end():
    sampler = sampler_of(eos=3)
    with sampler.client:
        found = certify(sampler, prompts=PROMPTS, length=2, min_tv=0.2)
    assert found.verdict == "pass"
    assert (found.paths.laws.eos, found.tallies[0].law.may_end) == (3, True)


@pytest.mark.parametrize(
    ("faults", "eos", "slug"),
    [(("one_too_many",), None, "bad_answer"), (("ignores_n",), None, "bad_answer")],
)
def test_answers_that_are_not_what_was_asked_for_are_named(faults, eos, slug):
    sampler = sampler_of(*faults, eos=eos)
    with sampler.client, pytest.raises(ServerError) as caught:
        sampler((1, 2), 20, 0)
    assert caught.value.slug == slug


def test_a_text_that_ends_although_none_should_is_named():
    class Ends(ToyServer):
        def _choices(self, asked, *, is_batch):
            del asked["ignore_eos"]
            return super()._choices(asked, is_batch=is_batch)

    client = client_of(Ends(ROWS, eos=3))
    with client, pytest.raises(ServerError, match="eos") as caught:
        ServerSampler(client, ROWS)((1, 2), 40, 0)
    assert caught.value.slug == "ended_early"


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.5),
        SamplingParams(top_k=2),
        SamplingParams(top_p=0.6),
        SamplingParams(min_p=0.3),
        SamplingParams(repetition_penalty=2.0),
        SamplingParams(presence_penalty=1.0),
        SamplingParams(frequency_penalty=1.0),
    ],
    ids=repr,
)
def test_shaping_reaches_the_server(params):
    # Of 2,000 strings of 16, a bias of 0.19 shows with probability 1 - 1e-9.
    sampler = sampler_of(params=params, num=2)
    plain = exact_law(ROWS, PROMPTS[0], 2)
    law = exact_law(ROWS, PROMPTS[0], 2, params)
    with sampler.client:
        found = sampler(PROMPTS[0], 2000, 1)
    assert_same_law(found, law, min_tv=0.2)
    assert abs(plain.probs - law.probs).sum() / 2 > 0.05


def test_every_kind_of_shaping_is_named_in_a_request():
    body = body_of(Form("token ids"), (1, 2), SamplingParams(preset="vllm"), 5)
    assert body["samplers"] == ["penalties", "temperature", "min_p", "top_k", "top_p"]
    assert (body["top_k"], body["min_p"], body["top_p"], body["temperature"]) == (-1, 0, 1, 1)
    assert body["ignore_eos"]
    strict = body_of(Form("text", dialect="openai"), (1, 2), SamplingParams(), 5, eos=3)
    assert strict.keys() == {
        "prompt", "max_tokens", "n", "temperature", "top_p", "presence_penalty",
        "frequency_penalty",
    }  # fmt: skip
    common = body_of(Form("text", dialect="common"), (1, 2), SamplingParams(top_k=3), 5)
    # What is off is named too: a server has defaults of its own.
    assert (common["top_k"], common["min_p"]) == (3, 0)
    assert common["ignore_eos"]
    with pytest.raises(ParamsError, match="refuses top_k"):
        body_of(Form("text", dialect="openai"), (1, 2), SamplingParams(top_k=2), 5)


def test_seeds_of_calls_do_not_overlap_and_servers_can_take_them():
    seeds = {seed_of(seed, row) for seed in range(50) for row in range(2048)}
    assert len(seeds) == 50 * 2048
    assert 0 <= min(seeds) <= max(seeds) < 2**31
    assert seed_of(2**40, 7) < 2**31


@pytest.mark.parametrize("name", LOADS)
def test_every_load_gives_every_row_once(name):
    sampler = sampler_of(load=name)
    with sampler.client:
        found = sampler(sampler.load.lengthened(PROMPTS)[0], 19, 5)
    assert found.shape == (19, 5)
    assert 0 <= found.min() <= found.max() < 4


def test_a_server_that_dies_leaves_counts_from_which_the_run_continues(tmp_path):
    file = tmp_path / "counts.json"
    options = {"prompts": PROMPTS, "length": 2, "min_tv": 0.2, "name": "toy", "resume": file}
    whole = sampler_of()
    with whole.client:
        wanted = certify(whole, **options | {"resume": None})
    dying = sampler_of("dies")
    with dying.client, pytest.raises(ServerError, match="--resume") as caught:
        certify(dying, **options)
    assert caught.value.slug == "server_stopped"
    assert file.exists()
    again = sampler_of()
    with again.client:
        found = certify(again, **options)
        assert again.client.num_requests < whole.client.num_requests
    assert found.checks == wanted.checks


def test_a_server_that_restarts_is_waited_for():
    sampler = sampler_of("restarts", load="batch")
    with sampler.client:
        assert sampler(PROMPTS[0], 100, 0).shape == (100, 5)
        assert sampler.client.num_retries == 5
