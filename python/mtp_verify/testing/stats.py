"""Tests, bounds and sample sizes for comparing samples with a law that is known exactly.

Two families, for two uses. The L1 bound of Weissman holds for every sample size, so that a suite of
ten thousand assertions at 1e-9 keeps its promise; the chi-square test is asymptotic but finds a
bias with a fraction of the samples, which is what certifying a slow engine needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from mtp_verify.errors import ParamsError
from mtp_verify.verifier.intake import as_count, check_word

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Fit",
    "Interval",
    "chi_square_quantile",
    "chi_square_sf",
    "chi_square_num_samples",
    "fit",
    "holm",
    "independence",
    "l1_bound",
    "l1_radius",
    "min_discrepancy",
    "min_num_samples",
    "noncentral_chi_square_sf",
    "pool",
    "spend",
    "t_quantile",
    "tv_interval",
    "tv_interval_of_halves",
]

_TINY = 1e-300
_EPSILON = 1e-16


def chi_square_sf(statistic: float, df: float) -> float:
    """Return the probability that a chi-square variable with `df` degrees exceeds `statistic`.

    Example:
        >>> round(chi_square_sf(3.841458820694124, 1), 12)
        0.05

    References:
        Regularised incomplete gamma Q(df / 2, statistic / 2): series below a + 1, Lentz's continued
        fraction above (Numerical Recipes, section 6.2).
    """
    _check("df", df, "a positive number", holds=df > 0)
    if statistic <= 0:
        return 1.0
    if math.isinf(statistic):
        return 0.0
    a, x = df / 2, statistic / 2
    log_front = a * math.log(x) - x - math.lgamma(a)
    if x < a + 1:
        term = total = 1 / a
        n = a
        while abs(term) > abs(total) * _EPSILON:
            n += 1
            term *= x / n
            total += term
        return max(0.0, 1 - total * math.exp(log_front))
    b = x + 1 - a
    c, h, i, step = 1 / _TINY, 1 / b, 0, 0.0
    d = h
    while abs(step - 1) >= 10 * _EPSILON:
        i, b = i + 1, b + 2
        an = -i * (i - a)
        d = an * d + b
        d = 1 / (d if abs(d) > _TINY else _TINY)
        c = b + an / c
        c = c if abs(c) > _TINY else _TINY
        step = d * c
        h *= step
    return min(1.0, math.exp(log_front) * h)


def noncentral_chi_square_sf(statistic: float, df: float, noncentrality: float) -> float:
    """Return `chi_square_sf` of the noncentral law, which a biased sample's statistic has.

    References:
        A Poisson(noncentrality / 2) mixture of central laws with df + 2 j degrees of freedom, where
        sf(df + 2) = sf(df) + (x/2)^(df/2) exp(-x/2) / Gamma(df/2 + 1).
    """
    half = noncentrality / 2
    if half <= 0 or statistic <= 0:
        return chi_square_sf(statistic, df)
    count = int(half + 12 * math.sqrt(half) + 40)
    a, x = df / 2, statistic / 2
    log_gammas = np.array([math.lgamma(a + j + 1) for j in range(count)])
    steps = np.exp((a + np.arange(count)) * math.log(x) - x - log_gammas)
    survival = chi_square_sf(statistic, df) + np.concatenate(([0.0], np.cumsum(steps)))
    log_factorials = np.array([math.lgamma(j + 1) for j in range(count + 1)])
    weights = np.exp(np.arange(count + 1) * math.log(half) - half - log_factorials)
    return float(np.minimum(survival, 1) @ weights)


@lru_cache(maxsize=256)
def chi_square_quantile(alpha: float, df: float) -> float:
    """Return the statistic that is exceeded with probability `alpha`."""
    _check_rates(alpha=alpha)
    return _root(lambda x: chi_square_sf(x, df) - alpha, 0.0, df + 10.0)


@lru_cache(maxsize=256)
def t_quantile(df: int, level: float = 0.95) -> float:
    """Return what |t|, of `df` degrees of freedom, stays below with probability `level`."""
    _check("df", df, "a positive number", holds=df > 0)
    _check_rates(level=level)
    # With t = sqrt(df) * tan(a) the density is proportional to cos(a) ** (df - 1).
    angle = np.linspace(0.0, math.pi / 2, 20_001)
    density = np.cos(angle) ** (df - 1)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(df) * math.tan(float(np.interp(level, mass / mass[-1], angle)))


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Find where a falling function crosses 0, by doubling and bisection."""
    while falling(high) > 0:
        low, high = high, 2 * high
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return high


