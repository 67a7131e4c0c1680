"""Tests of two samples whose laws are unknown. Fixed seeds; the sizes are in each test."""

from __future__ import annotations

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify.testing.two_samples import fit_of_two, num_samples_of_two, tv_interval_of_two


def tilted(law, tv):
    """The law at a distance of `tv` that is the hardest to find: in proportion to itself."""
    up = np.arange(len(law)) % 2 == 0
    return law * np.where(up, 1 + tv / law[up].sum(), 1 - tv / law[~up].sum())


def test_two_samples_of_one_law_fail_as_often_as_they_should(rng):
    # 2,000 pairs of 400 draws, of 30 cells of which many are rare: 20 below 0.01 in the mean, more
    # than 38 with probability 1e-4.
    law = rng.dirichlet(np.full(30, 0.3))
    counts = rng.multinomial(400, law, (2_000, 2))
    found = [fit_of_two(*pair).p_value for pair in counts]
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)
    assert sum(p < 0.01 for p in found) <= 38


def test_sizes_that_differ_keep_the_level(rng):
    law = rng.dirichlet(np.ones(12))
    found = [
        fit_of_two(rng.multinomial(300, law), rng.multinomial(1_500, law)).p_value
        for _ in range(1_000)
    ]
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)
    assert sum(p < 0.01 for p in found) <= 24


def test_the_samples_needed_find_what_they_should(rng):
    # 100 pairs at power 0.9: fewer than 80 are found with probability 2e-3.
    law = rng.dirichlet(np.full(20, 2.0))
    other = tilted(law, 0.1)
    assert np.abs(law - other).sum() / 2 == pytest.approx(0.1)
    count = num_samples_of_two(20, 0.1, 0.01, 0.9)
    found = [
        fit_of_two(rng.multinomial(count, law), rng.multinomial(count, other)).p_value < 0.01
        for _ in range(100)
    ]
    assert sum(found) >= 80


def test_the_interval_holds_the_distance(rng):
    law = rng.dirichlet(np.full(20, 2.0))
    for tv in (0.0, 0.1, 0.3):
        other = tilted(law, tv)
        for _ in range(50):
            found = tv_interval_of_two(
                rng.multinomial(3_000, law, 2), rng.multinomial(3_000, other, 2)
            )
            assert found.low <= tv <= found.high
            assert found.low <= found.estimate <= found.high
        assert (found.low > 0) == (tv > 0)


def test_nothing_drawn_says_nothing():
    assert fit_of_two([0, 0], [0, 0]).p_value == 1
    assert fit_of_two([3, 0], [0, 0]).p_value == 1
    assert tv_interval_of_two(np.zeros((2, 3)), np.ones((2, 3))).high == 1


def test_counts_of_other_cells_are_refused():
    with pytest.raises(mv.errors.ParamsError, match=r"wanted \(K,\) twice"):
        fit_of_two([1, 2], [1, 2, 3])
