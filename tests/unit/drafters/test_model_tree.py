"""Best-first trees over a model's rows: which nodes, from which rows, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.drafters import ModelTree, Request
from mtp_verify.testing import TableTarget
from mtp_verify.verifier.growers import Heap
from tests.models import KINDS, prompt, tiny_model

GREEDY = mv.SamplingParams(temperature=0.0)


def request_for(tokens, eos_ids=()):
    return Request(
        id=0, tokens=list(tokens), prompt_len=len(tokens), eos_ids=frozenset(eos_ids), seed=0
    )


def propose(drafter, request, budget=100):
    with torch.inference_mode():
        return drafter.propose([request], [budget])[0]


@pytest.mark.parametrize("kind", KINDS)
def test_tree_is_that_of_a_fresh_forward_over_each_path(kind):
    model = tiny_model(kind, seed=2)
    drafter = ModelTree(model, max_nodes=9, max_depth=4, max_children=3)
    request = request_for(prompt()[0].tolist())
    drafter.start(request)

    def rows(paths):
        with torch.no_grad():
            texts = [torch.tensor([request.tokens + path]) for path in paths]
            return torch.stack([model(text).logits[0, -1] for text in texts])

    for _ in range(3):  # the cache is used from the second draft on
        draft = propose(drafter, request)
        heap = Heap(9, max_depth=4, max_children=3, root=request.tokens[-1])
        expected = heap.grow(rows)
        assert draft.law == "deterministic"
        assert draft.tree.parents.tolist() == expected.tree.parents.tolist()
        assert draft.tokens.tolist() == expected.tokens.tolist()
        request.tokens += [int(draft.tokens[1]), 5]
    drafter.release(request)


@pytest.mark.parametrize("kind", KINDS)
def test_output_equals_plain_decoding(kind):
    target, model = tiny_model(kind, seed=1), tiny_model(kind, seed=2)
    for params, rule in ((GREEDY, "auto"), (mv.SamplingParams(temperature=0.8), "coupled")):
        decoder = Decoder(target, ModelTree(model, max_nodes=6), params, rule)
        plain = decoder.generate(prompt(), max_new_tokens=24, seed=5, speculate=False)
        assert decoder.generate(prompt(), max_new_tokens=24, seed=5).tokens == plain.tokens


def test_target_as_its_own_drafter_is_mostly_right():
    rows = np.random.default_rng(5).normal(size=(997, 16)) * 2
    target = TableTarget(lambda path: rows[hash(path) % 997], 16)
    drafter = ModelTree(target, max_nodes=40, max_depth=3, max_children=16)
    result = Decoder(target, drafter, mv.SamplingParams(temperature=0.2)).generate(
        [3, 1], max_new_tokens=60, seed=1
    )
    assert result.stats.tau > 2


def test_limits_hold():
    eye = np.eye(8) * 50
    target = TableTarget(lambda path: eye[(path[-1] + 1) % 8], 8, max_length=6)
    drafter = ModelTree(target, max_nodes=30, max_depth=4, max_children=1)
    request = request_for([0], eos_ids=[3])
    drafter.start(request)
    assert propose(drafter, request).tokens.tolist() == [0, 1, 2, 3]  # nothing below the EOS token
    assert propose(drafter, request, budget=2).tokens.tolist() == [0, 1, 2]
    assert propose(drafter, request, budget=0).num_nodes == 1
    request.tokens = [0, 1, 2, 4, 5]  # one more place in the drafter's context: two more rows
    assert propose(drafter, request).tokens.tolist() == [5, 6, 7]
    request.tokens += [6, 7]
    assert propose(drafter, request).num_nodes == 1


@pytest.mark.parametrize("name", ["max_nodes", "max_depth", "max_children"])
def test_bad_limits_are_named(name):
    with pytest.raises(mv.errors.ParamsError, match=f"{name}: found 0"):
        ModelTree(TableTarget(lambda path: [0.0], 1), **{name: 0})


def test_unknown_request_is_refused():
    with pytest.raises(mv.errors.DraftError, match="never started"):
        propose(ModelTree(TableTarget(lambda path: [0.0], 1)), request_for([0]))


def test_model_without_tree_attention_is_refused():
    target = TableTarget(lambda path: [0.0], 1)
    target.tree_obstacle = "its attention takes no mask"
    with pytest.raises(mv.errors.UnsupportedModelError, match="takes no mask"):
        ModelTree(target)
