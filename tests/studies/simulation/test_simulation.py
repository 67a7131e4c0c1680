"""The simulator of serving: drafts, accelerators, policies, and what must hold whatever happens."""

from __future__ import annotations

import numpy as np
import pytest

from mtp_verify.decoder.planning import Costs
from mtp_verify.errors import ParamsError
from studies.simulation.cluster import Cluster, Job, arrivals, simulate
from studies.simulation.drafts import Drafts
from studies.simulation.hardware import Roofline
from studies.simulation.policies import Fixed, Planned

DRAFTS = Drafts([0.6, 0.1, 0.05], max_nodes=16)
FLAT = Costs({1: {1: 0.010, 33: 0.011}, 64: {1: 0.012, 33: 0.014}})


def cluster(**settings):
    return Cluster(**{"costs": FLAT, "drafts": DRAFTS, **settings})


def jobs(count=40, rate=20.0, **settings):
    return arrivals(count, rate, seed=3, prompt=40.0, length=30.0, **settings)


def test_larger_drafts_begin_with_smaller_ones():
    for size in range(16):
        assert DRAFTS.of(size).num_nodes == size + 1
        small, large = DRAFTS.of(size), DRAFTS.of(size + 1)
        assert small.tree.parents.tolist() == large.tree.parents.tolist()[: size + 1]
        assert small.tokens.tolist() == large.tokens.tolist()[: size + 1]


def test_accepted_tokens_are_as_many_as_expected():
    draws = np.random.default_rng(1)
    for budget, quality in ((1, 1.0), (8, 0.7), (16, 1.0)):
        lengths = [len(DRAFTS.accept(budget, quality, draws)) for _ in range(4000)]
        # Within five standard errors.
        error = 5 * np.std(lengths) / 4000**0.5
        assert np.mean(lengths) == pytest.approx(DRAFTS.expected(budget, quality), abs=error)
    assert DRAFTS.accept(16, 0.0, draws) == []


@pytest.mark.parametrize("rates", [[], [0.5, 0.6], [0.2, 0.4], [0.5, 0.0]])
def test_impossible_rates_are_refused(rates):
    with pytest.raises(ParamsError, match="rates"):
        Drafts(rates, max_nodes=4)


def test_one_plain_request_takes_a_forward_a_token_and_its_prompt():
    job = Job(0, arrival=1.0, prompt=33, length=5)
    outcome = simulate(cluster(), [job], lambda: Fixed(0))
    # 32 tokens of the prompt; the step runs the last one.
    assert job.end - job.arrival == pytest.approx(FLAT.forward(32) + 5 * FLAT.forward(1))
    assert outcome.tau == 1.0


def test_drafting_and_wide_forwards_take_their_time():
    job = Job(0, arrival=0.0, prompt=1, length=2, quality=0.0)
    simulate(cluster(level=0.5), [job], lambda: Fixed(1))
    # The last token has no room for a draft.
    assert job.end == pytest.approx(0.5 + FLAT.forward(2) + FLAT.forward(1))


@pytest.mark.parametrize("num_devices", [1, 3])
@pytest.mark.parametrize("policy", ["plain", "fixed", "planned"])
def test_every_job_ends_with_all_its_tokens(policy, num_devices):
    made = {
        "plain": lambda: Fixed(0),
        "fixed": lambda: Fixed(8),
        "planned": lambda: Planned(FLAT, DRAFTS, 0.0001, 16),
    }[policy]
    some = jobs()
    outcome = simulate(cluster(level=0.0001, num_devices=num_devices, max_batch=4), some, made)
    assert all(job.emitted == job.length for job in some)
    assert all(job.arrival < job.first <= job.end <= outcome.seconds for job in some)
    assert (outcome.tau == 1.0) == (policy == "plain")
    assert outcome.figures()["latency_p50"] <= outcome.figures()["latency_p99"]


def test_same_seed_same_outcome():
    runs = [simulate(cluster(), jobs(), lambda: Fixed(4), seed=7).figures() for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("budget", [0, 6])
def test_preempted_requests_end_too_and_leave_no_block_behind(budget):
    # Room for about two requests, and eight want in.
    small = cluster(num_blocks=24, block_size=4, max_batch=8)
    some = [Job(n, arrival=0.001 * n, prompt=20, length=40) for n in range(8)]
    outcome = simulate(small, some, lambda: Fixed(budget))
    assert outcome.preemptions > 0
    assert all(job.emitted == job.length for job in some)
    roomy = simulate(
        cluster(), [Job(n, 0.001 * n, 20, 40) for n in range(8)], lambda: Fixed(budget)
    )
    assert roomy.preemptions == 0
    assert outcome.seconds > roomy.seconds


def test_a_job_that_can_never_fit_is_refused():
    with pytest.raises(ParamsError, match="job 0"):
        simulate(cluster(num_blocks=4, block_size=4), [Job(0, 0.0, 10, 10)], lambda: Fixed(0))


def test_speculation_helps_where_the_roofline_is_memory_and_not_where_it_is_arithmetic():
    hardware = Roofline()
    alone = hardware.forward(9, 1) / hardware.forward(1, 1)
    crowded = hardware.forward(9, 512) / hardware.forward(1, 512)
    assert alone < 1.05
    assert crowded > 3


def test_planned_is_near_the_better_of_plain_and_fixed_at_both_ends():
    cheap = Costs({1: {1: 0.010, 33: 0.0105}})
    dear = Costs({1: {1: 0.010, 33: 0.330}})
    for costs in (cheap, dear):
        speed = {}
        for name, policy in {
            "plain": lambda: Fixed(0),
            "fixed": lambda: Fixed(8),
            "planned": lambda costs=costs: Planned(costs, DRAFTS, 0.0, 16),
        }.items():
            some = [Job(0, 0.0, 10, 1500, quality=0.9)]
            speed[name] = simulate(cluster(costs=costs), some, policy).figures()[
                "tokens_per_second"
            ]
        assert speed["planned"] > 0.93 * max(speed["plain"], speed["fixed"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_thousand_requests():
    drafts = Drafts([0.6, 0.1], max_nodes=4)
    some = arrivals(100_000, 400.0, seed=1, prompt=40.0, length=16.0)
    large = cluster(drafts=drafts, num_devices=8, num_blocks=2000, max_batch=64)
    outcome = simulate(large, some, lambda: Fixed(4))
    assert all(job.emitted == job.length for job in some)
    assert outcome.tau > 1.4
