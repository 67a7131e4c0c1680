from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mtp_verify as mv
from mtp_verify.testing import stats

# Computed beforehand, independently: samples for alpha 1e-4 and power 0.99, rounded down there.
CHI_SQUARE_TABLE = {
    24: (1_809, 7_236, 45_227, 180_911, 723_646),
    64: (2_491, 9_966, 62_287, 249_151, 996_606),
    256: (4_223, 16_895, 105_594, 422_378, 1_689_513),
    1024: (7_659, 30_639, 191_494, 765_976, 3_063_907),
}
# Computed beforehand, independently: both error rates 1e-9.
L1_TABLE = {16: (25_451, 159_068, 636_272), 64: (52_068, 325_424, 1_301_694)}


@pytest.mark.parametrize(
    ("statistic", "df", "wanted"),
    [
        # Published critical values; for even df also the closed form below.
        (3.841458820694124, 1, 0.05),
        (6.634896601021213, 1, 0.01),
        (18.307038053275146, 10, 0.05),
        (124.34211340400407, 100, 0.05),
        (0.0, 5, 1.0),
        (math.inf, 5, 0.0),
    ],
)
def test_survival_function_gives_published_values(statistic, df, wanted):
    assert stats.chi_square_sf(statistic, df) == pytest.approx(wanted, rel=1e-10)


@given(st.floats(0.01, 600), st.integers(1, 120))
def test_survival_function_is_the_closed_form_for_even_degrees(statistic, half):
    terms = [k * math.log(statistic / 2) - statistic / 2 - math.lgamma(k + 1) for k in range(half)]
    wanted = math.fsum(math.exp(term) for term in terms)
    found = stats.chi_square_sf(statistic, 2 * half)
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-13)


def test_noncentral_survival_is_what_simulation_gives(rng):
    means = np.array([3.0, 0, 0, 0, 1.0])
    draws = ((rng.normal(size=(200_000, 5)) + means) ** 2).sum(axis=1)
    found = stats.noncentral_chi_square_sf(15.0, 5, float(means @ means))
    assert found == pytest.approx((draws > 15).mean(), abs=0.005)


@pytest.mark.parametrize("cells", CHI_SQUARE_TABLE)
def test_chi_square_sample_sizes_are_those_of_the_table(cells):
    for tv, wanted in zip((0.1, 0.05, 0.02, 0.01, 0.005), CHI_SQUARE_TABLE[cells], strict=True):
        assert 0 <= stats.chi_square_num_samples(cells, tv, 1e-4, 0.99) - wanted <= 1


@pytest.mark.parametrize("cells", L1_TABLE)
def test_l1_sample_sizes_are_those_of_the_table(cells):
    found = tuple(stats.min_num_samples(cells, min_tv=tv, alpha=1e-9) for tv in (0.05, 0.02, 0.01))
    assert found == L1_TABLE[cells]


def test_the_three_l1_functions_agree():
    num = stats.min_num_samples(64, min_tv=0.05, alpha=1e-6)
    assert stats.min_discrepancy(64, num, alpha=1e-6) == pytest.approx(0.05, rel=1e-4)
    assert stats.l1_bound(64, num, stats.l1_radius(64, num, 1e-6)) == pytest.approx(1e-6)


@given(st.lists(st.floats(0, 30), min_size=1, max_size=40))
def test_pooled_cells_expect_enough_and_hold_every_outcome(expected):
    values = np.array(expected)
    cells = stats.pool(values)
    assert ((cells >= 0) == (values > 0)).all()
    sums = np.bincount(cells[cells >= 0], values[cells >= 0])
    assert len(sums) <= 1 or sums.min() >= 5 - 1e-9


@pytest.mark.parametrize("statistic", ["pearson", "g"])
def test_p_values_of_a_right_sampler_are_uniform(rng, statistic):
    law = rng.dirichlet(np.ones(30))
    found = [
        stats.fit(rng.multinomial(2_000, law), law, statistic=statistic).p_value for _ in range(400)
    ]
    shares = np.histogram(found, bins=4, range=(0, 1))[0] / 400
    assert abs(shares - 0.25).max() < 0.12


