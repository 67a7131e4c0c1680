"""A cache of many sequences: equal to forwards of their own, whatever was moved or removed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.cache_utils import DynamicCache, StaticCache

import mtp_verify as mv
from mtp_verify.caches.masks import slot_mask
from mtp_verify.caches.slots import SlotCache, StaticSlots
from mtp_verify.models.target import TransformersTarget
from tests.models import KINDS, VOCAB, WINDOW, prompt, tiny_model


def entries(cache, slot):
    """All keys and values of one slot."""
    length = cache.lengths[slot]
    return [buffer[slot, :, :length] for layer in cache.kv.layers for buffer in layer.buffers]


def fresh_entries(target, tokens):
    """Those of a forward over the tokens alone."""
    cache = SlotCache(target.new_kv())
    cache.add()
    cache.aim(len(tokens), target.device, 0)
    target.forward(torch.tensor([tokens]), None, None, cache, num_logits=1)
    cache.extend(0, len(tokens))
    return entries(cache, 0)


def run(target, cache, drafts, texts):
    """One forward over a draft per slot, as `Together` does it."""
    width = max(draft.num_nodes for draft in drafts)
    tokens = torch.zeros((len(drafts), width), dtype=torch.int64)
    positions = torch.zeros_like(tokens)
    ancestors = torch.eye(width, dtype=torch.bool).repeat(len(drafts), 1, 1)
    for slot, (draft, text) in enumerate(zip(drafts, texts, strict=True)):
        count = draft.num_nodes
        tokens[slot, :count] = torch.from_numpy(draft.tokens)
        positions[slot] = len(text) - 1
        positions[slot, :count] += torch.from_numpy(draft.tree.depths)
        ancestors[slot, :count, :count] = torch.from_numpy(draft.tree.mask())
    return target.forward_slots(tokens, positions, ancestors, cache)[0]


def commit(cache, slot, draft, path):
    cache.commit([slot], [draft], [SimpleNamespace(path=path)])


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_entries_equal_those_of_a_fresh_forward(kind):
    """Random trees and accepted paths of three sequences; one leaves, another joins."""
    target = TransformersTarget(tiny_model(kind))
    generator = torch.Generator().manual_seed(0)
    rng = torch.Generator().manual_seed(1)
    cache = SlotCache(target.new_kv())
    texts = [prompt(n, seed=n)[0].tolist() for n in (3, 11, 6)]
    for text in texts:
        cache.add()
        slot = len(cache.lengths) - 1
        cache.aim(len(text) - 1, target.device, slot)
        target.forward(torch.tensor([text[:-1]]), None, None, cache, num_logits=1)
        cache.extend(slot, len(text) - 1)
    for step in range(6):
        if step == 3:
            cache.remove(0, wipe=True)
            texts[0] = texts.pop()
            text = prompt(5, seed=40)[0].tolist()
            texts.append(text)
            cache.add()
            slot = 2
            cache.aim(4, target.device, slot)
            target.forward(torch.tensor([text[:-1]]), None, None, cache, num_logits=1)
            cache.extend(slot, 4)
        drafts, paths = [], []
        for text in texts:
            size = int(torch.randint(1, 9, (), generator=generator))
            parents = [-1] + [int(torch.randint(0, i, (), generator=rng)) for i in range(1, size)]
            tree = mv.TokenTree(parents)
            tokens = torch.randint(1, VOCAB, (size,), generator=rng).tolist()
            draft = mv.Draft(tree, [text[-1], *tokens[1:]], law="unknown")
            node = int(torch.randint(0, size, (), generator=rng))
            paths.append(list(tree.path(node)))
            drafts.append(draft)
        logits = run(target, cache, drafts, texts)
        for slot, (draft, path, text) in enumerate(zip(drafts, paths, texts, strict=True)):
            commit(cache, slot, draft, path)
            text += draft.tokens[path].tolist()
            for mine, theirs in zip(entries(cache, slot), fresh_entries(target, text), strict=True):
                torch.testing.assert_close(
                    mine, theirs[0] if theirs.dim() > 3 else theirs, atol=1e-5, rtol=1e-5
                )
            node = path[-1] if path else 0
            expected = target.model(torch.tensor([text])).logits[0, -1]
            torch.testing.assert_close(logits[slot, node], expected, atol=1e-4, rtol=1e-4)
            text.append(int(torch.randint(1, VOCAB, (), generator=rng)))


@torch.inference_mode()
def test_copy_gives_a_slot_of_its_own():
    target = TransformersTarget(tiny_model("llama"))
    cache = SlotCache(target.new_kv())
    tokens = prompt(8)
    cache.add()
    cache.aim(8, target.device, 0)
    target.forward(tokens, None, None, cache, num_logits=1)
    cache.extend(0, 8)
    cache.add()
    assert cache.share(0, 1, 5)
    assert cache.lengths == [8, 5]
    for mine, theirs in zip(entries(cache, 1), entries(cache, 0), strict=True):
        assert torch.equal(mine, theirs[:, :5])
    cache.aim(2, target.device, 1)
    target.forward(torch.tensor([[3, 4]]), None, None, cache, num_logits=1)
    cache.extend(1, 7)
    fresh = fresh_entries(target, [*tokens[0, :5].tolist(), 3, 4])
    for mine, theirs in zip(entries(cache, 1), fresh, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    fresh = fresh_entries(target, tokens[0].tolist())
    for mine, theirs in zip(entries(cache, 0), fresh, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


@torch.inference_mode()
def test_forward_that_is_not_committed_changes_nothing():
    target = TransformersTarget(tiny_model("mistral"))
    cache = SlotCache(target.new_kv())
    cache.add()
    cache.aim(6, target.device, 0)
    target.forward(prompt(6), None, None, cache, num_logits=1)
    cache.extend(0, 6)
    before = [e.clone() for e in entries(cache, 0)]
    draft = mv.Draft(mv.TokenTree([-1, 0, 1]), [1, 2, 3])
    run(target, cache, [draft], [[0] * 7])
    assert cache.lengths == [6]
    assert all(torch.equal(a, b) for a, b in zip(before, entries(cache, 0), strict=True))


@torch.inference_mode()
def test_nan_of_a_removed_sequence_reaches_nobody():
    target = TransformersTarget(tiny_model("llama"))
    cache = SlotCache(target.new_kv())
    for slot, length in enumerate((20, 4)):
        cache.add()
        cache.aim(length, target.device, slot)
        target.forward(prompt(length), None, None, cache, num_logits=1)
        cache.extend(slot, length)
    for layer in cache.kv.layers:
        for buffer in layer.buffers:
            buffer[0] = float("nan")
    cache.remove(0, wipe=True)
    cache.add()
    draft = mv.Draft(mv.TokenTree([-1]), [1])
    logits = run(target, cache, [draft, draft], [[*prompt(4)[0].tolist(), 1], [1]])
    assert torch.isfinite(logits).all()


def test_empty_cache_keeps_no_memory():
    cache = SlotCache(DynamicCache(config=tiny_model("llama").config))
    cache.add()
    cache.aim(2, torch.device("cpu"), 0)
    state = torch.ones((1, 2, 2, 8))
    cache.kv.layers[0].update(state, state)
    assert cache.kv.layers[0].buffers
    cache.remove(0)
    assert not cache.kv.layers[0].buffers


def test_other_layers_are_refused():
    config = tiny_model("llama").config
    with pytest.raises(mv.errors.UnsupportedModelError, match="cache layer 0 is a StaticLayer"):
        SlotCache(StaticCache(config=config, max_cache_len=8))


def test_mask_hides_by_position_and_by_ancestry():
    positions = torch.tensor([[4, 5, 5], [WINDOW + 2] * 3])
    ancestors = torch.eye(3, dtype=torch.bool).repeat(2, 1, 1)
    ancestors[0, 1, 0] = ancestors[0, 2, 0] = True
    shape = torch.tensor([4, 9]), 12, positions, ancestors, torch.float32
    visible = slot_mask(*shape) == 0
    assert visible.shape == (2, 1, 3, 12)
    assert visible[0, 0, :, :4].all()
    assert visible[0, 0, :, 4:7].tolist() == ancestors[0].tolist()
    assert not visible[0, 0, :, 7:].any()
    assert visible[1, 0].tolist() == [[True] * 9 + [j == i for j in range(3)] for i in range(3)]
    near = slot_mask(*shape, window=WINDOW) == 0
    assert near[0].tolist() == visible[0].tolist()
    assert near[1, 0, 0].tolist() == [j >= 3 for j in range(9)] + [True, False, False]


@torch.inference_mode()
def test_static_slots_have_few_sizes_and_the_entries_of_the_others():
    """Powers of two of entries; what grows keeps what it holds."""
    target = TransformersTarget(tiny_model("gemma3"))
    texts = [prompt(60)[0].tolist(), prompt(7, seed=4)[0].tolist()]
    caches = SlotCache(target.new_kv()), StaticSlots(target.new_kv())
    draft = mv.Draft(mv.TokenTree([-1, 0, 0, 2]), [5, 1, 2, 3])
    sizes = set()
    for cache in caches:
        for slot, text in enumerate(texts):
            cache.add()
            cache.aim(len(text), target.device, slot)
            target.forward(torch.tensor([text]), None, None, cache, num_logits=1)
            cache.extend(slot, len(text))
        for _ in range(3):
            rows = run(target, cache, [draft, draft], [[0] * (n + 1) for n in cache.lengths])
            commit(cache, 0, draft, [2, 3])
            commit(cache, 1, draft, [])
            sizes.add(cache.kv.layers[0].buffers[0].shape[2] if cache is caches[1] else 64)
        assert rows.shape == (2, 4, VOCAB)
        assert cache.starts(target.device).tolist() == cache.lengths == [69, 10]
    assert sizes == {64, 128}
    for slot in range(2):
        for found, wanted in zip(entries(caches[1], slot), entries(caches[0], slot), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
