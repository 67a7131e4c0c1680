"""The loop is lossless: every branch of its chance, against decoding token by token.

What runs is the shipped loop (decoder, session, runners, caches of many requests, drafters,
planner, constraints) over tables in the place of models, once for each branch of what growers draw
and rules decide (`mtp_verify.testing.loop_law`). The law of all texts and of how each ended must be
that of plain decoding, multiplied out from the table's rows: total variation below 1e-12, in
float64. The theorem behind it is in docs/explanation/lossless-loops.md.

Loops that look at what was drawn are found: each double below is a plausible mistake, and its
distance is far above the bound. The cases marked slow are the same for more drafters, rules and
tokens.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.caches.settings import Paged
from mtp_verify.decoder.planning import Costs
from mtp_verify.decoder.runners import Each
from mtp_verify.decoder.sequences import Sequence
from mtp_verify.decoder.session import Session
from mtp_verify.drafters import Heads, Model
from mtp_verify.testing import TableTarget
from mtp_verify.verifier import growers
from tests.loops import WARM, Allowed, Case, Grown, Table, TableHead, over

BOUND = 1e-12
EMPTY = mv.Draft(mv.TokenTree([-1]), [-1])


TWO = over(2)
PAIRS = [(name, rule) for name, (_, rules) in TWO.items() for rule in rules]
BASE = Case(lambda: None, steps=3, length=5, looked_at=4)


def one_of(pairs, slow=()):
    marked = [pytest.param(*pair, marks=pytest.mark.slow) for pair in slow]
    return pytest.mark.parametrize(("name", "rule"), [*pairs, *marked])


def forbids_ones(path):
    """A grammar with dead ends: two ones in a row end it, and only a one may follow a first 0."""
    if path[-2:] == (1, 1):
        return set()
    return {1} if path == (0,) else {0, 1}


ENDS = Allowed(2, forbids_ones)


@one_of(PAIRS)
def test_every_drafter_and_rule_with_an_end(name, rule):
    assert BASE.but(drafter=TWO[name][0], rule=rule, eos=1).distance() < BOUND


# Rules that read rows of nodes before they accept them, and others.
QUICK = [
    ("plain", "auto"), ("chain", "token"), ("chain", "block"), ("n-gram", "auto"),
    ("head swor", "traversal"), ("head iid", "kseq"), ("head paths", "gbv"),
    ("head iid", "global_resolution"), ("head top-plus-one", "lifted_hu"),
    ("best-first tree", "auto"),
]  # fmt: skip


@one_of(QUICK, slow=[pair for pair in PAIRS if pair not in QUICK])
def test_dead_ends_of_a_grammar_are_those_of_plain_decoding(name, rule):
    case = BASE.but(drafter=TWO[name][0], rule=rule, constraint=ENDS, length=4, looked_at=None)
    assert case.plain((1, 0, 1))[(0, 1, 1), "error", "dead_end"] > 0.01
    assert case.distance() < BOUND


class Torn(Table):
    """A table with rows of NaN, which end a text with an error once it gets there."""

    def rows(self, path):
        torn = len(path) > 4 and path[-1] == 1
        return torch.full((self.vocab,), float("nan")) if torn else super().rows(path)


@one_of(
    [
        ("chain", "token"),
        ("head swor", "traversal"),
        ("head paths", "gbv"),
        ("head iid", "global_resolution"),
    ],
    slow=[("chain", "block"), ("stochastic", "auto"), ("union", "auto"), ("head iid", "kseq")],
)
def test_rows_that_are_no_distribution_matter_only_where_the_text_gets_to_them(name, rule):
    # What the step had accepted before such a row is lost with it: errors count as one outcome.
    case = BASE.but(drafter=TWO[name][0], rule=rule, target=Torn(2, 1), length=4, looked_at=None)
    assert case.plain((1, 0, 1))[(0, 1), "error", "row_not_finite"] > 0.01
    assert case.but(merges_errors=True).distance() < BOUND


class Doomed(Table):
    """A drafter's table with rows that are no distributions, behind some tokens only."""

    bad = (float("nan"), float("inf"), -float("inf"))

    def rows(self, path):
        row = super().rows(path)
        place = self.place(path) % 5
        return torch.full_like(row, self.bad[place % 3]) if path[-1] == 1 and place < 4 else row


