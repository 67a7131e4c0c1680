"""What takes the place of the engine's `eagle_sample`, on a stand-in of the engine."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.integrations import sglang
from mtp_verify.integrations.sglang import trees
from tests.host_reads import HostReads
from tests.sglang_engine import GREEDY, arguments, random_tree

TREE = mv.TokenTree([-1, 0, 0, 1])
CHAIN = mv.TokenTree([-1, 0, 1, 2])
TOKENS = [0, 1, 2, 0]
LOGITS = np.random.default_rng(8).normal(size=(4, 3)).astype(np.float32)


@pytest.fixture(params=["host", "device"])
def where(request, monkeypatch):
    """Rows of the host, or rows that count as a device's."""
    if request.param == "device":
        monkeypatch.setattr(trees, "is_on_host", lambda _: False)
    return request.param


def one(tree=TREE, logits=LOGITS, seed=6, params=(), **info):
    """The hook's arguments for one request."""
    seeds = None if seed is None else torch.tensor([seed])
    given = arguments([tree], [TOKENS], logits[None], params=[dict(params)], seeds=seeds, **info)
    if seed is None:
        given[1].sampling_info.sampling_seed = None
    return given


def outcome(*given, **options):
    predict, lens, index = sglang.eagle_sample(*given, **options)
    assert (predict.dtype, lens.dtype, index.dtype) == (torch.int32,) * 3
    return predict[index[0, : lens[0]]].tolist()


def expected(params, logits=LOGITS, seed=6):
    draft = mv.Draft(TREE, TOKENS, law="unknown")
    return mv.verify(draft, logits, params, seed=seed, position=5).tokens.tolist()


def test_the_hook_verifies_with_the_requests_seed_and_parameters(engine, where):
    asked = {"temperature": 0.5, "top_k": 2, "top_p": 0.5, "min_p": 0.25}
    params = mv.SamplingParams(**asked)
    for seed in range(20):
        assert outcome(*one(seed=seed, params=asked)) == expected(params, seed=seed)


def test_greedy_requests_take_the_most_likely_tokens(engine, where):
    assert outcome(*one(params=GREEDY)) == expected(mv.SamplingParams(temperature=0.0))


def test_penalties_bias_and_grammar_shape_the_rows(engine, where):
    row = torch.tensor([[0.5, -1.0, 2.0]])
    scale = torch.tensor([[1.5, 2.0, 1.0]])
    bias = torch.tensor([[0.0, 3.0, 0.0]])

    def apply(logits):
        logits[:, 2] = -torch.inf

    given = one(acc_additive_penalties=row, acc_scaling_penalties=scale, logit_bias=bias)
    shaped = torch.from_numpy(LOGITS) + row
    shaped = torch.where(shaped > 0, shaped / scale, shaped * scale) + bias
    shaped[:, 2] = -torch.inf
    found = outcome(*given, SimpleNamespace(apply=apply))
    assert found == expected(mv.SamplingParams(), shaped.numpy())


def test_without_seeds_torchs_generator_reproduces(engine, where):
    outcomes = []
    for seed in (1, 1, 2, 3, 4, 5):
        torch.manual_seed(seed)
        outcomes.append(outcome(*one(seed=None)))
    assert outcomes[0] == outcomes[1]
    assert len(set(map(tuple, outcomes))) > 1


def test_sampled_chains_are_declared_when_the_engine_samples_them(engine, where):
    engine.spec.speculative_use_rejection_sampling = True
    probs = np.random.default_rng(1).dirichlet(np.ones(3), (1, 3)).astype(np.float32)
    draft = mv.Draft.chain(TOKENS[1:], probs[0], root=0)
    for seed in range(20):
        given = one(CHAIN, seed=seed)
        given[0].draft_probs = torch.from_numpy(probs)
        verdict = mv.verify(draft, LOGITS, seed=seed, position=5)
        assert verdict.rule == "block"
        assert outcome(*given) == verdict.tokens.tolist()


def test_rows_of_an_unsampled_draft_are_ignored(engine, where):
    given = one(CHAIN)
    given[0].draft_probs = torch.full((1, 3, 3), torch.nan)
    draft = mv.Draft(CHAIN, TOKENS, law="unknown")
    verdict = mv.verify(draft, LOGITS, seed=6, position=5)
    assert outcome(*given) == verdict.tokens.tolist()


