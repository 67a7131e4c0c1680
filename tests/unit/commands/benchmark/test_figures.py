from __future__ import annotations

import math

import numpy as np
import pytest

from mtp_verify.commands.benchmark.figures import geometric_mean, ratio, tau
from mtp_verify.decoder.generation import Stats


def test_tau_is_the_ratio_of_sums_not_the_mean_of_ratios():
    runs = [Stats(steps=10, emitted=30), Stats(steps=1, emitted=1), Stats(steps=9, emitted=9)]
    assert tau(runs).value == 2.0
    assert tau(runs).num_prompts == 3


def test_equal_prompts_have_an_interval_of_no_width():
    estimate = ratio([4.0] * 5, [2.0] * 5)
    assert (estimate.low, estimate.value, estimate.high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("count", [1, 2])
def test_few_prompts_have_no_interval(count):
    assert ratio([3.0] * count, [2.0] * count).low is None
    assert geometric_mean([3.0] * count).high is None


def test_equal_denominators_give_the_interval_of_a_mean():
    values = [1.0, 2.0, 6.0]
    estimate = ratio(values, [1.0] * 3)
    margin = 4.302653 * np.std(values, ddof=1) / math.sqrt(3)
    assert estimate.value == 3.0
    assert estimate.high - estimate.value == pytest.approx(margin, rel=1e-6)


def test_intervals_hold_the_truth_as_often_as_they_say(rng):
    # 2,000 intervals at 95 %: fewer than 1,840 or more than 1,960 would be a chance below 1e-6
    # (binomial); the ratio's interval is approximate, so the range is not symmetric.
    hits = 0
    for _ in range(2_000):
        steps = rng.integers(20, 40, size=20)
        emitted = steps * rng.uniform(1.0, 3.0, size=20)
        estimate = ratio(emitted, steps)
        hits += estimate.low <= 2.0 <= estimate.high
    assert 1_840 <= hits <= 1_960


def test_geometric_mean_treats_twice_and_half_alike():
    estimate = geometric_mean([0.5, 2.0, 1.0])
    assert estimate.value == pytest.approx(1.0)
    assert estimate.low * estimate.high == pytest.approx(1.0)