class Whole(mv.Drafter):
    """Draws two tokens by itself, the second one from a row of NaN behind a one; looks at none."""

    laws = ("chain",)

    def __init__(self, drops=False):
        self.drops = drops

    def propose(self, requests, budgets):
        return [self.draft(*each) for each in zip(requests, budgets, strict=True)]

    def draft(self, request, budget):
        if budget < 2:
            return EMPTY
        own = {"seed": request.seed, "position": request.position, "greedy": False}
        chain = growers.Chain(2, root=request.tokens[-1], **own)
        chain.extend(Table(2, 2).rows(request.tokens)[None])
        first = int(chain.tokens[1])
        row = Table(2, 2).rows((*request.tokens, first))[None]
        if first == 0:
            chain.extend(row)
            return chain.finish()
        if self.drops:
            return EMPTY
        return mv.Draft(
            mv.TokenTree([-1, 0, 1]), [request.tokens[-1], 1, 0], law="chain",
            logits=torch.cat([Table(2, 2).rows(request.tokens)[None], row * float("nan")]),
            params=mv.SamplingParams(),
        )  # fmt: skip


DOOMED = over(2, Doomed(2, 2))
SPOILT = [pair for pair in PAIRS if pair[0].startswith(("chain", "doub", "greedy", "best", "head"))]
QUICK_SPOILT = [
    ("chain", "token"), ("chain", "gbv"), ("doubtful chain", "auto"), ("best-first tree", "auto"),
    ("head swor", "traversal"), ("head swor", "coupled"), ("head paths", "gbv"),
    ("head top-plus-one", "lifted_hu"), ("head heap", "auto"),
]  # fmt: skip


@one_of(QUICK_SPOILT, slow=[pair for pair in SPOILT if pair not in QUICK_SPOILT])
@pytest.mark.filterwarnings("ignore:.*costs speed")
def test_bad_rows_of_a_drafter_cost_speed_and_nothing_else(name, rule):
    case = BASE.but(drafter=DOOMED[name][0], rule=rule)
    assert case.distance() < BOUND
    assert case.but(eos=1, steps=None, looked_at=None, length=4).distance() < BOUND


@pytest.mark.filterwarnings("ignore:.*costs speed")
def test_what_was_drawn_above_a_bad_row_stays():
    # The second token is not drawn from its row, so the noise of the first one decides nothing.
    case = BASE.but(drafter=Whole, rule="token", length=4, looked_at=None, steps=None)
    assert case.distance() < BOUND
    assert case.but(drafter=lambda: Whole(drops=True)).distance() > 0.01


PROMPTS = ((1, 0, 1), (0, 0))
POOLED = Case(TWO["chain"][0], "token", prompts=PROMPTS, eos=1)


@pytest.mark.parametrize("num_blocks", range(1, 10))
def test_two_requests_in_a_pool_of_any_size(num_blocks):
    # From one block, in which neither prompt fits, to more than both can use.
    assert POOLED.but(pool=Paged(num_blocks, 1)).distance() < BOUND


@pytest.mark.parametrize(("num_blocks", "name"), [(4, "stochastic"), (3, "chain"), (5, "union")])
def test_two_requests_in_larger_blocks(num_blocks, name):
    case = POOLED.but(drafter=TWO[name][0], rule="auto", pool=Paged(num_blocks, 2))
    assert case.distance() < BOUND


def test_a_request_that_has_to_make_room_and_comes_back():
    seen = set()

    def watch(decoder, numbers):
        for _ in range(20):
            decoder.step()
            for waiting in decoder._session._waiting:
                seen.add(len(waiting.request.tokens) - waiting.request.prompt_len)
        return {}

    assert POOLED.but(pool=Paged(6, 1), script=watch).distance() < BOUND
    assert max(seen) > 0  # Some had emitted tokens when they went back to wait.


def test_requests_of_one_prompt_share_its_blocks():
    same = POOLED.but(prompts=((1, 0, 1), (1, 0, 1)))
    for num_blocks in (4, 6, 8):
        assert same.but(pool=Paged(num_blocks, 1)).distance() < BOUND


def test_a_request_that_is_cancelled_for_what_it_emitted():
    def script(decoder, numbers):
        ended = {}
        emitted = decoder.step()
        if emitted[numbers[0]][:1] == [1] and decoder.num_unfinished == 2:
            ended[numbers[1]] = decoder.cancel(numbers[1])
        return ended

    assert POOLED.but(script=script, pool=Paged(8, 1), eos=0).distance() < BOUND


