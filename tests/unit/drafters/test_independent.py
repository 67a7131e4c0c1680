"""An independent model as drafter: its law, its cache, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify import _core
from mtp_verify.decoder.decode import Decoder
from mtp_verify.decoder.planning import Costs
from mtp_verify.drafters import Combined, Model, Request, Suffix
from mtp_verify.testing import TableTarget
from tests.models import KINDS, RECURRENT_KINDS, VOCAB, prompt, tiny_model

GREEDY = mv.SamplingParams(temperature=0.0)
WARM = mv.SamplingParams(temperature=1.3)


def request_for(tokens, seed=0, eos_ids=()):
    return Request(
        id=0, tokens=list(tokens), prompt_len=len(tokens), seed=seed, eos_ids=frozenset(eos_ids)
    )


def propose(drafter, request, budget=100):
    with torch.inference_mode():
        return drafter.propose([request], [budget])[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("params", [None, WARM], ids=["greedy", "sampled"])
def test_output_equals_plain_decoding(kind, params):
    target, drafter = tiny_model(kind, seed=1), tiny_model(kind, seed=2)
    for shape, rule in ((GREEDY, "auto"), (mv.SamplingParams(temperature=0.8), "coupled")):
        decoder = Decoder(target, Model(drafter, num_tokens=3, params=params), shape, rule)
        plain = decoder.generate(prompt(), max_new_tokens=24, seed=5, speculate=False)
        assert decoder.generate(prompt(), max_new_tokens=24, seed=5).tokens == plain.tokens


MASK = 30


@pytest.mark.parametrize("kind", [*KINDS, "lfm2"])
@pytest.mark.parametrize("params", [None, WARM, "target"], ids=["greedy", "sampled", "target"])
def test_output_equals_plain_decoding_with_drafts_at_masks(kind, params):
    target, drafter = tiny_model("llama", seed=1), tiny_model(kind, seed=2)
    for shape, rule in ((GREEDY, "auto"), (mv.SamplingParams(temperature=0.8), "coupled")):
        way = Model(drafter, num_tokens=3, params=params, mask_token=MASK)
        decoder = Decoder(target, way, shape, rule)
        plain = decoder.generate(prompt(), max_new_tokens=24, seed=5, speculate=False)
        assert decoder.generate(prompt(), max_new_tokens=24, seed=5).tokens == plain.tokens


def test_drafts_at_masks_take_one_forward_and_depend_on_no_drafted_token():
    model = tiny_model("llama", seed=2)
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    drafter = Model(model, num_tokens=4, params=WARM, mask_token=MASK)
    request = request_for(prompt()[0].tolist(), seed=99)
    drafter.start(request)
    for _ in range(3):
        calls.clear()
        draft = propose(drafter, request)
        assert len(calls) == 1
        assert (draft.law, draft.num_nodes) == ("chain", 5)
        with torch.no_grad():
            rows = model(torch.tensor([request.tokens + [MASK] * 3])).logits[0, -4:]
        for node in range(1, 5):
            # Noise address: the root's position and the node that the token becomes.
            drawn = _core.draw(rows[node - 1], WARM, 99, request.position, node)
            assert drawn == draft.tokens[node]
        accept(drafter, request, draft, 2)


@pytest.mark.parametrize("num_tokens", [1, 2, 5])
@pytest.mark.parametrize(
    "params", [GREEDY, mv.SamplingParams(), mv.SamplingParams(temperature=0.6, top_k=12)]
)
@pytest.mark.parametrize("rule", ["token", "block"])
def test_target_as_its_own_drafter_accepts_everything(params, num_tokens, rule, seed):
    # Rows of a table do not depend on the forward's width: q equals p bit for bit.
    rows = np.random.default_rng(5).normal(size=(997, 16)) * 2
    target = TableTarget(lambda path: rows[hash(path) % 997], 16)
    drafter = Model(target, num_tokens=num_tokens, params=params)
    decoder = Decoder(target, drafter, params, rule)
    result = decoder.generate([3, 1], max_new_tokens=60, seed=seed)
    stats = result.stats
    assert stats.accepted == stats.drafted > 0
    assert stats.accepted_at == stats.attempted
    # Each step but the last emits a full chain and the verifier's own token.
    assert stats.steps == -(-60 // (num_tokens + 1))


def test_real_model_as_its_own_sampled_drafter_accepts_all_but_rounding(seed):
    model = tiny_model("llama")
    params = mv.SamplingParams()
    decoder = Decoder(model, Model(model, num_tokens=4, params=params), params)
    stats = decoder.generate(prompt(), max_new_tokens=100, seed=seed).stats
    # q and p differ by float32 rounding alone: a rejection has a probability of about 1e-6 a token.
    assert stats.accepted == stats.drafted


@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
def test_disjoint_drafter_is_never_accepted(rule, seed):
    def low(path):
        return np.where(np.arange(8) < 4, 0.0, -np.inf)

    def high(path):
        return np.where(np.arange(8) < 4, -np.inf, 0.0)

    drafter = Model(TableTarget(high, 8), num_tokens=3, params=mv.SamplingParams())
    decoder = Decoder(TableTarget(low, 8), drafter, None, rule)
    result = decoder.generate([0], max_new_tokens=200, seed=seed)
    assert result.stats.accepted == 0
    assert result.stats.drafted > 0
    assert max(result.tokens[0]) < 4
    # 200 uniform tokens of 4: a count outside 15..90 has a probability below 1e-9.
    counts = np.bincount(result.tokens[0], minlength=4)
    assert counts.min() > 15
    assert counts.max() < 90


def test_draft_carries_the_rows_that_it_was_drawn_from():
    model = tiny_model("llama", seed=2)
    drafter = Model(model, num_tokens=4, params=WARM)
    request = request_for(prompt()[0].tolist(), seed=99)
    drafter.start(request)
    draft = propose(drafter, request)
    assert draft.law == "chain"
    assert draft.tree.is_chain
    tokens = draft.tokens.tolist()
    assert tokens[0] == request.tokens[-1]
    with torch.no_grad():
        rows = model(torch.tensor([request.tokens + tokens[1:]])).logits[0]
    start = request.position
    for node in range(1, 5):
        # Noise address: the root's position and the node that the token becomes.
        drawn = _core.draw(rows[start + node - 1], WARM, 99, start, node)
        assert drawn == tokens[node]


def test_greedy_draft_is_deterministic_and_lowest_of_a_tie():
    drafter = Model(TableTarget(lambda path: [0.0, 2.0, 2.0], 3), num_tokens=2)
    request = request_for([0])
    drafter.start(request)
    draft = propose(drafter, request)
    assert draft.law == "deterministic"
    assert draft.tokens.tolist() == [0, 1, 1]


def accept(drafter, request, draft, num_tokens):
    """Emit the first drafted tokens and a zero, as a step does."""
    tree, rows = mv.TokenTree(range(-1, num_tokens)), np.zeros((num_tokens + 1, VOCAB), np.float32)
    tokens = draft.tokens[: num_tokens + 1].tolist()
    for row, token in zip(rows, [*tokens[1:], 0], strict=True):
        row[token] = 9
    chain = mv.Draft(tree, tokens)
    verdict = mv.verify(chain, rows, GREEDY, seed=0, position=request.position)
    request.tokens.extend(verdict.tokens.tolist())
    drafter.commit([verdict], None)


@pytest.mark.parametrize("kind", RECURRENT_KINDS)
def test_a_recurrent_drafter_goes_on_where_it_has_not_drafted(kind):
    # Where it was asked for nothing, or another drafter's draft was run, nothing is taken back.
    drafter = Model(tiny_model(kind, seed=2), num_tokens=3, params=WARM)
    request = request_for(prompt()[0].tolist(), seed=4)
    drafter.start(request)
    for budget, accepted in ((9, 3), (0, 0), (0, 0), (9, 1), (0, 0), (9, 2)):
        draft = propose(drafter, request, budget)
        assert draft.num_nodes - 1 == min(budget, 3)
        accept(drafter, request, draft, accepted)
    fresh = Model(drafter.target.model, num_tokens=3, params=WARM)
    fresh.start(request)
    ours, theirs = propose(drafter, request), propose(fresh, request)
    assert ours.tokens.tolist() == theirs.tokens.tolist()


@pytest.mark.parametrize("kind", RECURRENT_KINDS)
@pytest.mark.parametrize("way", ["combined", "planned"])
def test_a_recurrent_drafter_in_the_decoder(kind, way):
    drafter = Model(tiny_model(kind, seed=2), num_tokens=4, params=WARM)
    planner = mv.Planner(Costs({1: {1: 1.0, 9: 1.2}}), max_nodes=4) if way == "planned" else None
    if way == "combined":
        drafter = Combined([Suffix(4, min_match=1), drafter])
    decoder = Decoder(tiny_model("llama"), drafter, rule="coupled", planner=planner)
    ids = [prompt(9)[0], prompt(4, seed=5)[0]]
    plain = decoder.generate(ids, max_new_tokens=14, seed=3, speculate=False)
    made = decoder.generate(ids, max_new_tokens=14, seed=3)
    assert made.tokens == plain.tokens
    assert made.stats.drafted > 0


@pytest.mark.parametrize("kind", KINDS)
def test_cache_follows_partial_and_full_acceptance(kind):
    model = tiny_model(kind, seed=2)
    drafter = Model(model, num_tokens=4)
    request = request_for(prompt()[0].tolist())
    drafter.start(request)
    logits = torch.zeros((5, VOCAB))
    for num_kept in (4, 0, 2, 4, 4, 1, 3):
        draft = propose(drafter, request)
        nodes = draft.tokens[1:].tolist()
        with torch.no_grad():
            text = list(request.tokens)
            for token in nodes:
                assert token == int(model(torch.tensor([text])).logits[0, -1].argmax())
                text.append(token)
        # Rows that make greedy verification keep `num_kept` tokens and emit another one.
        wanted = [*nodes[:num_kept], (nodes[num_kept] + 1) % VOCAB if num_kept < 4 else 7]
        logits.zero_()
        for row, token in enumerate(wanted):
            logits[row, token] = 5.0
        verdict = mv.verify(draft, logits, GREEDY, seed=0, position=request.position)
        assert verdict.tokens.tolist() == wanted
        request.tokens.extend(wanted)
        drafter.commit([verdict], None)
    drafter.release(request)
    drafter.release(request)


def test_prompt_is_run_once_and_each_token_once():
    calls = []

    class Counted(TableTarget):
        def forward(self, tokens, *rest, **options):
            calls.append(tokens.shape[1])
            return super().forward(tokens, *rest, **options)

    eye = np.eye(8) * 50
    own = Counted(lambda path: eye[(path[-1] + 1) % 8], 8)
    target = TableTarget(lambda path: eye[(path[-1] + 1) % 8], 8)
    Decoder(target, Model(own, num_tokens=3), GREEDY).generate([0, 1, 2, 3, 4], max_new_tokens=9)
    # After full acceptance the last drafted token is run together with the verifier's own.
    assert calls == [5, 1, 1, 2, 1, 1]
    # After a rejection the accepted tokens' entries are kept: only the verifier's own token is run.
    calls.clear()
    other = TableTarget(lambda path: eye[5 if path[-1] == 3 else (path[-1] + 1) % 8], 8)
    Decoder(other, Model(own, num_tokens=3), GREEDY).generate([0, 1], max_new_tokens=7)
    assert calls == [2, 1, 1, 1, 1, 1]


def test_confidence_stop_comes_before_the_draw():
    # Certain after an even token, undecided after an odd one.
    def rows(path):
        return [0.0, 30.0, 0.0, 0.0] if path[-1] % 2 == 0 else [0.0, 0.0, 0.0, 0.0]

    drafter = Model(
        TableTarget(rows, 4), num_tokens=4, params=mv.SamplingParams(), min_confidence=0.5
    )
    request = request_for([0])
    drafter.start(request)
    assert propose(drafter, request).tokens.tolist() == [0, 1]
    undecided = request_for([0, 3])
    assert propose(drafter, undecided).num_nodes == 1


def test_nothing_is_drafted_below_an_eos_token():
    eye = np.eye(8) * 50
    drafter = Model(TableTarget(lambda path: eye[(path[-1] + 1) % 8], 8), num_tokens=6)
    request = request_for([0], eos_ids=[3])
    drafter.start(request)
    assert propose(drafter, request).tokens.tolist() == [0, 1, 2, 3]
    assert propose(drafter, request, budget=2).tokens.tolist() == [0, 1, 2]
    assert propose(drafter, request, budget=0).num_nodes == 1


def test_drafters_shorter_context_ends_drafting_only():
    eye = np.eye(8) * 50
    small = TableTarget(lambda path: eye[(path[-1] + 1) % 8], 8, max_length=6)
    large = TableTarget(lambda path: eye[(path[-1] + 1) % 8], 8)
    result = Decoder(large, Model(small, num_tokens=3), GREEDY).generate([0], max_new_tokens=20)
    assert result.tokens[0] == [i % 8 for i in range(1, 21)]


def test_another_vocabulary_is_refused_before_generation():
    with pytest.raises(
        mv.errors.UnsupportedModelError, match=r"32 tokens and the target's 8.*translation"
    ):
        Decoder(TableTarget(lambda path: [0.0] * 8, 8), Model(tiny_model("llama")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 0}, "num_tokens: found 0"),
        ({"min_confidence": 1.5}, "min_confidence: found 1.5"),
        ({"mask_token": 1}, "mask_token: found 1, wanted an integer <= 0"),
        ({"mask_token": -1}, "mask_token: found -1, wanted an integer >= 0"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(mv.errors.ParamsError, match=message):
        Model(TableTarget(lambda path: [0.0], 1), **options)


def test_unknown_request_is_refused():
    drafter = Model(TableTarget(lambda path: [0.0], 1))
    with pytest.raises(mv.errors.DraftError, match="never started"):
        propose(drafter, request_for([0]))
