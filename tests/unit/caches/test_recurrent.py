"""Recurrent layers: chains by snapshot and replay, trees and inexact models refused beforehand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import DynamicCache, JambaConfig, JambaForCausalLM, MambaConfig, MambaForCausalLM

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.models.target import TransformersTarget
from tests.caches import assert_same_entries, fresh_cache
from tests.models import (
    RECURRENT_KINDS,
    VOCAB,
    ScriptDrafter,
    StubDrafter,
    TreeDrafter,
    greedy_tokens,
    prompt,
    tiny_model,
)

GREEDY = mv.SamplingParams(temperature=0.0)


class HalfRight(ScriptDrafter):
    """Knows the text, and is wrong at a place that moves."""

    def draft(self, request, budget):
        draft = super().draft(request, budget)
        tokens = draft.tokens.tolist()
        wrong = 1 + len(request.tokens) % 5
        if wrong < len(tokens):
            tokens[wrong] = (tokens[wrong] + 1) % VOCAB
        return mv.Draft(draft.tree, tokens)


@pytest.mark.parametrize("kind", RECURRENT_KINDS)
@torch.inference_mode()
def test_committed_cache_equals_that_of_a_fresh_forward(kind, rng):
    model = tiny_model(kind)
    target = TransformersTarget(model)
    cache = target.new_cache()
    assert cache.is_recurrent
    tokens = prompt(5)[0].tolist()
    tree = mv.TokenTree(range(-1, 4))
    for num_accepted in (0, 4, 1, 3, 0, 2):
        pending = tokens[cache.length : -1]
        if pending:
            target.forward(torch.tensor([pending]), None, None, cache, num_logits=1)
        # After the replay: the accepted text, and nothing of what was rejected.
        assert_same_entries(cache.kv, fresh_cache(model, tokens[:-1]))
        position = len(tokens) - 1
        nodes = [tokens[-1], *rng.integers(0, VOCAB, 4).tolist()]
        rows, _ = target.forward(torch.tensor([nodes]), None, None, cache, num_logits=5)
        alone = model(torch.tensor([tokens + nodes[1:]])).logits[0, -5:]
        torch.testing.assert_close(rows, alone, atol=1e-4, rtol=1e-4)
        path = np.arange(1, num_accepted + 1)
        cache.commit(mv.kv.commit_plan(tree, path, position))
        # All accepted: the state is the right one. Else back to the root, and run again.
        assert cache.length == (position + 5 if num_accepted == 4 else position)
        tokens += [*nodes[1 : num_accepted + 1], int(rng.integers(VOCAB))]


@pytest.mark.parametrize("kind", RECURRENT_KINDS)
@pytest.mark.parametrize("params", [GREEDY, mv.SamplingParams(temperature=0.8)])
def test_decoding_equals_plain_decoding(kind, params):
    model = tiny_model(kind)
    ids = prompt(9)
    plain = Decoder(model, None, params, "coupled").generate(ids, max_new_tokens=24, seed=4)
    if params is GREEDY:
        assert plain.tokens == [greedy_tokens(model, ids, 24)]
    assert plain.stats.forwards == 24
    drafter = HalfRight(plain.sequences[0].tolist())
    result = Decoder(model, drafter, params, "coupled").generate(ids, max_new_tokens=24, seed=4)
    assert result.tokens == plain.tokens
    assert result.stats.tau > 2
    # A step costs at most two forwards: the draft's, and that of the accepted tokens before it.
    assert result.stats.steps < result.stats.forwards <= 2 * result.stats.steps + 1
    text = plain.sequences[0, :-1].tolist()
    assert_same_entries(result.past_key_values, fresh_cache(model, text))


@pytest.mark.parametrize("kind", ["qwen3_next", "falcon_h1", "lfm2"])
def test_users_cache_is_continued(kind):
    model = tiny_model(kind)
    ids = prompt(12)
    expected = greedy_tokens(model, ids, 10)
    past = fresh_cache(model, ids[0, :7].tolist())
    drafter = HalfRight([*ids[0].tolist(), *expected])
    result = Decoder(model, drafter, GREEDY).generate(ids, max_new_tokens=10, past_key_values=past)
    assert result.tokens == [expected]
    assert result.past_key_values is past


def test_state_of_unknown_length_is_refused():
    model = tiny_model("mamba2")
    past = fresh_cache(model, [1, 2, 3])
    with pytest.raises(mv.errors.UnsupportedModelError, match="state of unknown length"):
        Decoder(model, None, GREEDY).generate(prompt(5), max_new_tokens=2, past_key_values=past)


@pytest.mark.parametrize("kind", RECURRENT_KINDS)
def test_trees_are_refused_before_a_forward(kind):
    model = tiny_model(kind)
    with pytest.raises(
        mv.errors.UnsupportedModelError, match="one state and not one for each branch"
    ):
        Decoder(model, TreeDrafter([-1, 0, 0]), GREEDY)

    class Sly(StubDrafter):
        def draft(self, request, budget):
            return mv.Draft(mv.TokenTree([-1, 0, 0]), [request.tokens[-1], 1, 2])

    with pytest.raises(mv.errors.UnsupportedModelError, match="the draft is a tree"):
        Decoder(model, Sly(), GREEDY).generate(prompt(4), max_new_tokens=4)


@pytest.mark.parametrize("kind", RECURRENT_KINDS)
def test_batch_equals_single_runs(kind):
    model = tiny_model(kind)
    ids = [prompt(n, seed=n)[0] for n in (9, 3, 17, 1, 6, 12, 5, 4)]
    params = [GREEDY if i % 3 == 0 else mv.SamplingParams(0.5 + i / 8) for i in range(8)]
    drafter = mv.drafters.NGram()
    batch = Decoder(model, drafter, None, "coupled").generate(
        ids, max_new_tokens=10, seed=list(range(8)), params=params
    )
    for row in range(8):
        single = Decoder(model, None, params[row], "coupled").generate(
            ids[row], max_new_tokens=10, seed=row
        )
        assert batch.tokens[row] == single.tokens[0]
    with pytest.raises(mv.errors.UnsupportedModelError, match="cannot share a forward"):
        Decoder(model, batching="together")


def test_recurrent_drafter_goes_back_token_by_token():
    model, small = tiny_model("llama"), tiny_model("qwen3_next", seed=2)
    ids = prompt(8)
    expected = greedy_tokens(model, ids, 20)
    drafter = mv.drafters.Model(small, num_tokens=3, params=mv.SamplingParams())
    assert Decoder(model, drafter, GREEDY).generate(ids, max_new_tokens=20).tokens == [expected]
    # The same model as drafter is always right.
    same = mv.drafters.Model(tiny_model("falcon_h1"), num_tokens=3)
    result = Decoder(tiny_model("falcon_h1"), same, GREEDY).generate(ids, max_new_tokens=20)
    assert result.stats.tau > 3


@pytest.mark.parametrize("kind", ["qwen3_next", "falcon_h1"])
@torch.inference_mode()
def test_forward_that_fails_is_undone(kind):
    model = tiny_model(kind)
    target = TransformersTarget(model)
    cache = target.new_cache()
    text = prompt(6)[0].tolist()
    target.forward(torch.tensor([text[:4]]), None, None, cache, num_logits=1)

    def fail(*args):
        raise RuntimeError("out of memory")

    hook = model.model.layers[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        target.forward(torch.tensor([text[4:]]), None, None, cache, num_logits=1)
    hook.remove()
    cache.crop(4)
    assert cache.length == 4
    assert_same_entries(cache.kv, fresh_cache(model, text[:4]))
    target.forward(torch.tensor([text[4:]]), None, None, cache, num_logits=1)
    assert_same_entries(cache.kv, fresh_cache(model, text))
    cache.crop(6)
    with pytest.raises(mv.errors.CacheError, match="was committed and cannot be taken back to 5"):
        cache.crop(5)


def test_models_that_cannot_go_on_by_several_tokens_are_refused():
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=32, hidden_size=32, state_size=8, num_hidden_layers=2)
    with pytest.raises(mv.errors.UnsupportedModelError, match="another state than the same two"):
        Decoder(MambaForCausalLM(config).eval())
    jamba = JambaForCausalLM(
        JambaConfig(
            vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, attn_layer_period=2,
            attn_layer_offset=1, mamba_d_state=8, num_experts=2, use_mamba_kernels=False,
        )
    ).eval()  # fmt: skip
    for _ in range(2):  # The second answer is remembered.
        with pytest.raises(mv.errors.UnsupportedModelError, match="JambaForCausalLM cannot decode"):
            Decoder(jamba)


def test_snapshots_do_not_pile_up():
    model = tiny_model("qwen3_next")
    target = TransformersTarget(model)
    cache = target.new_cache(DynamicCache(config=model.config))
    with torch.inference_mode():
        for token in range(5):
            target.forward(torch.tensor([[token]]), None, None, cache, num_logits=1)
            cache.crop(token + 1)
    assert cache._marks == []
