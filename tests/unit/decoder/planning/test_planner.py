"""Budgets from synthetic costs: what pays is drafted, what does not is not."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify.decoder.planning import Costs, Plan, Planner
from mtp_verify.decoder.planning.budgets import best_budget, best_budgets
from mtp_verify.drafters import Combined, Request

FLAT = Costs({1: {1: 1.0, 33: 1.1}, 8: {1: 1.2, 33: 1.4}})
# What one CPU was measured to do: the second token costs half a forward, the next ones little.
STEP = Costs({1: {1: 1.0, 2: 1.5, 8: 1.8, 33: 3.4}})
STEEP = Costs({1: {1: 1.0, 2: 2.0, 33: 33.0}})


class Copies(mv.Drafter):
    """A pure drafter of chains that follow a text; `knows(position)` says if it has a guess."""

    is_pure = True

    def __init__(self, text, length=8, knows=lambda position: True):
        self.text, self.length, self.knows = text, length, knows
        self.budgets = []

    def propose(self, requests, budgets):
        self.budgets += budgets
        return [self._draft(r, b) for r, b in zip(requests, budgets, strict=True)]

    def _draft(self, request, budget):
        place = len(request.tokens)
        length = min(self.length, budget) if self.knows(place) else 0
        return mv.Draft.chain(self.text[place : place + length], root=request.tokens[-1])


class Slow(Copies):
    """One that has to be run: not pure, and every node takes time."""

    is_pure = False

    def __init__(self, text, clock, seconds, **options):
        super().__init__(text, **options)
        self.clock, self.seconds = clock, seconds

    def propose(self, requests, budgets):
        drafts = super().propose(requests, budgets)
        self.clock.now += self.seconds * sum(draft.num_nodes - 1 for draft in drafts)
        return drafts


class Reads(Slow):
    """One that reads the text first, as a head does: the whole of it, then what was added."""

    read = 0

    def propose(self, requests, budgets):
        (request,) = requests
        if budgets[0]:
            self.clock.now += 0.05 * (len(request.tokens) + 100 * (self.read == 0) - self.read)
            self.read = len(request.tokens)
        return super().propose(requests, budgets)


class FakeClock:
    now = 0.0

    def __call__(self):
        return self.now


def simulate(planner, drafter, text, costs, steps=10**6):
    """Decode a known text; return the plans, and tokens per cost of plain decoding."""
    request = Request(id=0, tokens=[text[0]], prompt_len=1, seed=0)
    plans, spent = [], 0.0
    while len(request.tokens) < len(text) and len(plans) < steps:
        (plan,) = planner.plan([request], [drafter], [len(text) - len(request.tokens) - 1])
        (draft,) = planner.propose(drafter, [request], [plan])
        forward = costs.forward(draft.num_nodes)
        path = []
        for node in range(1, draft.num_nodes):
            if draft.tokens[node] != text[len(request.tokens) + node - 1]:
                break
            path.append(node)
        place = len(request.tokens)
        request.tokens += text[place : place + len(path) + 1]
        planner.learn([request], [plan], [draft], [path], forward=forward)
        spent += forward + getattr(drafter, "seconds", 0.0) * (draft.num_nodes - 1)
        plans.append(plan)
    return plans, (len(request.tokens) - 1) / (spent / costs.forward(1))


TEXT = np.random.default_rng(1).integers(0, 1000, 400).tolist()
WRONG = [token + 1000 for token in TEXT]


@pytest.mark.parametrize("costs", [FLAT, STEP])
def test_good_drafts_are_run_in_full(costs):
    plans, speed = simulate(Planner(costs), Copies(TEXT), TEXT, costs)
    assert all(plan.budget >= 8 for plan in plans[9:-2])
    assert speed > 0.9 * 9 / costs.forward(9)


# Where width costs next to nothing, a few more tries do no harm.
@pytest.mark.parametrize(("costs", "tries"), [(FLAT, 20), (STEP, 2), (STEEP, 0)])
def test_wrong_drafts_are_hardly_ever_run(costs, tries):
    drafter = Copies(WRONG)
    plans, speed = simulate(Planner(costs), drafter, TEXT, costs)
    assert sum(plan.budget > 0 for plan in plans) <= tries
    assert speed > 0.99
    # And yet it was watched: a full draft at every step but the last, which has no room for one.
    assert len(drafter.budgets) >= len(plans) - 1


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_drafts_that_are_seldom_right_cost_a_bounded_share(seed, rate):
    rights = np.random.default_rng(seed).random(len(TEXT)) < rate
    guesses = np.where(rights, TEXT, WRONG).tolist()
    _, speed = simulate(Planner(STEP), Copies(guesses, length=6), TEXT, STEP)
    # 1 %, 0.3 of 400 steps, and the last draft that was run on credit.
    assert speed > 1 / 1.015


def test_what_was_earned_may_be_spent_and_what_was_lost_is_watched():
    # A text that copies, then does not, then copies again.
    drafter = Copies(TEXT, knows=lambda place: True)
    half = len(TEXT) // 2
    drafter.text = [token + (1000 if half - 60 < place < half else 0)
                    for place, token in enumerate(TEXT)]  # fmt: skip
    plans, speed = simulate(Planner(STEP), drafter, TEXT, STEP)
    assert plans[-3].budget >= 6
    assert speed > 2.5


def test_a_full_draft_that_fits_the_plan_is_not_made_twice():
    drafter = Copies(TEXT, length=4)
    simulate(Planner(FLAT), drafter, TEXT, FLAT, steps=20)
    assert len(drafter.budgets) == 20


def test_parts_of_a_combined_drafter_are_judged_apart():
    # Copies that are right, for every other run of 40 tokens; a slow model that is always wrong.
    clock = FakeClock()
    good = Copies(TEXT, knows=lambda place: place // 40 % 2)
    bad = Slow(WRONG, clock, 0.05)
    drafter = Combined([good, bad])
    plans, speed = simulate(Planner(STEP, clock=clock), drafter, TEXT, STEP)
    copying = [plan.budget for plan in plans[-12:]]
    assert max(copying) >= 6
    assert sum(plan.is_probe for plan in plans) < 12
    assert speed > 1.6


def test_where_every_token_costs_a_forward_nothing_pays():
    plans, _ = simulate(Planner(STEEP), Copies(TEXT), TEXT, STEEP)
    assert all(plan.budget == 0 for plan in plans)


def test_a_watched_drafter_is_taken_up_as_soon_as_it_turns_good():
    text = WRONG[:200] + TEXT[200:]
    plans, _ = simulate(Planner(STEP), Copies(TEXT), text, STEP)
    late = [plan.budget for plan in plans[200:]]
    assert next(n for n, budget in enumerate(late) if budget) < 12
    assert sum(plan.budget > 0 for plan in plans[:200]) <= 2


def test_budget_stops_where_drafts_go_wrong():
    # Two tokens right, the rest wrong, and width is cheap but not free.
    costs = Costs({1: {1: 1.0, 33: 2.6}})

    class TwoRight(Copies):
        def _draft(self, request, budget):
            place = len(request.tokens)
            tokens = (TEXT[place : place + 2] + WRONG[place + 2 : place + 8])[:budget]
            return mv.Draft.chain(tokens, root=request.tokens[-1])

    plans, _ = simulate(Planner(costs), TwoRight(TEXT), TEXT, costs)
    assert {plan.budget for plan in plans[60:-8]} == {2}


def test_a_drafter_that_must_be_run_is_probed_rarely_and_found_again():
    clock = FakeClock()
    text = WRONG[:300] + TEXT[300:]
    drafter = Slow(TEXT, clock, 0.01)
    plans, speed = simulate(Planner(STEP, clock=clock), drafter, text, STEP)
    early = [plan for plan in plans[:290] if plan.budget]
    # What was trained to guess gets one draft on credit.
    assert sum(not plan.is_probe for plan in early) <= 1
    assert all(plan.budget == 2 for plan in early if plan.is_probe)
    # An idle request's probe costs 1 %: about 0.57 of a forward every 57 steps.
    assert 4 <= len(early) <= 7
    assert speed > 0.98
    assert any(not plan.is_probe and plan.budget > 2 for plan in plans[300:])


def test_a_drafter_too_slow_to_pay_is_left_alone():
    clock = FakeClock()
    # As slow as the target itself: right guesses save nothing.
    plans, speed = simulate(Planner(FLAT, clock=clock), Slow(TEXT, clock, 1.0), TEXT, FLAT)
    assert all(plan.budget == 0 for plan in plans[:-2] if not plan.is_probe)
    assert speed > 0.95
    fast, _ = simulate(Planner(FLAT, clock=clock), Slow(TEXT, clock, 0.01), TEXT, FLAT)
    assert fast[-1].budget > 4


def test_same_past_same_plan():
    runs = [simulate(Planner(STEP), Copies(TEXT), TEXT, STEP)[0] for _ in range(2)]
    assert runs[0] == runs[1]


def test_plans_do_not_look_at_the_draft_that_they_are_for():
    # Two drafters that agree on the past and differ in what they are about to propose.
    plans = []
    for other in (TEXT, WRONG):
        source = list(TEXT)
        source[20:] = other[20:]
        planner, drafter = Planner(STEP), Copies(source)
        simulate(planner, drafter, TEXT[:20], STEP)
        request = Request(id=0, tokens=TEXT[:20], prompt_len=1, seed=0)
        plans.append(planner.plan([request], [drafter], [8])[0])
    assert plans[0] == plans[1]


def test_limits_and_missing_drafters_are_honoured():
    planner = Planner(FLAT, max_nodes=6)
    simulate(planner, Copies(TEXT), TEXT, FLAT, steps=20)
    requests = [Request(id=n, tokens=TEXT[:30], prompt_len=1, seed=0) for n in (0, 1, 2)]
    drafter = Copies(TEXT)
    plans = planner.plan(requests, [drafter, None, drafter], [3, 9, 0])
    assert plans[0].budget <= 3
    assert plans[1:] == [Plan(0), Plan(0)]


def test_forgotten_requests_start_anew():
    planner = Planner(STEP)
    drafter = Copies(TEXT)
    simulate(planner, drafter, TEXT, STEP, steps=30)
    request = Request(id=0, tokens=TEXT[:300], prompt_len=1, seed=0)
    assert planner.plan([request], [drafter], [9])[0].budget > 0
    planner.forget(request)
    planner.forget(request)
    assert planner.plan([request], [drafter], [9])[0].budget == 0


def test_one_good_request_does_not_widen_a_shared_forward_in_vain():
    # Width is dear: for one of eight it does not pay, for all eight it does.
    curve = 1.0 + 0.1 * np.arange(9)
    good, bad = np.full(8, 0.9) ** np.arange(1, 9), np.full(8, 0.01)
    ones, free = np.ones((8, 8)), np.zeros((8, 2))
    few = np.stack([good] + [bad] * 7)
    assert best_budget(ones, few, free, curve) == ([], 0)
    members, budget = best_budget(ones, np.stack([good] * 8), free, curve)
    assert sorted(members) == list(range(8))
    assert budget == 8


def joint_time(drafted, kept, curve, members, budget):
    """Requests' mean time for a token, by going through all sizes of the members' drafts."""
    cost = 0.0
    for sizes in itertools.product(range(budget + 1), repeat=len(members)):
        weight = 1.0
        for member, size in zip(members, sizes, strict=True):
            reach = [1.0, *drafted[member, :budget], 0.0]
            weight *= reach[size] - reach[size + 1]
        cost += weight * curve[max(sizes, default=0)]
    saved = 1.0 - 1.0 / (1.0 + kept[members, :budget].sum(axis=1))
    return (1.0 - saved.sum() / len(drafted)) * cost


def test_joint_choice_is_the_best_of_all_prefixes():
    rng = np.random.default_rng(5)
    for _ in range(50):
        drafted = np.sort(rng.random((3, 4)))[:, ::-1]
        kept = drafted * np.sort(rng.random((3, 4)))[:, ::-1]
        curve = 1.0 + np.concatenate([[0.0], rng.random(4).cumsum() * 0.3])
        members, budget = best_budget(drafted, kept, np.zeros((3, 2)), curve)
        order = np.argsort(-kept.sum(axis=1), kind="stable").tolist()
        options = itertools.product((1, 2, 3), (1, 2, 3, 4))
        best = min(joint_time(drafted, kept, curve, order[:m], b) for m, b in options)
        found = joint_time(drafted, kept, curve, members, budget)
        assert found == pytest.approx(best if best * 1.03 <= 1.0 else 1.0)


def test_reading_the_prompt_is_not_taken_for_the_price_of_a_draft():
    clock = FakeClock()
    drafter = Reads(TEXT, clock, seconds=0.02)
    plans, speed = simulate(Planner(STEP, clock=clock), drafter, TEXT, STEP)
    assert [plan.is_probe for plan in plans[:3]] == [True, True, False]
    assert all(plan.budget >= 6 for plan in plans[5:-2])
    assert speed > 3.0


def test_what_a_draft_costs_at_all_is_paid_once():
    # 2 for a draft, 0.1 for a node: one node does not pay, eight do.
    curve, ones = np.full(9, 4.0), np.ones((1, 8))
    kept, prices = np.full((1, 8), 0.9).cumprod(axis=1), np.array([[2.0, 0.1]])
    assert best_budget(ones, kept, prices, curve) == ([0], 8)
    assert best_budget(ones[:, :1], kept[:, :1], prices, curve[:2])[1] == 1
    assert best_budget(ones[:, :1], kept[:, :1] / 2, prices, curve[:2]) == ([], 0)


def test_requests_of_one_call_pay_once_for_drafting_at_all():
    # 1 for a call whoever takes part: for one of four that is too much, for all of them not.
    curve, ones = np.full(5, 4.0), np.ones((4, 4))
    kept, prices = np.full((4, 4), 0.3).cumprod(axis=1), np.full((4, 2), [1.0, 0.0])
    assert best_budget(ones, kept, prices, curve) == ([], 0)
    assert best_budget(ones, kept, prices, curve, calls=[0, 1, 2, 3]) == ([], 0)
    members, budget = best_budget(ones, kept, prices, curve, calls=[0, 0, 0, 0])
    assert (sorted(members), budget) == ([0, 1, 2, 3], 4)
    # By the definition: the mean time for a token, with what each call costs.
    for calls in ([0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 2, 3]):
        cost = 4.0 + 0.5 * len(set(calls))
        time = cost / (1 + kept[0].sum())
        found, _ = best_budget(ones, kept, prices / 2, curve, calls=calls)
        assert (len(found) == 4) == (time * 1.03 <= 4.0)


class Batched(Slow):
    """A head: so much for a call, whoever takes part, and little for a node."""

    def __init__(self, text, clock, call, **options):
        super().__init__(text, clock, 0.01, **options)
        self.call = call

    def propose(self, requests, budgets):
        drafts = super().propose(requests, budgets)
        self.clock.now += self.call * any(draft.num_nodes > 1 for draft in drafts)
        return drafts


@pytest.mark.parametrize(
    ("together", "call", "pays_alone"),
    [(True, 0.3, True), (False, 1.2, False)],
    ids=["together", "each"],
)
def test_requests_whose_drafts_share_a_call_share_its_price(together, call, pays_alone):
    """One guess is right in four cases of five: it saves each request 0.44 of a step's time."""
    right = np.random.default_rng(3).random(len(TEXT)) < 0.8
    text = [a if is_right else b for a, b, is_right in zip(TEXT, WRONG, right, strict=True)]

    def share_of_drafts(count):
        clock = FakeClock()
        drafter = Batched(text, clock, call, length=1)
        planner = Planner(Costs({1: {1: 1.0, 33: 1.1}}), clock=clock)
        requests = [Request(id=n, tokens=TEXT[: 1 + n], prompt_len=1, seed=n) for n in range(count)]
        num_drafted = num_steps = 0
        while len(requests[-1].tokens) < 380:
            drafters, limits = [drafter] * count, [8] * count
            plans = planner.plan(requests, drafters, limits, together=together)
            drafts = planner.propose(drafter, requests, plans)
            paths = []
            for request, draft in zip(requests, drafts, strict=True):
                place = len(request.tokens)
                is_right = draft.num_nodes > 1 and draft.tokens[1] == TEXT[place]
                paths.append([1] if is_right else [])
                request.tokens += TEXT[place : place + 1 + is_right]
            forward = planner.costs.forward(2) * (1 if together else count)
            planner.learn(requests, plans, drafts, paths, forward=forward, together=together)
            num_drafted += sum(draft.num_nodes > 1 for draft in drafts)
            num_steps += count
        return num_drafted / num_steps

    assert share_of_drafts(1) > 0.8 if pays_alone else share_of_drafts(1) < 0.2
    assert share_of_drafts(8) > 0.8