@pytest.mark.parametrize("capacity", range(5, 9))
@pytest.mark.parametrize(
    "name", ["shape", "head swor", pytest.param("stochastic", marks=pytest.mark.slow)]
)
def test_a_cache_that_is_nearly_full(capacity, name):
    # With three tokens the size of a draft depends on what is drawn: below an end nothing is.
    three = over(3)
    case = Case(
        three[name][0], target=Table(3, 1), prompts=((1, 0),), length=4, steps=2, looked_at=3,
        eos=1, capacity=capacity,
    )  # fmt: skip
    assert case.distance() < BOUND


def planned():
    """A planner whose clock is a count, made anew for each run."""
    ticks = itertools.count()
    costs = Costs({1: {1: 1.0, 9: 1.3}, 2: {1: 1.0, 9: 1.5}})
    return {"planner": mv.Planner(costs, max_nodes=3, clock=lambda: 1e-6 * next(ticks))}


@pytest.mark.parametrize("name", ["chain", "first", "n-gram", "head paths", "head swor"])
def test_planned_drafts(name):
    drafter, rules = TWO[name]
    case = BASE.but(drafter=drafter, rule=rules[0], options=planned)
    assert case.distance() < BOUND
    assert case.but(eos=1, steps=None, looked_at=None).distance() < BOUND


def test_planned_drafts_of_two_requests():
    drafter = TWO["stochastic"][0]
    assert POOLED.but(drafter=drafter, rule="auto", options=planned).distance() < BOUND
    assert POOLED.but(
        drafter=drafter, rule="auto", options=planned, pool=Paged(7, 1)
    ).distance() < BOUND  # fmt: skip


@one_of([("chain", "token"), ("head chain", "block"), ("head swor", "traversal")])
def test_a_step_that_failed_for_what_was_drawn_is_done_again_with_it(name, rule):
    # The forward fails once at each place where the draft's first token is a one.
    case = BASE.but(drafter=TWO[name][0], rule=rule, steps=8, length=4, looked_at=None)
    assert case.but(fails=lambda tokens: tokens[1:2] == [1]).distance() < BOUND


def test_nobody_joins_a_step_that_is_done_again():
    # Another request would take the room of the drafts that were made; it waits for a step.
    joined = []

    def script(decoder, numbers):
        for _ in range(8):
            try:
                decoder.step()
            except RuntimeError:
                seed = 9 + len(joined)
                decoder.submit([1], max_new_tokens=2, seed=seed, eos_token_id=(), drafter=None)
                joined.append(len(decoder._session._waiting))
        return {}

    case = BASE.but(drafter=TWO["chain"][0], rule="token", pool=Paged(6, 1), length=4)
    case = case.but(fails=lambda tokens: tokens[1:2] == [1], script=script, looked_at=None)
    assert case.distance() < BOUND
    assert set(joined) == {1}


def test_a_head_that_failed_midway_drafts_the_same_again():
    class Breaks(TableHead):
        def step(self, state, parents, tokens):
            if tokens.tolist() == [1] and not getattr(state, "has_failed", False):
                state.has_failed = True
                raise RuntimeError("out of memory")
            return super().step(state, parents, tokens)

    def drafter():
        return Heads(Breaks(Table(2, 2)), params=WARM, num_tokens=2)

    assert BASE.but(drafter=drafter, rule="block", steps=8, length=4).distance() < BOUND


# Mistakes on purpose. Each looks at what was drawn, and drops, keeps or changes something for it.


class DropsLarge(Each):
    """Runs drafts of two nodes at most, and none instead of a larger one."""

    def forward(self):
        for sequence in self.sequences:
            if sequence.draft.num_nodes > 2:
                sequence.draft = EMPTY
        super().forward()


def drops_forbidden(self):
    """Leaves a draft out where one of its tokens is forbidden, drawn or not."""
    draft = self.draft
    _constrain(self)
    if self.request.matcher is not None and not self.request.matcher.masks(draft)[1].all():
        self.draft, self.masks = EMPTY, self.masks[:1]


_constrain = Sequence.constrain


class Doubtful(Model):
    """Drops its draft where the first token was improbable."""

    def _draft(self, request, state, budget):
        draft = super()._draft(request, state, budget)
        row = np.exp(Table(2, 2).rows(request.tokens).numpy())
        is_doubtful = draft.num_nodes > 1 and row[draft.tokens[1]] < row.mean()
        return EMPTY if is_doubtful else draft


class Looks(mv.Planner):
    """Gives the budget back where the draft begins with a one."""

    def propose(self, drafter, requests, plans):
        drafts = super().propose(drafter, requests, plans)
        return [EMPTY if draft.tokens[1:2].tolist() == [1] else draft for draft in drafts]


def by_first_token(rule, draft):
    """Verifies drafts that begin with a one by another rule."""
    return "target_only" if draft.tokens[1:2].tolist() == [1] else rule