def test_an_impossible_outcome_fails_at_once():
    found = stats.fit([999, 1], [1.0, 0.0])
    assert (found.p_value, found.num_impossible) == (0.0, 1)


def test_a_law_of_one_outcome_passes_without_degrees_of_freedom():
    assert stats.fit([50, 0], [1.0, 0.0]).p_value == 1.0


def test_fits_add_up():
    one, other = stats.fit([60, 40], [0.5, 0.5]), stats.fit([45, 55], [0.5, 0.5])
    assert (one + other).statistic == pytest.approx(one.statistic + other.statistic)
    assert (one + other).df == 2


def test_independence_is_judged_whatever_the_margins(rng):
    law = np.array([0.6, 0.3, 0.1])
    other = np.array([0.2, 0.2, 0.6])
    independent = rng.multinomial(3_000, np.outer(other, other).reshape(-1)).reshape(3, 3)
    assert stats.independence(independent, law).p_value > 1e-4
    equal = np.diag(rng.multinomial(3_000, law))
    assert stats.independence(equal, law).p_value < 1e-100


def test_holm_is_step_down():
    assert stats.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert stats.holm([]) == []


@given(st.floats(1e-9, 0.5), st.integers(1, 9))
def test_looks_spend_the_level_and_no_more(alpha, num_looks):
    shares = stats.spend(alpha, num_looks)
    assert len(shares) == num_looks
    assert sum(shares) == pytest.approx(alpha)
    assert min(shares) > 0


@pytest.mark.parametrize("tv", [0.0, 0.15])
def test_intervals_cover_the_total_variation(rng, tv):
    law = rng.dirichlet(np.ones(40))
    order = np.argsort(-law)
    wrong = law.copy()
    wrong[order[0]] -= min(tv, law[order[0]])
    wrong[order[-1]] += min(tv, law[order[0]])
    true = np.abs(wrong - law).sum() / 2
    missed = 0
    for _ in range(100):
        first, second = rng.multinomial(2_000, wrong, size=2)
        simple = stats.tv_interval(first + second, law, alpha=0.05)
        split = stats.tv_interval_of_halves(first, second, law, alpha=0.05)
        missed += not simple.low <= true <= simple.high
        missed += not split.low <= true <= split.high
        assert split.low <= split.estimate <= split.high
    assert missed <= 10


def test_no_samples_say_nothing():
    assert stats.tv_interval([0, 0], [0.5, 0.5]) == stats.Interval(0.0, 0.0, 1.0)
    assert stats.tv_interval_of_halves([0, 0], [0, 0], [0.5, 0.5]).high == 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.chi_square_sf(1.0, 0),
        lambda: stats.chi_square_num_samples(1, 0.1, 1e-4),
        lambda: stats.min_num_samples(16, min_tv=0.0),
        lambda: stats.min_num_samples(16, min_tv=0.1, alpha=1.0),
        lambda: stats.l1_radius(16, 100, 0.0),
        lambda: stats.fit([1, 2], [1.0]),
        lambda: stats.fit([1, 2], [0.5, 0.5], statistic="magic"),
        lambda: stats.spend(0.1, 0),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(mv.errors.ParamsError, match="wanted"):
        call()


@pytest.mark.parametrize(
    ("df", "level", "value"),
    # Published two-sided critical values; one degree of freedom has the closed form tan.
    [(1, 0.95, 12.7062), (1, 0.5, 1.0), (2, 0.95, 4.3027), (10, 0.99, 3.1693), (30, 0.95, 2.0423)],
)
def test_t_quantile_gives_published_values(df, level, value):
    assert stats.t_quantile(df, level) == pytest.approx(value, rel=2e-5)