@lru_cache(maxsize=256)
def chi_square_num_samples(cells: int, tv: float, alpha: float, power: float = 0.99) -> int:
    """Return the samples after which a chi-square test finds a bias of total variation `tv`.

    Among all deviations of that size the one proportional to the law is the hardest; its
    noncentrality is 4 n tv^2. `cells` are 2 or more, counted after pooling; the test has the level
    `alpha` and finds the bias with probability `power`.

    Example:
        >>> chi_square_num_samples(24, 0.1, 1e-4)
        1810
    """
    _check_cells(cells)
    _check_rates(alpha=alpha, power=power)
    _check_tv(tv)
    df = cells - 1
    most = chi_square_quantile(alpha, df)
    needed = _root(lambda x: power - noncentral_chi_square_sf(most, df, x), 0.0, most + 10)
    return math.ceil(needed / (4 * tv * tv) - 1e-6)


def l1_bound(cells: int, num_samples: int, radius: float) -> float:
    """Bound P(||f - p||_1 >= radius) for the frequencies f of `num_samples` draws from p.

    References:
        Weissman et al. 2003: (2^K - 2) exp(-n radius^2 / 2) over K cells.
    """
    return min(1.0, math.exp(_log_sets(cells) - num_samples * radius * radius / 2))


def l1_radius(cells: int, num_samples: int, alpha: float) -> float:
    """Return the radius at which `l1_bound` is `alpha`."""
    _check_rates(alpha=alpha)
    return math.sqrt(2 * (_log_sets(cells) - math.log(alpha)) / num_samples)


def _log_sets(cells: int) -> float:
    _check_cells(cells)
    return cells * math.log(2) + math.log1p(-(2.0 ** (1 - cells)))


def min_num_samples(
    cells: int, *, min_tv: float, alpha: float = 1e-9, beta: float | None = None
) -> int:
    """Return how many samples let the L1 test miss a bias of `min_tv` with probability `beta`.

    Args:
        cells: Number of outcomes of the law.
        min_tv: The total variation to be found, in (0, 1].
        alpha: Probability of failing a right sampler.
        beta: Probability of passing one that is off by `min_tv`; `alpha` if None.

    Example:
        >>> min_num_samples(16, min_tv=0.05)
        25451
    """
    _check_tv(min_tv)
    beta = alpha if beta is None else beta
    _check_rates(alpha=alpha, beta=beta)
    # A bias of t moves the L1 distance by 2 t; the two radii must fit between.
    roots = [math.sqrt(2 * (_log_sets(cells) - math.log(rate))) for rate in (alpha, beta)]
    return math.ceil((sum(roots) / (2 * min_tv)) ** 2)


def min_discrepancy(
    cells: int, num_samples: int, *, alpha: float = 1e-9, beta: float | None = None
) -> float:
    """Return the least total variation that the L1 test is sure to find."""
    beta = alpha if beta is None else beta
    return (l1_radius(cells, num_samples, alpha) + l1_radius(cells, num_samples, beta)) / 2


@dataclass(frozen=True)
class Fit:
    """How well counts fit a law."""

    # Pearson's or G over the pooled cells; infinite if an outcome of probability 0 was seen.
    statistic: float
    df: int  # degrees of freedom: pooled cells - 1
    p_value: float  # probability of a statistic as large, if the law is right
    num_samples: int
    num_impossible: int  # samples that had probability 0

    def __add__(self, other: Fit) -> Fit:
        """Return the fit of two independent samples, each with its own law."""
        statistic, df = self.statistic + other.statistic, self.df + other.df
        p_value = chi_square_sf(statistic, df) if df else float(not math.isinf(statistic))
        counts = self.num_samples + other.num_samples, self.num_impossible + other.num_impossible
        return Fit(statistic, df, p_value, *counts)


