"""Draft heads in the decoder: nothing changes but speed, and they read the target's states."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.decoder.planning import Costs
from mtp_verify.drafters import Heads, Request
from mtp_verify.models.hidden import HiddenStates
from mtp_verify.testing import TableTarget
from mtp_verify.verifier.growers import TreeShape
from tests.heads import VARIANTS, random_hidden, tiny_head
from tests.models import KINDS, prompt, tiny_model

GREEDY = mv.SamplingParams(temperature=0.0)
WARM = mv.SamplingParams(temperature=1.3)
WAYS = {
    "chain": {},
    "sampled": {"params": WARM},
    "tree": {"max_nodes": 6, "max_children": 2, "num_tokens": 3},
    "top-plus-one": {"shape": TreeShape.by_depth(2, 2), "law": "top_plus_one", "params": WARM},
    "shape": {"shape": TreeShape.by_depth(3, 1, 2)},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", VARIANTS)
def test_output_equals_plain_decoding(name, way):
    model = tiny_model("llama")
    drafter = Heads(tiny_head(name, model), **WAYS[way])
    for params, rule in ((GREEDY, "auto"), (mv.SamplingParams(temperature=0.8), "coupled")):
        decoder = Decoder(model, drafter, params, rule)
        plain = decoder.generate(prompt(), max_new_tokens=16, seed=5, speculate=False)
        fast = decoder.generate(prompt(), max_new_tokens=16, seed=5)
        assert fast.tokens == plain.tokens
        assert fast.stats.drafted > 0
        assert fast.stats.forwards <= plain.stats.forwards


@pytest.mark.parametrize("kind", KINDS)
def test_other_targets_hidden_states_are_read_too(kind):
    model = tiny_model(kind)
    drafter = Heads(tiny_head("mimo", model), max_nodes=5)
    decoder = Decoder(model, drafter, GREEDY)
    plain = decoder.generate(prompt(), max_new_tokens=16, seed=5, speculate=False)
    assert decoder.generate(prompt(), max_new_tokens=16, seed=5).tokens == plain.tokens


@pytest.mark.parametrize("name", ["deepseek-2", "eagle3", "mimo", "meta"])
@pytest.mark.parametrize("way", ["chain", "tree"])
def test_head_reads_the_targets_own_states_of_every_token(name, way):
    model = tiny_model("llama")
    head = tiny_head(name, model)
    seen = []

    def read(states, hidden, tokens):
        seen.append((states[0].first, [h.clone() for h in hidden[0]], tokens[0].tolist()))
        return type(head).read_batch(head, states, hidden, tokens)

    head.read_batch = read
    decoder = Decoder(model, Heads(head, **WAYS[way]), GREEDY)
    result = decoder.generate(prompt(), max_new_tokens=20)
    text = result.sequences[0]
    with torch.no_grad(), HiddenStates(model, head.hidden_layers) as states:
        output = model(text[None], **states.options)
    count = sum(len(tokens) for _, _, tokens in seen)
    assert {first for first, _, _ in seen} == {0}
    assert [token for _, _, tokens in seen for token in tokens] == text[1 : count + 1].tolist()
    for layer, wanted in enumerate(states.of(output)):
        found = torch.cat([hidden[layer] for _, hidden, _ in seen])
        torch.testing.assert_close(found, wanted[0, :count], rtol=1e-4, atol=1e-4)
    assert count >= 20


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["deepseek-2", "eagle3", "hydra", "meta"])
def test_requests_share_the_forwards_of_their_drafts(name, way):
    head = tiny_head(name, tiny_model("llama"))
    calls = []
    for call in ("read_batch", "step_batch"):
        setattr(head, call, counted(getattr(head, call), calls))
    lengths, budgets = [5, 1, 9, 3, 4], [9, 2, 9, 0, 9]
    requests = [
        Request(id=n, tokens=list(range(2, 3 + n + length)), prompt_len=1, seed=8 + n)
        for n, length in enumerate(lengths)
    ]
    states = [tuple(random_hidden(head, n, seed=n)) for n in lengths]

    def drafts_of(groups):
        drafter, drafts = Heads(head, **WAYS[way]), []
        for group in groups:
            mine = [requests[n] for n in group]
            for request in mine:
                drafter.start(request)
            drafter.propose(mine, [0] * len(mine))
            drafter.commit([None] * len(mine), [states[n] for n in group])
            calls.clear()
            drafts += drafter.propose(mine, [budgets[n] for n in group])
        return drafts

    alone = drafts_of([n] for n in range(len(lengths)))
    together = drafts_of([range(len(lengths))])
    assert calls[0] == ("read_batch", 4)  # One of the five has no budget.
    assert len(calls) <= 1 + max(int(max(draft.tree.depths)) for draft in alone)
    for one, other in zip(alone, together, strict=True):
        assert one.tree.parents.tolist() == other.tree.parents.tolist()
        assert one.tokens.tolist() == other.tokens.tolist()


def counted(call, calls):
    def wrapped(states, *args):
        calls.append((call.__name__, len(states)))
        return call(states, *args)

    return wrapped


def test_perfect_head_is_accepted_whole():
    row = torch.zeros(32).scatter(0, torch.tensor(1), 9.0)
    table = TableTarget(lambda path: row, 32, hidden=lambda path, layer: torch.ones(32))
    model = tiny_model("llama")
    head = tiny_head("medusa", model, num_modules=3)
    with torch.no_grad():
        for level in head.levels:
            level.output.weight.zero_()
            level.output.weight[1] = 1.0
            for block in level.layers:
                block.linear.weight.zero_()
                block.linear.bias.zero_()
    stats = Decoder(table, Heads(head), GREEDY).generate([2], max_new_tokens=13).stats
    # The first step has no hidden state yet.
    assert (stats.steps, stats.accepted) == (4, 9)


def test_sampled_draft_carries_its_rows_over_the_draft_vocabulary():
    model = tiny_model("llama")
    head = tiny_head("eagle3", model)
    drafter = Heads(head, params=WARM, num_tokens=3)
    request = Request(id=4, tokens=[3, 7, 9, 2], prompt_len=3, seed=8)
    drafter.start(request)
    assert drafter.propose([request], [9])[0].num_nodes == 1
    drafter.commit(
        [mv.verify(mv.Draft.chain([], root=9), np.zeros((1, 32), np.float32), seed=0, position=2)],
        [tuple(torch.randn(3, 32) for _ in range(3))],
    )
    draft = drafter.propose([request], [9])[0]
    assert draft.law == "chain"
    assert draft.num_nodes == 4
    assert set(draft.tokens[1:].tolist()) <= set(head.vocab.tolist())
    assert drafter.propose([request], [9])[0].num_nodes == 1  # Nothing new was committed.


def test_users_cache_has_no_hidden_states_and_is_left_out():
    model = tiny_model("llama")
    ids = prompt(12)
    decoder = Decoder(model, Heads(tiny_head("eagle", model)), GREEDY)
    plain = decoder.generate(ids, max_new_tokens=10, speculate=False)
    with torch.no_grad():
        past = model(ids[:, :7], use_cache=True).past_key_values
    result = decoder.generate(ids, max_new_tokens=10, past_key_values=past)
    assert result.tokens == plain.tokens


def test_nothing_is_drafted_below_an_eos_token_or_past_the_budget():
    model = tiny_model("llama")
    decoder = Decoder(model, Heads(tiny_head("eagle", model), num_tokens=6), GREEDY)
    text = decoder.generate(prompt(), max_new_tokens=12, speculate=False).tokens[0]
    for eos in set(text[3:]):
        plain = decoder.generate(prompt(), max_new_tokens=12, speculate=False, eos_token_id=eos)
        fast = decoder.generate(prompt(), max_new_tokens=12, eos_token_id=eos)
        assert (fast.tokens, fast.finish_reasons) == (plain.tokens, plain.finish_reasons)


def test_shape_is_cut_to_the_heads_levels_and_to_the_budget():
    model = tiny_model("llama")
    head = tiny_head("medusa", model, num_modules=2)
    drafter = Heads(head, shape=TreeShape.by_depth(2, 1, 1, 1))
    assert drafter.num_tokens == 2
    request = Request(id=1, tokens=[3, 7, 9, 2], prompt_len=3, seed=0)
    drafter.start(request)
    drafter.propose([request], [9])
    verdict = mv.verify(
        mv.Draft.chain([], root=9), np.zeros((1, 32), np.float32), seed=0, position=2
    )
    for budget, parents in ((9, [-1, 0, 0, 1, 2]), (3, [-1, 0, 0]), (1, [-1, 0]), (0, [-1])):
        drafter.commit([verdict], [(torch.randn(1, 32),)])
        assert drafter.propose([request], [budget])[0].tree.parents.tolist() == parents


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 0}, "num_tokens: found 0"),
        ({"max_nodes": 0}, "max_nodes: found 0"),
        ({"max_nodes": 4, "shape": TreeShape.by_depth(2)}, "found both"),
        ({"law": "swor"}, "goes with a shape"),
        ({"law": "unknown", "shape": TreeShape.by_depth(2)}, "is one of: deterministic, chain"),
        ({"min_path": 0.5, "shape": TreeShape.by_depth(2)}, "min_path is of chains"),
        ({"min_path": 1.5}, "wanted a probability"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(mv.errors.ParamsError, match=message):
        Heads(tiny_head("eagle", tiny_model("llama")), **options)


def test_nothing_is_drafted_below_a_doubtful_path():
    model = tiny_model("llama")

    def drafts(**options):
        drafter = Heads(tiny_head("eagle", model), num_tokens=5, **options)
        request = Request(id=1, tokens=[3, 7, 9], prompt_len=3, seed=0)
        drafter.start(request)
        drafter.propose([request], [9])
        verdict = mv.verify(
            mv.Draft.chain([], root=9), np.zeros((1, 32), np.float32), seed=0, position=2
        )
        states = torch.randn(1, 32, generator=torch.Generator().manual_seed(2))
        drafter.commit([verdict], [(states,)])
        (draft,) = drafter.propose([request], [9])
        return draft.tokens.tolist()

    whole = drafts()
    assert len(whole) == 6
    # The first token is doubtful; nothing is drafted below it. A tree does without it.
    assert drafts(min_path=1.0) == whole[:2]
    assert drafts(min_path=1e-9) == whole
    assert len(drafts(max_nodes=8)) == 9
    assert len(drafts(max_nodes=8, min_path=1.0)) == 1


def test_head_without_a_target_still_says_what_it_reads():
    from mtp_verify.heads import CausalHead, family
    from tests.heads import SIZES

    assert Heads(CausalHead(family("eagle").replace(sizes=SIZES))).hidden_layers == (-1,)


def test_target_without_hidden_states_is_refused():
    head = tiny_head("eagle", tiny_model("llama"))
    table = TableTarget(lambda path: [0.0] * 32, 32)
    with pytest.raises(mv.errors.UnsupportedModelError, match="gives no hidden states"):
        Decoder(table, Heads(head)).generate([1], max_new_tokens=5)
    with pytest.raises(
        mv.errors.UnsupportedModelError, match="from 32 tokens and the target knows 8"
    ):
        Decoder(TableTarget(lambda path: [0.0] * 8, 8), Heads(head))


@pytest.mark.parametrize(
    ("rule", "shape"),
    [("kseq", (2, 1)), ("gbv", (2, 1)), ("kseq", (2,)), ("global_resolution", (3, 2))],
)
def test_rules_of_drawn_trees_take_steps_without_a_draft(rule, shape):
    # The first step has no hidden states to draft from, and the last one no room.
    model = tiny_model("llama")
    drafter = Heads(
        tiny_head("medusa", model), shape=TreeShape.by_depth(*shape), law="iid", params=WARM
    )
    decoder = Decoder(model, drafter, mv.SamplingParams(), rule)
    found = decoder.generate(prompt(), max_new_tokens=9, seed=5)
    assert len(found.tokens[0]) == 9
    assert found.stats.drafted > 0
    plain = decoder.generate(prompt(), max_new_tokens=9, seed=5, speculate=False)
    assert len(plain.tokens[0]) == 9


def test_paths_keep_one_length_beyond_an_end_and_within_a_budget():
    # Rule gbv takes no others: below an end tokens are drafted on, and cut off with it.
    model = tiny_model("llama")
    drafter = Heads(tiny_head("eagle", model), shape=TreeShape.paths(3, 3), law="iid", params=WARM)
    ends = list(range(0, 32, 3))
    for planner in (None, mv.Planner(Costs({1: {1: 1.0, 9: 1.02}}), max_nodes=5)):
        decoder = Decoder(model, drafter, mv.SamplingParams(), "gbv", planner=planner)
        for seed in range(30):
            made = decoder.generate(prompt(), max_new_tokens=14, seed=seed, eos_token_id=ends)
            assert not set(made.tokens[0][:-1]) & set(ends)
            assert made.finish_reasons[0] == ("stop" if made.tokens[0][-1] in ends else "length")


@pytest.mark.parametrize("law", ["swor", "iid", "top_plus_one", "deterministic", "coupled"])
def test_a_shape_larger_than_a_plan_is_cut_to_it(law):
    model = tiny_model("llama")
    shape = Heads(
        tiny_head("eagle", model), shape=TreeShape.by_depth(3, 2, 1), law=law, params=WARM
    )
    seen = []
    propose = shape.propose

    def watch(requests, budgets):
        drafts = propose(requests, budgets)
        seen.extend(zip(budgets, drafts, strict=True))
        return drafts

    shape.propose = watch
    planner = mv.Planner(Costs({1: {1: 1.0, 9: 1.02}}), max_nodes=4)
    Decoder(model, shape, WARM, planner=planner).generate(prompt(), max_new_tokens=20, seed=1)
    assert all(draft.num_nodes - 1 <= budget for budget, draft in seen)
    assert any(0 < budget < 9 and draft.num_nodes > 1 for budget, draft in seen)


def test_an_illegal_rule_is_refused_before_anything_runs():
    model = tiny_model("llama")
    with pytest.raises(mv.errors.RuleError, match="kseq"):
        Decoder(model, Heads(tiny_head("medusa", model)), WARM, "kseq")
    forked = Heads(
        tiny_head("medusa", model), shape=TreeShape.by_depth(2, 2), law="iid", params=WARM
    )
    with pytest.raises(mv.errors.RuleError, match="rule gbv: found a shape of parents"):
        Decoder(model, forked, WARM, "gbv")
    with pytest.raises(mv.errors.RuleError, match="rule gbv: found a shape of parents"):
        Decoder(model, mv.drafters.Combined([mv.drafters.NGram(), forked]), WARM, "gbv")


def test_unknown_request_is_refused():
    drafter = Heads(tiny_head("eagle", tiny_model("llama")))
    with pytest.raises(mv.errors.DraftError, match="never started"):
        drafter.propose([Request(id=3, tokens=[1], prompt_len=1, seed=0)], [4])


DRAWN = {
    "chain": {},
    "shape": {"shape": TreeShape.by_depth(2, 1), "law": "top_plus_one"},
    "tree": {"max_nodes": 5},
}


@pytest.mark.parametrize("way", DRAWN)
def test_drafts_shaped_like_the_target_are_those_of_each_requests_own_shaping(way):
    head = tiny_head("eagle3", tiny_model("llama"))
    shapings = [mv.SamplingParams(temperature=0.6, top_k=3), GREEDY, mv.SamplingParams(top_p=0.5)]
    shapings = 4 * shapings
    greedy = {"chain": {}, "shape": {"shape": DRAWN["shape"].get("shape")}, "tree": DRAWN["tree"]}

    def draft(requests, settings):
        drafter = Heads(head, **settings)
        for request in requests:
            drafter.start(request)
        drafter.propose(requests, [0] * len(requests))
        drafter.commit([None] * len(requests), [tuple(random_hidden(head, 3)) for _ in requests])
        return drafter, drafter.propose(requests, [9] * len(requests))

    requests = [
        Request(id=n, tokens=[3, 7, 9, 2], prompt_len=3, params=params, seed=8 + n)
        for n, params in enumerate(shapings)
    ]
    drafter, found = draft(requests, {**DRAWN[way], "params": "target"})
    laws = {draft.law for draft in found}
    assert laws <= set(drafter.laws)
    assert laws == ({"deterministic"} if way == "tree" else set(drafter.laws))
    for request, own, params in zip(requests, found, shapings, strict=True):
        settings = {**DRAWN[way], "params": params} if params is not GREEDY else greedy[way]
        _, [wanted] = draft([request], settings)
        assert own.law == wanted.law
        assert own.tokens.tolist() == wanted.tokens.tolist()


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_of_greedy_and_sampled_requests_is_drafted_each_in_its_own_way(way):
    model = tiny_model("llama")
    drafter = Heads(tiny_head("eagle3", model), **WAYS[way])
    ids, params = prompt(6).repeat(4, 1), [GREEDY, WARM, GREEDY, WARM]
    seen, propose = [], drafter.propose

    def watch(requests, budgets):
        drafts = propose(requests, budgets)
        seen.extend(zip(requests, drafts, strict=True))
        return drafts

    drafter.propose = watch
    settings = {"max_new_tokens": 20, "seed": 3, "params": params}
    for rule in ("auto", "coupled"):
        decoder = Decoder(model, drafter, rule=rule)
        made = decoder.generate(ids, **settings)
        plain = decoder.generate(ids, speculate=False, **settings)
        same = [made.tokens[n] == plain.tokens[n] for n in range(4)]
        assert all(same) if rule == "coupled" else same[0] and same[2]
    is_drawn = WAYS[way].get("params") is not None or "law" in WAYS[way]
    for request, draft in seen:
        assert draft.num_nodes == 1 or draft.law in drafter.laws_for(request.params, request.rule)
    laws = {
        (request.params.is_greedy, request.rule): draft.law
        for request, draft in seen
        if draft.num_nodes > 1
    }
    assert len(laws) == 4
    if not is_drawn:
        drawn = {"tree": "deterministic", "chain": "chain", "shape": "swor"}[way]
        assert laws.pop((False, "auto")) == drawn
        assert set(laws.values()) == {"deterministic"}


@pytest.mark.parametrize("rule", ["coupled", "target_only"])
def test_rules_that_read_no_drafters_rows_get_the_likeliest_tokens(rule):
    head = tiny_head("eagle3", tiny_model("llama"))
    shape = TreeShape.by_depth(2, 1)
    for settings in ({}, {"shape": shape}, {"max_nodes": 4}):
        assert Heads(head, **settings).laws_for(WARM, rule) == ("deterministic",)
        assert Heads(head, **settings, params=None).laws_for(WARM, rule) == ("deterministic",)
    # What was asked for by name stays.
    asked = Heads(head, shape=shape, law="swor")
    assert asked.laws_for(WARM, rule) == ("swor",)
    assert asked.laws_for(GREEDY, rule) == ("deterministic",)
    assert Heads(head, params=WARM).laws_for(GREEDY, rule) == ("chain",)


def test_another_word_than_target_is_refused():
    with pytest.raises(mv.errors.ParamsError, match="params"):
        Heads(tiny_head("eagle3", tiny_model("llama")), params="draft")
