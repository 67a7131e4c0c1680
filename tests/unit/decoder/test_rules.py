"""One rule for the life of a request, and no noise that two of them, or two requests, share."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.caches.settings import Paged
from mtp_verify.decoder.options import rule_of_request
from mtp_verify.decoder.planning import Costs
from mtp_verify.drafters import Combined, Heads, Model, NGram, Recycling, Suffix, SuffixStore
from mtp_verify.drafters.recycling import _Store
from mtp_verify.drafters.store import Shelf, _Visit
from mtp_verify.testing import TableTarget, stats
from mtp_verify.verifier.growers import TreeShape
from tests.loops import WARM, Case, Table, TableHead, TableModel
from tests.models import StubDrafter

VOCAB = 6
TARGET, OTHER = Table(VOCAB, 1), Table(VOCAB, 2)


def coupled(**options):
    options = {"shape": TreeShape.by_depth(2, 1), "law": "coupled", "params": WARM, **options}
    return Heads(TableHead(OTHER), **options)


def sampled():
    return Model(TableTarget(OTHER.rows, VOCAB), num_tokens=2, params=WARM)


DRAFTERS = {
    "coupled": coupled,
    "first": lambda: Combined([Recycling(max_nodes=3), coupled()]),
    "nested": lambda: Combined([Suffix(min_match=1), Combined([sampled(), coupled()])]),
}


def planned():
    return {"planner": mv.Planner(Costs({1: {1: 1.0, 9: 1.2}}), max_nodes=3)}


@pytest.mark.parametrize("options", [dict, planned], ids=["", "planned"])
@pytest.mark.parametrize("name", DRAFTERS)
def test_auto_is_coupled_at_every_step_where_a_draft_may_be(name, options):
    # Then every token is that of plain decoding by the race: none has come from other noise.
    for seed in range(8):
        decoder = mv.Decoder(TableModel(TARGET), DRAFTERS[name](), **options())
        run = {"max_new_tokens": 12, "seed": seed, "eos_token_id": ()}
        plain = mv.Decoder(TableModel(TARGET), None, rule="coupled").generate([1, 0, 1], **run)
        made = decoder.generate([1, 0, 1], **run)
        assert made.tokens == plain.tokens
        assert made.stats.drafted > 0
        assert decoder.generate([1, 0, 1], speculate=False, **run).tokens == plain.tokens


def test_other_rules_take_coupled_drafts_at_every_step_or_never():
    drafter = DRAFTERS["nested"]()
    assert drafter.laws == ("deterministic", "chain", "coupled")
    assert rule_of_request("target_only", drafter, WARM) == "target_only"
    for rule in ("token", "block", "lifted"):
        with pytest.raises(mv.errors.RuleError, match=f'rule "{rule}" cannot verify law "coupled"'):
            mv.Decoder(TableModel(TARGET), drafter, rule=rule)
    lossy = mv.lossy.threshold(0.3)
    assert rule_of_request("auto", drafter, WARM, lossy) == "auto"
    assert rule_of_request("auto", sampled(), WARM) == "auto"


def test_coupled_drafts_of_a_drafter_that_does_not_say_so_are_refused():
    class Silent(StubDrafter):
        def draft(self, request, budget):
            if not budget:
                return super().draft(request, budget)
            return mv.Draft(mv.TokenTree([-1, 0]), [request.tokens[-1], 1], law="coupled")

    with pytest.raises(
        mv.errors.DraftError, match=r"Silent.propose: found a draft of the law"
    ) as caught:
        mv.Decoder(TableModel(TARGET), Silent()).generate([1], max_new_tokens=4, seed=0)
    assert caught.value.slug == "undeclared_law"
    made = mv.Decoder(TableModel(TARGET), Silent(), rule="coupled").generate(
        [1], max_new_tokens=4, seed=0
    )
    assert len(made.tokens[0]) == 4


class Sure(TableHead):
    """Drafts a zero, and below it from flat rows."""

    def read(self, state, hidden, tokens):
        return 0 * super().read(state, hidden, tokens) + torch.tensor([9.0] + [0.0] * (VOCAB - 1))


class Flat(Table):
    def __init__(self):
        super().__init__(VOCAB, 1, spread=0.0)


@pytest.mark.stat
def test_taking_turns_with_the_race_is_a_bias(monkeypatch):
    # Over flat rows a token equals the one before in one case of six. The table of `Recycling`
    # holds what the race drew for a position that is not emitted yet, and decides by it whether
    # the race or other noise draws that token. 1,500 texts: a right loop is refused with
    # probability 1e-9, a share of 0.106 or less is found with probability 1 - 1e-4 at least
    # (Hoeffding); the mixing loop has 0.09.
    count = 1_500

    def share_of_repeats():
        repeats = 0
        for seed in range(count):
            head = Heads(Sure(Flat()), shape=TreeShape.by_depth(1, 1), law="coupled", params=WARM)
            decoder = mv.Decoder(TableModel(Flat()), Combined([Recycling(max_nodes=2), head]))
            tokens = decoder.generate([0], max_new_tokens=5, seed=seed, eos_token_id=()).tokens[0]
            repeats += tokens[2] == tokens[1]
        return repeats / count

    radius = np.sqrt(np.log(2e9) / (2 * count))
    assert abs(share_of_repeats() - 1 / 6) < radius
    monkeypatch.setattr("mtp_verify.decoder.options.rule_of_request", lambda rule, *_: rule)
    monkeypatch.setattr("mtp_verify.decoder.session.check_draft", lambda *_: None)
    assert share_of_repeats() < 0.106


def test_what_cannot_be_verified_is_refused_before_anything_runs():
    for rule, drafter, match in (
        ("kseq", NGram(), 'rule "kseq" cannot verify law "deterministic"'),
        ("gbv", Combined([NGram(), sampled()]), 'rule "gbv" cannot verify law "deterministic"'),
        ("block", coupled(law="swor"), 'rule "block" cannot verify law "swor"'),
        ("gbv", coupled(shape=TreeShape.by_depth(2, 2), law="iid"), "rule gbv: found a shape"),
        ("best", None, 'rule "best"'),
    ):
        with pytest.raises(mv.errors.RuleError, match=match):
            mv.Decoder(TableModel(TARGET), drafter, rule=rule)
    decoder = mv.Decoder(TableModel(TARGET), NGram(), rule="greedy")
    with pytest.raises(mv.errors.RuleError, match="needs temperature 0"):
        decoder.submit([1], max_new_tokens=2)
    cold = mv.SamplingParams(temperature=0)
    assert len(decoder.generate([1], max_new_tokens=2, params=cold).tokens[0]) == 2


# Two requests with one seed draw with the same numbers.


def submit_two(decoder, params=None):
    decoder.submit([1, 0], max_new_tokens=3, seed=5, params=params)
    decoder.submit([1], max_new_tokens=3, seed=5)


@pytest.mark.parametrize("share", [{"cache": Paged(9, 1)}, "planned"], ids=["pool", "plans"])
def test_equal_seeds_are_refused_where_requests_share_what_sizes_drafts(share):
    options = planned() if share == "planned" else share
    decoder = mv.Decoder(TableModel(TARGET), sampled(), **options)
    with pytest.raises(mv.errors.ParamsError, match="have the seed 5 and share the") as caught:
        submit_two(decoder)
    assert caught.value.slug == "equal_seeds"
    assert decoder.num_unfinished == 1
    with pytest.raises(mv.errors.ParamsError, match="have the seed 5"):
        decoder.generate([1], max_new_tokens=2, seed=5)  # Its blocks are those of the first.
    with pytest.raises(mv.errors.ParamsError, match="have the seed 3"):
        decoder.generate([[1], [2]], max_new_tokens=2, seed=[3, 3])
    # What is emitted by the race, or greedily, does not depend on drafts.
    submit_two(mv.Decoder(TableModel(TARGET), sampled(), rule="coupled", **options))
    cold = mv.SamplingParams(temperature=0)
    submit_two(mv.Decoder(TableModel(TARGET), sampled(), cold, **options), cold)


def test_equal_seeds_are_what_they_are_where_nothing_is_shared():
    decoder = mv.Decoder(TableModel(TARGET), sampled())
    alone = decoder.generate([1, 0], max_new_tokens=6, seed=5)
    assert decoder.generate([[1, 0], [1, 0]], max_new_tokens=6, seed=[5, 5]).tokens == [
        alone.tokens[0], alone.tokens[0],
    ]  # fmt: skip


def _filled():
    """A store from which the first request drafts too: it then leaves what its noise accepted."""
    store = SuffixStore(1024)
    for text in product(range(3), repeat=2):
        store.add([1, 0, 1, *text])
    return store


# What two requests of one seed may share is kept apart by a function, which a mutant replaces.
SHARED = {
    "table": (
        lambda: Recycling(max_nodes=3, shared=True),
        (_Store, "table_of", lambda store, request: store.table),
    ),
    "texts": (
        lambda: Suffix(3, min_match=1, depth_factor=3.0, store=_filled()),
        (Shelf, "_visit", lambda shelf, request: _Visit(True, None, 0)),
    ),
}


@pytest.mark.stat
@pytest.mark.timeout(300)
@pytest.mark.parametrize("shared", SHARED)
def test_what_is_shared_by_equal_seeds_is_a_bias(monkeypatch, shared):
    # Each pair of requests has one seed. The second one's law, over 81 strings: chi-square at 1e-9;
    # a loop that shares a table has a total variation of 0.13, and a chi-square of about 500 at 80
    # degrees.
    make, mutant = SHARED[shared]
    case = Case(lambda: None, target=Table(3, 1), length=4)
    law = case.plain((1, 0, 1))
    strings = {tokens: place for place, (tokens, *_) in enumerate(law)}
    probs = np.array(list(law.values()))

    def p_value():
        counts = Counter()
        for seed in range(5_000):
            decoder = mv.Decoder(TableModel(case.target), make(), rule="target_only")
            run = {"max_new_tokens": 6, "seed": seed, "eos_token_id": ()}
            decoder.generate([1, 0, 1], **run)
            counts[strings[tuple(decoder.generate([1, 0, 1], **run).tokens[0][:4])]] += 1
        found = np.array([counts[place] for place in range(len(probs))])
        return stats.fit(found, probs / probs.sum()).p_value

    assert p_value() > 1e-9
    monkeypatch.setattr(*mutant)
    assert p_value() < 1e-9