def pool(expected: NDArray[np.float64], min_expected: float = 5.0) -> NDArray[np.int64]:
    """Give each outcome the number of a cell, so that each cell expects at least `min_expected`.

    The rarest outcomes share cells, outcomes that expect nothing get -1, and there is one cell if
    all together expect less. Cells depend on the expected counts (K,), never on what was observed.

    Returns:
        int64 (K,): the cell of each outcome, 0, 1, ... with the rarest first.
    """
    cells = np.full(len(expected), -1, np.int64)
    cell, mass = 0, 0.0
    order = [i for i in np.argsort(expected, kind="stable") if expected[i] > 0]
    left = float(np.sum(expected))
    for i in order:
        if mass >= min_expected and left >= min_expected:
            cell, mass = cell + 1, 0.0
        cells[i] = cell
        mass += float(expected[i])
        left -= float(expected[i])
    return cells


def fit(
    counts: ArrayLike, law: ArrayLike, *, statistic: str = "pearson", min_expected: float = 5.0
) -> Fit:
    """Test whether counts (K,) of outcomes were drawn from a law (K,).

    The statistic is "pearson" or "g" (the likelihood ratio); `min_expected` is that of `pool`.

    Example:
        >>> fit([52, 48], [0.5, 0.5]).p_value > 0.5
        True
    """
    observed = np.asarray(counts, np.float64)
    probs = np.asarray(law, np.float64)
    if observed.shape != probs.shape or observed.ndim != 1:
        message = f"counts and law: found shapes {observed.shape} and {probs.shape}, wanted (K,)"
        raise ParamsError(message, slug="shape_mismatch")
    check_word("statistic", statistic, ("pearson", "g"))
    num = int(observed.sum())
    expected = probs * num
    impossible = int(observed[probs == 0].sum())
    cells = pool(expected, min_expected)
    count = int(cells.max(initial=-1)) + 1
    if impossible or count < 2:
        wrong = math.inf if impossible else 0.0
        return Fit(wrong, max(count - 1, 0), float(not impossible), num, impossible)
    seen = np.bincount(cells[cells >= 0], observed[cells >= 0], count)
    wanted = np.bincount(cells[cells >= 0], expected[cells >= 0], count)
    if statistic == "pearson":
        value = float(np.sum((seen - wanted) ** 2 / wanted))
    else:
        value = float(2 * np.sum(seen * np.log(np.where(seen > 0, seen, 1) / wanted)))
    return Fit(value, count - 1, chi_square_sf(value, count - 1), num, 0)


def independence(pairs: ArrayLike, law: ArrayLike, *, min_expected: float = 5.0) -> Fit:
    """Test from counts (K, K) of pairs whether their members are independent.

    Their own laws may be wrong: `law` (K,), which either should have, says which outcomes are
    pooled, so that each pair of pooled ones expects at least `min_expected`.

    Example:
        >>> independence([[50, 0], [0, 50]], [0.5, 0.5]).p_value < 1e-9
        True
    """
    table, probs = np.asarray(pairs, np.float64), np.asarray(law, np.float64)
    num = float(table.sum())
    cells = pool(probs * math.sqrt(num), math.sqrt(min_expected))
    count = int(cells.max(initial=-1)) + 1
    seen = np.zeros((max(count, 1),) * 2)
    # What has probability 0 is the other tests' finding; here it joins the rarest cell.
    np.add.at(seen, np.ix_(np.maximum(cells, 0), np.maximum(cells, 0)), table)
    seen = seen[seen.sum(axis=1) > 0][:, seen.sum(axis=0) > 0]
    df = (seen.shape[0] - 1) * (seen.shape[1] - 1)
    if num == 0 or df < 1:
        return Fit(0.0, 0, 1.0, int(num), 0)
    wanted = np.outer(seen.sum(axis=1), seen.sum(axis=0)) / num
    value = float(np.sum((seen - wanted) ** 2 / wanted))
    return Fit(value, df, chi_square_sf(value, df), int(num), 0)


