"""Static caches: changed in place, and after each commit those of a fresh forward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import StaticCache

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.models.target import TransformersTarget
from tests.caches import assert_same_entries, fresh_cache
from tests.models import KINDS, VOCAB, TreeDrafter, greedy_tokens, prompt, tiny_model

#      0
#    / | \
#   1  2  3
#   |  |
#   4  5
#   |
#   6
PARENTS = [-1, 0, 0, 0, 1, 2, 4]
PATHS = [[], [1], [2, 5], [1, 4, 6], [3], [1, 4]]
ROOM = 40
GREEDY = mv.SamplingParams(temperature=0.0)


def static_cache(model):
    return StaticCache(config=model.config, max_cache_len=ROOM)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_committed_cache_equals_that_of_a_fresh_forward(kind, rng):
    model = tiny_model(kind)
    target = TransformersTarget(model)
    tree = mv.TokenTree(PARENTS)
    depths, mask = torch.tensor(np.asarray(tree.depths)), torch.tensor(np.asarray(tree.mask()))
    tokens = prompt(4)[0].tolist()
    static = static_cache(model)
    cache = target.new_cache(static)
    target.forward(torch.tensor([tokens[:-1]]), None, None, cache, num_logits=1)
    cache.crop(3)
    for path in PATHS:
        position = len(tokens) - 1
        nodes = [tokens[-1], *rng.integers(0, VOCAB, len(PARENTS) - 1).tolist()]
        rows, _ = target.forward(
            torch.tensor([nodes]), position + depths[None], mask, cache, num_logits=len(nodes)
        )
        for node in range(len(nodes)):
            text = tokens + [nodes[n] for n in tree.path(node)]
            alone = model(torch.tensor([text])).logits[0, -1]
            torch.testing.assert_close(rows[node], alone, atol=1e-4, rtol=1e-4)
        cache.commit(mv.kv.commit_plan(tree, np.asarray(path, np.int64), position))
        tokens += [nodes[n] for n in path]
        assert cache.length == len(tokens)
        # Handed back and taken over again: what a user gets between two generations.
        assert cache.finish() is static
        assert_same_entries(static, fresh_cache(model, tokens, static_cache(model)))
        cache = target.new_cache(static)
        tokens.append(int(rng.integers(VOCAB)))


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_stay_where_they_are(kind):
    model = tiny_model(kind)
    static = fresh_cache(model, prompt(5)[0].tolist(), static_cache(model))
    addresses = [(layer.keys.data_ptr(), layer.cumulative_length) for layer in static.layers]
    ids = torch.cat([prompt(5), prompt(6, seed=4)], 1)
    text = greedy_tokens(model, ids, 8)
    drafter = TreeDrafter(PARENTS, text=[*ids[0].tolist(), *text])
    result = Decoder(model, drafter, GREEDY).generate(ids, max_new_tokens=8, past_key_values=static)
    assert result.tokens == [text]
    assert result.past_key_values is static
    for layer, (address, length) in zip(static.layers, addresses, strict=True):
        assert layer.keys.data_ptr() == address
        assert layer.cumulative_length is length


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("params", [GREEDY, mv.SamplingParams(temperature=0.8)])
def test_decoding_equals_plain_decoding(kind, params):
    model = tiny_model(kind)
    ids = prompt(9)
    plain = Decoder(model, None, params, "coupled").generate(ids, max_new_tokens=20, seed=4)
    if params is GREEDY:
        assert plain.tokens == [greedy_tokens(model, ids, 20)]
    drafter = TreeDrafter(PARENTS, text=plain.sequences[0].tolist())
    # Room for the sequence and no more: the last trees do not fit and are left out.
    static = StaticCache(config=model.config, max_cache_len=28)
    result = Decoder(model, drafter, params, "coupled").generate(
        ids, max_new_tokens=20, seed=4, past_key_values=static
    )
    assert result.tokens == plain.tokens
    assert result.stats.tau > 1.3
    text = plain.sequences[0, :-1].tolist()
    assert_same_entries(
        static, fresh_cache(model, text, StaticCache(config=model.config, max_cache_len=28))
    )


def test_cache_too_small_is_refused_before_anything_is_run():
    model = tiny_model("llama")
    static = static_cache(model)
    with pytest.raises(mv.errors.ParamsError, match="found a capacity of 40 entries, wanted 41"):
        Decoder(model, None, GREEDY).generate(prompt(9), max_new_tokens=33, past_key_values=static)
    assert int(static.get_seq_length()) == 0
    with pytest.raises(mv.errors.ParamsError, match="drop the padding"):
        Decoder(model, None, GREEDY).generate(
            prompt(3), [[0, 1, 1]], max_new_tokens=3, past_key_values=static
        )


@torch.inference_mode()
def test_nan_of_a_dropped_entry_reaches_nobody():
    model = tiny_model("llama")
    target = TransformersTarget(model)
    cache = target.new_cache(static_cache(model))
    target.forward(prompt(6), None, None, cache, num_logits=1)
    for layer in cache.kv.layers:
        layer.keys[:, :, 3:6] = float("nan")
    cache.crop(3)
    row, _ = target.forward(prompt(1), None, None, cache, num_logits=1)
    assert bool(row.isfinite().all())
