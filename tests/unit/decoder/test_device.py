"""Model, caches, masks and heads on a GPU: the loop gives there what plain decoding gives there."""

from __future__ import annotations

import pytest
import torch

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder, Static
from mtp_verify.decoder.planning import MeasuredCosts
from mtp_verify.drafters import Combined, Heads, Model, ModelTree, NGram, Suffix
from mtp_verify.models.target import as_target
from mtp_verify.verifier.growers import TreeShape
from tests.heads import tiny_head
from tests.host_reads import HostReads
from tests.models import KINDS, prompt, tiny_model

DEVICE = "cuda"
GREEDY = mv.SamplingParams(temperature=0.0)
SAMPLED = mv.SamplingParams(temperature=0.9, top_k=8)
LENGTHS = (9, 3, 17, 6)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def prompts():
    return [prompt(length, seed=20 + index)[0].tolist() for index, length in enumerate(LENGTHS)]


def plain(model, params, ids, **options):
    decoder = Decoder(model, None, params, "coupled")
    return decoder.generate([ids], max_new_tokens=14, seed=5, **options).tokens[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
def test_drafts_do_not_change_the_tokens(kind, params):
    model = tiny_model(kind).to(DEVICE)
    for drafter in (NGram(min_ngram=1), Suffix(min_match=1)):
        decoder = Decoder(model, drafter, params, "coupled")
        for ids in prompts():
            fast = decoder.generate([ids], max_new_tokens=14, seed=5)
            assert fast.tokens[0] == plain(model, params, ids)
            assert fast.sequences.device.type == "cpu"  # What is emitted is the host's.


@pytest.mark.parametrize("cache", [None, "paged", "static", Static(graphs=True)])
def test_a_batch_gives_each_request_what_it_gets_alone(cache):
    model = tiny_model("llama").to(DEVICE)
    options = {} if cache is None else {"cache": cache}
    decoder = Decoder(model, Suffix(max_nodes=6, min_match=1), GREEDY, **options)
    together = decoder.generate(prompts(), max_new_tokens=14, eos_token_id=())
    alone = [plain(model, GREEDY, ids, eos_token_id=()) for ids in prompts()]
    assert together.tokens == alone


def test_a_head_drafts_from_states_that_stay_on_the_device():
    model = tiny_model("llama").to(DEVICE)
    head = tiny_head("mimo", model).to(DEVICE)
    decoder = Decoder(model, Heads(head, num_tokens=3), GREEDY)
    for ids in prompts():
        assert decoder.generate([ids], max_new_tokens=14).tokens[0] == plain(model, GREEDY, ids)


@pytest.mark.parametrize("params", [None, SAMPLED])
@pytest.mark.parametrize("cache", ["static", Static(graphs=True)])
def test_a_step_reads_the_device_once(cache, params):
    model = tiny_model("llama").to(DEVICE)
    head, small = tiny_head("eagle", model).to(DEVICE), tiny_model("llama", seed=2).to(DEVICE)
    shape = TreeShape.by_depth(3, 2)
    law = "deterministic" if params is None else "swor"
    for drafter in (
        None,
        Suffix(min_match=1),
        Heads(head, params=params),
        Heads(head, max_nodes=6),
        Heads(head, shape=shape, law=law, params=params),
        Model(small, params=params, min_confidence=0.2),
        ModelTree(small, max_nodes=6),
        Combined([Suffix(min_match=1), Heads(head, max_nodes=4)], mode="merge"),
    ):
        decoder = Decoder(model, drafter, SAMPLED, cache=cache)
        for seed, ids in enumerate(prompts()):
            decoder.submit(ids, max_new_tokens=9, seed=seed, eos_token_id=())
        while decoder.num_unfinished:
            with HostReads() as reads:
                decoder.step()
            assert len(reads.places) <= 1, reads.places


def test_costs_are_measured_on_the_device(tmp_path, monkeypatch):
    monkeypatch.setenv("MTP_VERIFY_CACHE", str(tmp_path))
    costs = MeasuredCosts(as_target(tiny_model("llama").to(DEVICE)))
    assert costs.forward(4, 2) > 0