@dataclass(frozen=True)
class Interval:
    """An estimate between two bounds that hold together with the stated confidence."""

    estimate: float
    low: float
    high: float


def tv_interval(counts: ArrayLike, law: ArrayLike, *, alpha: float = 0.05) -> Interval:
    """Estimate the total variation between a sampler and a law, from counts of its outcomes.

    Frequencies alone differ from any law by noise, so the plain distance overstates small biases:
    the lower bound takes that off, and is 0 where noise explains everything. Counts and law are
    (K,); the interval misses with probability `alpha`.

    References:
        McDiarmid's inequality around E[distance], which lies between tv and
        tv + sqrt((K - 1) / n) / 2 (Jensen; Cauchy-Schwarz over the standard deviations).
    """
    observed, probs = np.asarray(counts, np.float64), np.asarray(law, np.float64)
    num = float(observed.sum())
    if num == 0:
        return Interval(0.0, 0.0, 1.0)
    distance = float(np.abs(observed / num - probs).sum()) / 2
    margin = math.sqrt(math.log(2 / alpha) / (2 * num))
    noise = math.sqrt((len(probs) - 1) / num) / 2
    return Interval(distance, max(0.0, distance - margin - noise), min(1.0, distance + margin))


def tv_interval_of_halves(
    first: ArrayLike, second: ArrayLike, law: ArrayLike, *, alpha: float = 0.05
) -> Interval:
    """Estimate as `tv_interval`, but from two halves of a sample: tighter for many outcomes.

    One half chooses the set of outcomes that look too frequent, the other measures that set's
    excess, which has no noise of choosing in it; then the halves change places. Counts of both and
    the law are (K,); the interval misses with probability `alpha`.

    References:
        Hoeffding's inequality for each measured excess, McDiarmid's for the upper bound.
    """
    probs = np.asarray(law, np.float64)
    halves = [np.asarray(half, np.float64) for half in (first, second)]
    sizes = [float(half.sum()) for half in halves]
    if not all(sizes):
        return Interval(0.0, 0.0, 1.0)
    one, two = (half / size for half, size in zip(halves, sizes, strict=True))
    excess = [float((b - probs)[a > probs].sum()) for a, b in ((one, two), (two, one))]
    # Each of the three bounds errs with alpha / 3.
    margins = [math.sqrt(math.log(3 / alpha) / (2 * size)) for size in reversed(sizes)]
    low = max(0.0, *(value - margin for value, margin in zip(excess, margins, strict=True)))
    distance = float(np.abs(sum(halves) / sum(sizes) - probs).sum()) / 2
    high = min(1.0, distance + math.sqrt(math.log(3 / alpha) / (2 * sum(sizes))))
    return Interval(min(high, max(low, sum(excess) / 2)), low, high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of several tests: rejecting those below alpha errs with at most alpha.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    References:
        Holm 1979, the step-down form of Bonferroni's inequality; no independence needed.
    """
    count = len(p_values)
    adjusted = [1.0] * count
    largest = 0.0
    for rank, i in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def spend(alpha: float, num_looks: int) -> list[float]:
    """Split a level over looks at a growing sample, so that stopping at any of them is allowed.

    The last look, the only one that can pass, gets half; each earlier one half of what is left.

    Example:
        >>> spend(0.01, 3)
        [0.0025, 0.0025, 0.005]
    """
    num_looks = as_count("num_looks", num_looks)
    shares = [alpha / 2 ** (i + 1) for i in range(num_looks - 1)]
    return [*reversed([*shares, alpha - sum(shares)])]


def _check(name: str, found: float, wanted: str, *, holds: bool) -> None:
    if not holds:
        message = f"{name}: found {found}, wanted {wanted}"
        raise ParamsError(message, slug="param_out_of_range")


def _check_cells(cells: int) -> None:
    _check("cells", cells, "at least 2: a law with one outcome needs no test", holds=cells >= 2)


def _check_rates(**rates: float) -> None:
    for name, value in rates.items():
        _check(name, value, f"0 < {name} < 1", holds=0 < value < 1)


def _check_tv(value: float) -> None:
    _check("tv", value, "0 < tv <= 1", holds=0 < value <= 1)