def test_nan_is_replaced_where_the_engine_is_told_to(engine, where):
    engine.sanitises = True
    logits = LOGITS.copy()
    logits[:, 1] = np.nan
    allowed = np.where(np.isnan(logits), -np.inf, logits)
    for seed in range(20):
        found = outcome(*one(logits=logits, seed=seed))
        assert found == expected(mv.SamplingParams(), allowed, seed)
    assert engine.sanitised == ["verify: target model logits"] * 20


@pytest.mark.parametrize("rule", ["1", "coupled"])
def test_the_device_gives_what_the_host_gives_and_is_not_read(engine, monkeypatch, rule):
    monkeypatch.setenv("MTP_VERIFY_SGLANG", rule)
    rng = np.random.default_rng(12)
    kinds = [{}, GREEDY, {"temperature": 0.7, "top_k": 3}, {"top_p": 0.9, "min_p": 0.05}]
    for _ in range(15):
        count, width, vocab = int(rng.integers(1, 6)), 8, 5
        shapes = [random_tree(rng, int(rng.integers(0, width))) for _ in range(count)]
        tokens = [rng.integers(0, vocab, width).tolist() for _ in range(count)]
        logits = 2 * rng.normal(size=(count, width, vocab))
        options = {
            "params": [kinds[int(rng.integers(0, 4))] for _ in range(count)],
            "seeds": torch.from_numpy(rng.integers(-(1 << 62), 1 << 62, count)),
            "depth": int(rng.integers(1, 12)),
            "lengths": rng.integers(1, 99, count).tolist(),
            "logit_bias": torch.from_numpy(rng.normal(size=(count, vocab))).float(),
        }
        wanted = sglang.eagle_sample(*arguments(shapes, tokens, logits, **options))
        given = arguments(shapes, tokens, logits, **options)
        with monkeypatch.context() as patch, HostReads() as reads:
            patch.setattr(trees, "is_on_host", lambda _: False)
            found = sglang.eagle_sample(*given)
        assert reads.places == []
        for one_tensor, other in zip(found, wanted, strict=True):
            assert torch.equal(one_tensor, other)


@pytest.mark.parametrize("samples", [False, True])
def test_known_chains_are_not_looked_at(engine, monkeypatch, samples):
    engine.spec.speculative_use_rejection_sampling = samples
    rng = np.random.default_rng(3)
    for _ in range(10):
        count, vocab = int(rng.integers(1, 5)), 5
        tokens = [rng.integers(0, vocab, 4).tolist() for _ in range(count)]
        logits = 2 * rng.normal(size=(count, 4, vocab))
        probs = torch.from_numpy(rng.dirichlet(np.ones(vocab), (count, 3))).float()

        def given(count=count, tokens=tokens, logits=logits, probs=probs):
            found = arguments([CHAIN] * count, tokens, logits)
            found[0].tree_topk, found[0].draft_probs = 1, probs
            return found

        wanted = sglang.eagle_sample(*given())
        with monkeypatch.context() as patch, HostReads() as reads:
            patch.setattr(trees, "is_on_host", lambda _: False)
            patch.setattr("mtp_verify.integrations.sglang.device.plant_links", None)
            found = sglang.eagle_sample(*given())
        assert reads.places == []
        for one_tensor, other in zip(found, wanted, strict=True):
            assert torch.equal(one_tensor, other)


def test_trees_of_one_child_a_level_that_are_cut_short_are_looked_at(engine, monkeypatch):
    # Four columns and room for three levels: what is linked is not known.
    monkeypatch.setattr(trees, "is_on_host", lambda _: False)
    seen = []
    plant = sglang.device.plant_links
    monkeypatch.setattr(sglang.device, "plant_links", lambda *a: seen.append(a) or plant(*a))
    given = one()
    given[0].tree_topk, given[0].max_tree_depth = 1, 3
    assert outcome(*given) == expected(mv.SamplingParams())[:3]
    assert seen


def test_ranks_are_given_the_first_ones_result(engine, where):
    engine.group.world_size = 2
    outcome(*one())
    assert [src for _, src in engine.broadcasts] == [0, 0, 0]


def test_an_idle_batch_gives_nothing(engine):
    given = one()
    given[1].forward_mode = SimpleNamespace(is_idle=lambda: True)
    assert [len(tensor) for tensor in sglang.eagle_sample(*given)] == [0, 0, 0]


def test_the_hook_has_the_engines_signature(engine):
    theirs = engine.modules["sglang.srt.speculative.eagle_utils"].eagle_sample
    shapes = [
        [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
        for f in (theirs, sglang.eagle_sample)
    ]
    assert shapes[0] == shapes[1]
