"""From runs to figures with intervals.

The unit that varies is the prompt: steps of one text are not independent. Intervals of tau are
those of a ratio of sums (linearised, Student's t over prompts); intervals of a speed-up are those
of the mean of its logarithm, prompt by prompt. With fewer than three prompts there is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mtp_verify.testing.stats import t_quantile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.decoder.generation import Stats

__all__ = ["Estimate", "geometric_mean", "ratio", "tau"]

_LEVEL = 0.95
_MIN_PROMPTS = 3  # the spread of two says next to nothing: t is 12.7 there


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, whose ends are None with fewer than three prompts."""

    value: float
    low: float | None
    high: float | None
    num_prompts: int


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Return sum over sum, one term of each a prompt; the denominators' sum is positive."""
    top, bottom = np.asarray(numerators, float), np.asarray(denominators, float)
    value = float(top.sum() / bottom.sum())
    count = len(top)
    if count < _MIN_PROMPTS:
        return Estimate(value, None, None, count)
    residual = (top - value * bottom) / bottom.mean()
    error = float(np.sqrt((residual**2).sum() / (count * (count - 1))))
    margin = error * t_quantile(count - 1, _LEVEL)
    return Estimate(value, value - margin, value + margin, count)


def tau(stats: Sequence[Stats]) -> Estimate:
    """Return the mean of emitted tokens per step over the runs of several prompts."""
    return ratio([run.emitted for run in stats], [run.steps for run in stats])


def geometric_mean(ratios: Sequence[float]) -> Estimate:
    """Return the geometric mean of positive numbers, one a prompt."""
    logs = np.log(np.asarray(ratios, float))
    count = len(logs)
    middle = float(logs.mean())
    if count < _MIN_PROMPTS:
        return Estimate(math.exp(middle), None, None, count)
    margin = float(logs.std(ddof=1)) / math.sqrt(count) * t_quantile(count - 1, _LEVEL)
    return Estimate(math.exp(middle), math.exp(middle - margin), math.exp(middle + margin), count)