def unmasked(table):
    """Draws from rows that know nothing of a constraint."""

    def make(request, budget, own):
        return growers.Chain(min(2, budget), greedy=False, **own)

    return lambda: Grown(table, ("chain",), make)


def test_a_cache_that_drops_large_drafts_is_found(monkeypatch):
    monkeypatch.setattr("mtp_verify.decoder.decode.Each", DropsLarge)
    case = BASE.but(drafter=TWO["chain"][0], rule="token", eos=1)
    assert case.distance() > 0.01


def test_a_constraint_that_drops_drawn_tokens_is_found(monkeypatch):
    case = BASE.but(drafter=unmasked(Table(2, 2)), rule="token", constraint=ENDS, length=4)
    assert case.distance() < BOUND
    monkeypatch.setattr(Sequence, "constrain", drops_forbidden)
    assert case.distance() > 0.01


def test_a_drafter_that_drops_what_it_has_drawn_is_found():
    def drafter():
        return Doubtful(TableTarget(Table(2, 2).rows, 2), num_tokens=2, params=WARM)

    assert BASE.but(drafter=drafter, rule="token", steps=2, looked_at=3).distance() > 0.01


def test_a_planner_that_looks_at_the_draft_is_found():
    def options():
        return {"planner": Looks(Costs({1: {1: 1.0, 9: 1.01}}), clock=itertools.count().__next__)}

    case = BASE.but(drafter=TWO["chain"][0], rule="token", options=options, eos=1, length=6)
    assert case.but(looked_at=None, steps=None).distance() > 0.01


def test_a_rule_chosen_by_the_draft_is_found(monkeypatch):
    original = mv.verify_batch

    def chosen(drafts, *args, rule, **options):
        rules = [by_first_token(name, draft) for name, draft in zip(rule, drafts, strict=True)]
        return original(drafts, *args, rule=rules, **options)

    monkeypatch.setattr("mtp_verify.decoder.verdicts.verify_batch", chosen)
    case = BASE.but(drafter=TWO["chain"][0], rule="token", steps=2, looked_at=3)
    assert case.distance() > 0.01


def test_a_retry_without_the_draft_is_found(monkeypatch):
    draft = Session._draft

    def forgets(self, sequences):
        if not any(sequence.is_drafted for sequence in sequences):
            draft(self, sequences)
            return
        for sequence in sequences:
            sequence.draft = EMPTY

    monkeypatch.setattr(Session, "_draft", forgets)
    case = BASE.but(drafter=TWO["head chain"][0], rule="block", steps=8, length=4, looked_at=None)
    assert case.but(fails=lambda tokens: tokens[1:2] == [1]).distance() > 0.01


def test_a_position_that_is_used_twice_is_found(monkeypatch):
    original = mv.verify_batch

    def verify_batch(*drafts, positions, **options):
        return original(*drafts, positions=[place // 2 for place in positions], **options)

    monkeypatch.setattr("mtp_verify.decoder.verdicts.verify_batch", verify_batch)
    with pytest.raises(mv.errors.ParamsError, match="answers two questions"):
        BASE.distance()


# The same for more: three tokens, no end or one, longer texts. Minutes.

THREE = over(3)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("eos", [None, 1])
@one_of(PAIRS)
def test_every_drafter_and_rule_over_three_tokens(name, rule, eos):
    heads = name.startswith("head")
    case = Case(
        THREE[name][0],
        rule,
        Table(3, 1),
        steps=2 + heads,
        length=4 + heads,
        looked_at=3 + heads,
        eos=eos,
    )
    assert case.distance() < BOUND


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("num_blocks", range(3, 12))
@pytest.mark.parametrize("name", ["chain", "stochastic", "union", "recycling", "first"])
def test_more_drafters_in_a_pool_of_any_size(name, num_blocks):
    case = POOLED.but(drafter=TWO[name][0], rule="auto", pool=Paged(num_blocks, 1), eos=0)
    assert case.distance() < BOUND
    assert case.but(options=planned).distance() < BOUND


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("num_blocks", [4, 6, 8, 12])
@pytest.mark.parametrize("name", ["chain", "head swor", "head paths", "stochastic"])
def test_dead_ends_of_two_requests_in_a_pool(name, num_blocks):
    drafter, rules = TWO[name]
    case = POOLED.but(drafter=drafter, rule=rules[-1], constraint=ENDS, eos=None)
    assert case.but(pool=Paged(num_blocks, 1)).distance() < BOUND
