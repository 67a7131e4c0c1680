"""Statistical assertions with stated error rates, for the tests of a decoder.

`min_num_samples` says how many samples show a bias that must not be missed,
`min_discrepancy` which bias a number of samples can show. The test is Weissman's L1 bound,
which holds for every sample size, so error rates of 1e-9 mean what they say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.errors import ParamsError
from mtp_verify.testing.stats import l1_radius, min_discrepancy, min_num_samples, spend, tv_interval

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from mtp_verify.testing.laws import JointLaw

__all__ = ["assert_sampler_has_law", "assert_same_law", "min_discrepancy", "min_num_samples"]


def assert_same_law(samples: Any, law: JointLaw, *, min_tv: float, alpha: float = 1e-9) -> None:
    """Fail if samples were not drawn from a law.

    A right sampler fails with probability `alpha` at most; one whose law is `min_tv` or more away
    in total variation passes with probability `alpha` at most.

    Args:
        samples: int (n, >= k) independent strings of tokens; the first k columns are compared.
        law: The exact law, as `exact_law` computes it.
        min_tv: The bias that must not be missed.
        alpha: Both error rates.

    Raises:
        AssertionError: Too few samples for `min_tv` (says how many are needed); a string of
            probability 0; or a law that differs (says by how much, and where most).
    """
    counts = law.counts(samples)
    needed = min_num_samples(_cells(law), min_tv=min_tv, alpha=alpha)
    num = int(counts.sum())
    if num < needed:
        what = f"{num} samples cannot show a total variation of {min_tv} at alpha={alpha}"
        message = f"{what}: {needed} are needed (min_discrepancy says what {num} can show)"
        raise AssertionError(message)
    _check(counts, law, alpha)


def assert_sampler_has_law(
    sampler: Callable[[int, int], Any],
    law: JointLaw,
    *,
    min_tv: float,
    alpha: float = 1e-9,
    num_looks: int = 4,
) -> int:
    """Draw samples and compare them as `assert_same_law` does; stop early at a clear bias.

    Args:
        sampler: `sampler(start, count)` returns int (count, >= k): the samples number `start` to
            `start + count - 1`, so that numbers can serve as seeds.
        law: The exact law.
        min_tv: The bias that must not be missed.
        alpha: Both error rates, over all looks together.
        num_looks: The sample doubles from look to look.

    Returns:
        How many samples were drawn: all that `min_tv` needs.

    Raises:
        AssertionError: As `assert_same_law`.
    """
    levels = spend(alpha, num_looks)
    total = min_num_samples(_cells(law), min_tv=min_tv, alpha=levels[-1], beta=alpha)
    counts = np.zeros(len(law.probs), np.int64)
    done = 0
    for look, level in enumerate(levels):
        goal = -(-total // 2 ** (num_looks - 1 - look))
        fresh = law.counts(sampler(done, goal - done))
        if int(fresh.sum()) != goal - done:
            message = f"sampler: found {int(fresh.sum())} samples, wanted {goal - done}"
            raise ParamsError(message, slug="shape_mismatch")
        counts += fresh
        done = goal
        _check(counts, law, level)
    return done


def _cells(law: JointLaw) -> int:
    return max(2, int(np.count_nonzero(law.probs)))


def _check(counts: NDArray[np.int64], law: JointLaw, alpha: float) -> None:
    num = int(counts.sum())
    impossible = np.flatnonzero((counts > 0) & (law.probs == 0))
    if impossible.size:
        first = law.string(int(impossible[0]))
        message = f"{int(counts[impossible].sum())} samples have probability 0, the first: {first}"
        raise AssertionError(message)
    difference = counts / num - law.probs
    distance, radius = float(np.abs(difference).sum()), l1_radius(_cells(law), num, alpha)
    if distance >= radius:
        worst = int(np.argmax(np.abs(difference)))
        tv = tv_interval(counts, law.probs, alpha=0.05)
        message = (
            f"the law differs: L1 distance {distance:.4f} >= {radius:.4f} over {num} samples and "
            f"{_cells(law)} strings; total variation {tv.estimate:.4f} (95 %: {tv.low:.4f} to "
            f"{tv.high:.4f}); most at {law.string(worst)}: {counts[worst] / num:.4f} seen, "
            f"{law.probs[worst]:.4f} expected"
        )
        raise AssertionError(message)
