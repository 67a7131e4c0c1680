"""Tests and bounds for two samples whose laws are both unknown.

Counts are of the same cells in both. What is compared is the law of the cells: a difference between
strings that share a cell shows in none of these figures.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from mtp_verify.errors import ParamsError
from mtp_verify.testing import stats

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["fit_of_two", "num_samples_of_two", "tv_interval_of_two"]


def fit_of_two(first: ArrayLike, second: ArrayLike, *, min_expected: float = 5.0) -> stats.Fit:
    """Test whether counts (K,) of two samples were drawn from one law.

    Cells are pooled by both counts together until each sample expects `min_expected` in each: under
    one law the sums say nothing about the difference, so that pooling by them keeps the level.

    Example:
        >>> fit_of_two([52, 48], [49, 51]).p_value > 0.5
        True
    """
    one, other = _counts(first, second)
    sizes = one.sum(), other.sum()
    total = one + other
    smaller = min(sizes) / max(total.sum(), 1.0)
    cells = stats.pool(total * smaller, min_expected)
    count = int(cells.max(initial=-1)) + 1
    if count < 2:
        return stats.Fit(0.0, 0, 1.0, int(sum(sizes)), 0)
    kept = cells >= 0
    value = 0.0
    pooled = np.bincount(cells[kept], total[kept], count)
    for counts, size in zip((one, other), sizes, strict=True):
        expected = pooled * size / sum(sizes)
        seen = np.bincount(cells[kept], counts[kept], count)
        value += float(np.sum((seen - expected) ** 2 / expected))
    p_value = stats.chi_square_sf(value, count - 1)
    return stats.Fit(value, count - 1, p_value, int(sum(sizes)), 0)


def num_samples_of_two(cells: int, tv: float, alpha: float, power: float = 0.99) -> int:
    """Return the samples of each side after which `fit_of_two` finds a difference of `tv`.

    Twice those against a known law, of each: for laws p and q of the cells the noncentrality is
    n sum (p - q)^2 / (p + q), which is at least 2 n tv^2 (Cauchy-Schwarz over the roots of p + q).

    Example:
        >>> num_samples_of_two(24, 0.1, 1e-4)
        3620
    """
    return 2 * stats.chi_square_num_samples(cells, tv, alpha, power)


def tv_interval_of_two(
    first: ArrayLike, second: ArrayLike, *, alpha: float = 0.05
) -> stats.Interval:
    """Estimate the total variation between two samplers, from counts (2, K) of each.

    The rows of each are its two halves, as in `stats.tv_interval_of_halves`: one pair of halves
    chooses the cells that look too frequent, the other measures their excess. `low` bounds the
    total variation of whatever was put into cells; `high` bounds that of the cells alone. The
    interval misses with probability `alpha`.

    References:
        Hoeffding's inequality for each measured excess, McDiarmid's for the upper bound.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    sizes = np.stack([one.sum(axis=1), other.sum(axis=1)])
    if not sizes.all():
        return stats.Interval(0.0, 0.0, 1.0)
    gaps = one / sizes[0][:, None] - other / sizes[1][:, None]
    excess = [float(gaps[1][gaps[0] > 0].sum()), float(gaps[0][gaps[1] > 0].sum())]
    # Each of the three bounds errs with alpha / 3.
    noise = math.log(3 / alpha) / 2
    margins = np.sqrt(noise * (1 / sizes).sum(axis=0))[::-1]
    low = max(0.0, *(value - margin for value, margin in zip(excess, margins, strict=True)))
    totals = sizes.sum(axis=1)
    distance = float(np.abs(one.sum(axis=0) / totals[0] - other.sum(axis=0) / totals[1]).sum()) / 2
    high = min(1.0, distance + math.sqrt(noise * float((1 / totals).sum())))
    return stats.Interval(min(high, max(low, sum(excess) / 2)), float(low), high)


def _counts(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], ...]:
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.ndim != 1 or one.shape != other.shape:
        message = f"counts: found shapes {one.shape} and {other.shape}, wanted (K,) twice"
        raise ParamsError(message, slug="shape_mismatch")
    return one, other
