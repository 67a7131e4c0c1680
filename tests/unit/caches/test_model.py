"""Masks of trees, growing layers, and commits that leave what a fresh forward would."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DynamicCache,
    EncoderDecoderCache,
    QuantizedCache,
    cache_utils,
)
from transformers.cache_utils import DynamicLayer

import mtp_verify as mv
from mtp_verify.caches.dynamic import GrowingLayer
from mtp_verify.caches.masks import tree_mask
from mtp_verify.caches.model import ModelCache
from mtp_verify.decoder.decode import Decoder
from mtp_verify.errors import CacheError, UnsupportedModelError
from mtp_verify.models.target import TransformersTarget
from tests.caches import assert_same_entries, fresh_cache, with_cache
from tests.models import KINDS, VOCAB, WINDOW, prompt, tiny_model

#      0
#    / | \
#   1  2  3
#   |  |\
#   4  5 6
#   |    |
#   7    8
PARENTS = [-1, 0, 0, 0, 1, 2, 2, 4, 6]
PATHS = [[], [1], [2], [1, 4], [2, 5], [2, 6, 8], [1, 4, 7], [3]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("past", [1, 4, WINDOW - 1, WINDOW, 15])
def test_committed_cache_equals_that_of_a_fresh_forward(kind, past, rng):
    model = tiny_model(kind)
    target = TransformersTarget(model)
    tree = mv.TokenTree(PARENTS)
    tokens = prompt(past, seed=past)[0].tolist()
    cache = target.new_cache()
    with torch.inference_mode():
        if past > 1:
            target.forward(torch.tensor([tokens[:-1]]), None, None, cache, num_logits=1)
            cache.crop(past - 1)
        for path in PATHS:
            position = len(tokens) - 1
            nodes = [tokens[-1], *rng.integers(0, VOCAB, len(PARENTS) - 1).tolist()]
            depths = torch.from_numpy(np.asarray(tree.depths))
            mask = torch.from_numpy(np.asarray(tree.mask()))
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
            assert_same_entries(cache.kv, fresh_cache(model, tokens))
            tokens.append(int(rng.integers(VOCAB)))


@pytest.mark.parametrize("kind", KINDS)
def test_chain_without_mask_equals_fresh_forward(kind):
    model = tiny_model(kind)
    target = TransformersTarget(model)
    cache = target.new_cache()
    text = prompt(24)[0].tolist()
    with torch.inference_mode():
        target.forward(torch.tensor([text[:10]]), None, None, cache, num_logits=1)
        cache.crop(10)
        rows, _ = target.forward(torch.tensor([text[10:]]), None, None, cache, num_logits=14)
        torch.testing.assert_close(
            rows, model(torch.tensor([text])).logits[0, 10:], atol=1e-4, rtol=1e-4
        )
    cache.crop(13)
    assert_same_entries(cache.kv, fresh_cache(model, text[:13]))


def test_tree_mask_shows_past_and_ancestors():
    #  0 - 1 - 2
    #   \- 3
    ancestors = torch.from_numpy(np.asarray(mv.TokenTree([-1, 0, 1, 0]).mask()))
    mask = tree_mask(ancestors, 2, torch.bfloat16)
    assert mask.shape == (1, 1, 4, 6)
    assert mask.dtype == torch.bfloat16
    assert (mask == 0)[0, 0].int().tolist() == [
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]
    assert mask.min() == torch.finfo(torch.bfloat16).min


def test_sliding_mask_hides_by_position_not_index():
    #  0 - 1 - 3      node 2 is a sibling of 1: index distance 1, position distance 0
    #   \- 2
    tree = mv.TokenTree([-1, 0, 0, 1])
    ancestors = torch.from_numpy(np.asarray(tree.mask()))
    depths = torch.from_numpy(np.asarray(tree.depths))
    mask = tree_mask(ancestors, 5, torch.float32, window=3, depths=depths)
    # Kept of the past are positions 3 and 4; nodes lie at 5, 6, 6, 7.
    assert (mask == 0)[0, 0].int().tolist() == [
        [1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 1, 0],
        [0, 0, 1, 1, 0, 1],
    ]


def test_sliding_mask_needs_depths():
    with pytest.raises(CacheError, match="depths"):
        tree_mask(torch.ones((1, 1), dtype=torch.bool), 5, torch.float32, window=3)


def test_growing_layer_equals_concatenation(rng):
    grown, plain = GrowingLayer(), DynamicLayer()
    for step in range(200):
        count = int(rng.integers(1, 9))
        keys, values = torch.randn(2, 3, count, 4), torch.randn(2, 3, count, 5)
        for mine, theirs in zip(
            grown.update(keys, values), plain.update(keys, values), strict=True
        ):
            assert torch.equal(mine, theirs)
        if step % 3 == 0:
            surplus = int(rng.integers(0, min(5, plain.get_seq_length())))
            grown.crop(-surplus)
            plain.crop(-surplus)
        if step % 50 == 25:
            for layer in (grown, plain):
                layer.reorder_cache(torch.tensor([1, 0]))
        assert grown.get_seq_length() == plain.get_seq_length()
        assert torch.equal(grown.keys, plain.keys)


@pytest.mark.parametrize("kind", ["mistral", "gemma2"])
def test_several_forwards_can_be_rolled_back_at_once(kind):
    # What a drafter does: run token by token, then learn how many were kept.
    model = tiny_model(kind)
    target = TransformersTarget(model)
    cache = target.new_cache()
    text = prompt(20)[0].tolist()
    with torch.inference_mode():
        target.forward(torch.tensor([text[:12]]), None, None, cache, num_logits=1)
        for place in range(12, 20):
            row, _ = target.forward(torch.tensor([[text[place]]]), None, None, cache, num_logits=1)
            alone = model(torch.tensor([text[: place + 1]])).logits[0, -1:]
            torch.testing.assert_close(row, alone, atol=1e-4, rtol=1e-4)
        cache.crop(13)
    assert_same_entries(cache.finish(), fresh_cache(model, text[:13]))


@pytest.mark.parametrize("num_cropped", [0, 2])
def test_growing_layer_does_not_write_into_a_foreign_tensor(num_cropped):
    layer = GrowingLayer()
    layer.update(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2))
    foreign = torch.ones(1, 1, 3, 2)
    layer.keys, layer.values = foreign, foreign.clone()
    layer.crop(-num_cropped)
    kept = 3 - num_cropped
    keys, _ = layer.update(torch.full((1, 1, 1, 2), 5.0), torch.full((1, 1, 1, 2), 5.0))
    assert keys[0, 0, :, 0].tolist() == [1.0] * kept + [5.0]
    assert torch.equal(foreign, torch.ones(1, 1, 3, 2))


def test_finish_returns_plain_layers_that_can_be_continued():
    model = tiny_model("llama")
    target = TransformersTarget(model)
    cache = target.new_cache()
    with torch.inference_mode():
        target.forward(prompt(6), None, None, cache, num_logits=1)
    kv = cache.finish()
    assert {type(layer) for layer in kv.layers} == {DynamicLayer}
    with torch.no_grad():
        model(prompt(2), use_cache=True, **with_cache(model, kv))
    assert kv.get_seq_length() == 8


def test_users_cache_is_changed_in_place():
    model = tiny_model("llama")
    kv = fresh_cache(model, prompt(5)[0].tolist())
    cache = TransformersTarget(model).new_cache(kv)
    cache.crop(3)
    assert cache.finish() is kv
    assert kv.get_seq_length() == 3


def test_crop_beyond_the_end_is_refused():
    model = tiny_model("llama")
    cache = TransformersTarget(model).new_cache(fresh_cache(model, [1, 2, 3]))
    with pytest.raises(CacheError, match="3 entries and cannot be cut to 4"):
        cache.crop(4)
    assert cache.length == 3


def test_offloaded_cache_is_refused():
    cache = DynamicCache(config=tiny_model("llama").config)
    cache.offloading = True
    with pytest.raises(UnsupportedModelError, match="offloading=False"):
        ModelCache(cache)


def test_unknown_layer_is_refused_by_name():
    class StrangeLayer(DynamicLayer):
        pass

    cache = DynamicCache(config=tiny_model("llama").config)
    cache.layers[1] = StrangeLayer()
    with pytest.raises(UnsupportedModelError, match="layer 1 is a StrangeLayer"):
        ModelCache(cache)


@pytest.mark.skipif(not hasattr(cache_utils, "BaseQuantizedLayer"), reason="needs fp8 caches")
def test_quantised_cache_is_refused():
    config = tiny_model("llama").config
    cache = QuantizedCache("fp8", config)
    with pytest.raises(UnsupportedModelError, match="QuantizedCache cannot be rolled back"):
        ModelCache(cache)
    with pytest.raises(UnsupportedModelError, match="quantised together"):
        Decoder(tiny_model("llama")).generate(prompt(), max_new_tokens=2, past_key_values=cache)


@torch.inference_mode()
def test_cross_attention_is_left_alone():
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=VOCAB, d_model=16, encoder_layers=1, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, max_position_embeddings=32, init_std=0.3,
    )  # fmt: skip
    model = BartForConditionalGeneration(config).eval()
    memory = model.get_encoder()(prompt(5))

    def run(tokens, kv):
        model(
            encoder_outputs=memory, decoder_input_ids=torch.tensor([tokens]), use_cache=True,
            **with_cache(model, kv),
        )  # fmt: skip

    def new():
        return EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))

    text = prompt(9, seed=6)[0].tolist()
    cache = ModelCache(new())
    with cache.writing(9):
        run(text, cache.kv)
    crossed = [layer.keys for layer in cache.kv.cross_attention_cache.layers]
    # A tree whose path is nodes 1 and 3 of 0 - 1 - 3, 0 - 2; its mask is another test's business.
    cache.commit(mv.kv.commit_plan(mv.TokenTree([-1, 0, 0, 1]), np.array([1, 3]), 5))
    kv = cache.finish()
    assert cache.length == 8
    for layer, keys in zip(kv.cross_attention_cache.layers, crossed, strict=True):
        assert layer.keys is keys
    fresh = new()
    run(text, fresh)
    for mine, theirs in zip(
        kv.self_attention_cache.layers, fresh.self_attention_cache.layers, strict=True
    ):
        kept = [*range(7), 8]
        torch.testing.assert_close(mine.keys, theirs.keys[:, :, kept], atol=1e-6, rtol=0)