def test_bad_settings_are_refused():
    with pytest.raises(mv.errors.ParamsError, match="max_nodes"):
        Planner(FLAT, max_nodes=0)


def ragged_time(kept, prices, curve, budgets):
    """Time for a token of all requests where a forward costs what its nodes do."""
    nodes = sum(budgets)
    drafting = sum(
        fixed + unit * budget
        for (fixed, unit), budget in zip(prices, budgets, strict=True)
        if budget
    )
    tokens = [1.0 + kept[member, :budget].sum() for member, budget in enumerate(budgets)]
    forward = np.interp(nodes / len(kept), np.arange(len(curve)), curve)
    return (forward + drafting) / (curve[0] * np.mean(tokens))


@pytest.mark.parametrize("seed", range(40))
def test_ragged_budgets_are_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    kept = rng.uniform(0.05, 0.99, (3, 1)) ** np.arange(1, 5)
    curve = 1.0 + rng.uniform(0.0, 0.5) * np.arange(5)
    prices = np.stack([np.zeros(3), rng.uniform(0.0, 0.02, 3)], axis=1)
    found = best_budgets(np.ones((3, 4)), kept, prices, curve)
    options = list(itertools.product(range(5), repeat=3))
    least = min(ragged_time(kept, prices, curve, budgets) for budgets in options)
    mine = ragged_time(kept, prices, curve, found)
    assert mine <= 1.0
    # Nodes are taken in one order, by how likely they are to be kept: what they cost is equal but
    # for the small price of drafting them.
    assert mine <= max(least, 1.0 if least * 1.03 > 1.0 else 0.0) + 0.005


