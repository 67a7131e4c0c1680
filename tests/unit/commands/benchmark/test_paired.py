from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.commands.benchmark import report
from mtp_verify.commands.benchmark.paired import Expectation, expectations
from mtp_verify.commands.shared.entrants import ENTRANTS
from mtp_verify.commands.shared.prompts import BenchPrompt
from mtp_verify.decoder.decode import Decoder
from mtp_verify.testing import TableTarget
from tests.heads import tiny_head
from tests.models import prompt, tiny_model

GREEDY = mv.SamplingParams(temperature=0.0)
WARM = mv.SamplingParams(temperature=0.8, top_p=0.95)
HEADS = [entrant for entrant in ENTRANTS.values() if entrant.needs_head and not entrant.is_planned]
VOCAB = 6


class Given:
    """What `expectations` asks of an entrant, of a drafter that is there already."""

    name = "given"

    def __init__(self, drafter):
        self.drafter = drafter

    def make(self, model, head):
        return self.drafter


class Copies(mv.Drafter):
    """Drafts one chain of given tokens wherever it is."""

    def propose(self, requests, budgets):
        return [mv.Draft.chain([2, 4][:budget]) for budget in budgets]


class Draws(mv.Drafter):
    """Draws one token from a given row."""

    def __init__(self, row):
        self.row = row

    def propose(self, requests, budgets):
        return [
            mv.growers.Chain(min(1, budget), seed=request.seed, position=request.position).grow(
                lambda paths: self.row[None]
            )
            for request, budget in zip(requests, budgets, strict=True)
        ]


@pytest.fixture
def table():
    """A target whose row follows from the last token, and its probabilities."""
    logits = np.random.default_rng(4).normal(size=(VOCAB, VOCAB)).astype(np.float32)
    weights = np.exp(logits.astype(np.float64))
    return TableTarget(lambda path: logits[path[-1]], VOCAB), weights / weights.sum(1)[:, None]


def test_a_known_draft_is_accepted_as_often_as_the_products_of_its_rows_say(table):
    target, p = table
    text = [int(token) for token in np.random.default_rng(1).integers(VOCAB, size=20)]
    [found] = expectations(target, [1, 3], text, [Given(Copies())], mv.SamplingParams())
    wanted = [p[root, 2] * (1 + p[2, 4]) for root in text[::8]]
    assert found.accepted == pytest.approx(wanted, rel=1e-6)
    assert found.drafted == [2.0, 2.0, 2.0]


def test_draws_are_averaged_and_differ(table):
    # 4,000 draws of one token: acceptance has a mean of sum(min(p, q)), and each draw lies in
    # [0, 1], so that the mean of them misses by 0.044 with probability below 1e-6 (Hoeffding).
    target, p = table
    row = np.random.default_rng(2).normal(size=VOCAB).astype(np.float32)
    q = np.exp(row.astype(np.float64)) / np.exp(row.astype(np.float64)).sum()
    options = {"draws": 4000, "seed": 3}
    [found] = expectations(target, [1], [3], [Given(Draws(row))], mv.SamplingParams(), **options)
    assert found.accepted == [pytest.approx(np.minimum(p[3], q).sum(), abs=0.044)]
    one = [
        expectations(target, [1], [3], [Given(Draws(row))], mv.SamplingParams(), draws=1, seed=seed)
        for seed in range(20)
    ]
    assert len({each[0].accepted[0] for each in one}) > 1


@pytest.mark.parametrize("params", [GREEDY, WARM], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", [entrant.name for entrant in HEADS])
def test_a_head_drafts_at_a_place_as_it_does_in_a_decoder(name, params):
    """States, root and rows are the decoder's own: its verdicts are drawn from these means."""
    model = tiny_model("llama")
    head = tiny_head("mimo", model)
    seen = {}

    def watched(drafter, places):
        propose = drafter.propose

        def watch(requests, budgets):
            drafts = propose(requests, budgets)
            for request, budget, draft in zip(requests, budgets, drafts, strict=True):
                if budget > 16:  # Else the end of the text cuts it.
                    places[request.position] = request.tokens[:], request.seed, draft
            return drafts

        drafter.propose = watch
        return drafter

    drafter = watched(ENTRANTS[name].make(model, head), seen)
    seed = mv.derive_seed(9, 0)
    text = Decoder(model, drafter, params).generate(prompt(), max_new_tokens=60, seed=9).tokens[0]
    ours = {}
    entrant = Given(watched(ENTRANTS[name].make(model, head), ours))
    [found] = expectations(model, prompt()[0].tolist(), text, [entrant], params, draws=1, seed=9)
    assert len(found.accepted) == math.ceil(len(text) / 8)
    common = sorted(set(seen) & set(ours))[1:]  # The decoder's first step has no states yet.
    assert common
    for place in common:
        (tokens, own_seed, draft), (*given, mine) = seen[place], ours[place]
        assert given == [tokens, own_seed]
        assert own_seed == seed
        assert (mine.tree, mine.tokens.tolist()) == (draft.tree, draft.tokens.tolist())
        assert mine.law == draft.law
        at = list(ours).index(place)
        ids = torch.tensor([tokens])
        with torch.no_grad():
            rows = [
                model(torch.cat([ids, torch.tensor([below], dtype=torch.int64)], 1)).logits[0, -1]
                for below in (
                    [int(draft.tokens[step]) for step in draft.tree.path(node)]
                    for node in range(draft.num_nodes)
                )
            ]
        wanted = mv.expected_accepted(draft, torch.stack(rows), params)
        assert found.accepted[at] == pytest.approx(wanted, abs=1e-4)


def test_the_target_is_read_in_one_go_and_left_as_it_was(table):
    target, _ = table
    [found] = expectations(target, [1], [3] * 9, [Given(Copies())], GREEDY, draws=5)
    assert len(found.accepted) == 2
    assert target.num_forwards == 4  # At each place what was new, and one draft.


@pytest.mark.parametrize("kind", ["qwen3_next", "gemma3"])
def test_targets_that_cannot_be_cut_anywhere_are_read_too(kind):
    model = tiny_model(kind)
    head = tiny_head("mimo", model)
    text = Decoder(model, None, GREEDY).generate(prompt(), max_new_tokens=20).tokens[0]
    [found] = expectations(model, prompt()[0].tolist(), text, [ENTRANTS["head"]], GREEDY, head=head)
    assert len(found.accepted) == 3


def test_differences_are_taken_prompt_by_prompt():
    """Texts differ far more than drafters: the paired interval is narrow where tau's is wide."""
    prompts = [BenchPrompt(str(n), "talk", "text") for n in range(4)]
    pairs = [
        [
            Expectation("one", [value, value], [4.0, 4.0]),
            Expectation("two", [value + 0.5, value + 0.7], [8.0, 6.0]),
        ]
        for value in (0.0, 1.0, 2.0, 3.0)
    ]
    found = report._paired(pairs, {"all": range(len(prompts))})
    assert found["one"]["tau"]["all"].value == pytest.approx(2.5)
    assert found["two"]["tau"]["all"].value == pytest.approx(3.1)
    ahead = found["two"]["ahead"]["all"]
    assert (ahead.low, ahead.value, ahead.high) == pytest.approx((0.6, 0.6, 0.6))
    assert found["two"]["tau"]["all"].high > 4.5
    assert (found["two"]["drafted"], found["two"]["num_places"]) == (7.0, 8)