def test_ragged_batches_let_one_draft_where_a_padded_one_would_not():
    curve = 1.0 + 0.1 * np.arange(9)
    kept = np.stack([np.full(8, 0.9) ** np.arange(1, 9)] + [np.full(8, 0.01)] * 7)
    ones, free = np.ones((8, 8)), np.zeros((8, 2))
    assert best_budget(ones, kept, free, curve) == ([], 0)
    budgets = best_budgets(ones, kept, free, curve)
    assert budgets[0] >= 2
    assert budgets[1:] == [0] * 7


def test_ragged_drafts_of_one_call_pay_once_for_drafting_at_all():
    curve, ones = np.full(5, 4.0), np.ones((4, 4))
    kept, prices = np.full((4, 4), 0.3).cumprod(axis=1), np.full((4, 2), [1.0, 0.0])
    assert best_budgets(ones, kept, prices, curve, calls=[0, 1, 2, 3]) == [0] * 4
    assert best_budgets(ones, kept, prices, curve, calls=[0, 0, 0, 0]) == [4] * 4


def test_a_ragged_plan_gives_each_request_its_own_budget():
    costs = Costs({1: {1: 1.0, 9: 1.2}, 2: {1: 1.0, 9: 1.8}})
    planner = Planner(costs, max_nodes=8)
    text, noise = list(range(1, 200)), list(np.random.default_rng(1).permutation(200))
    requests = [
        Request(id=0, tokens=text[:40], prompt_len=1, seed=0),
        Request(id=1, tokens=[int(t) for t in noise[:40]], prompt_len=1, seed=0),
    ]
    drafter = Copies(text)
    for step in range(40, 80):
        plans = planner.plan(requests, [drafter, drafter], [8, 8], together=True, ragged=True)
        drafts = planner.propose(drafter, requests, plans)
        paths = [list(range(1, drafts[0].num_nodes))[:1], []]
        planner.learn(requests, plans, drafts, paths, forward=1.0, together=True, ragged=True)
        requests[0].tokens.append(text[step])
        requests[1].tokens.append(int(noise[step]))
    assert plans[0].budget > 2
    assert plans[1].budget == 0
