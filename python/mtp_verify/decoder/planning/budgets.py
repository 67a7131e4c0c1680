"""How many nodes the drafts of one step shall have.

Where a shared step is for all as wide as its widest draft, what counts is the mean over the
requests of their time for a token (the harmonic mean of their speeds): by their sum of tokens per
second one request that copies would outweigh seven that wait for it. Where a step costs what its
nodes do, that sum is what counts: a request that copies pays for its own nodes, and ends sooner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["MARGIN", "best_budget", "best_budgets"]

# Drafting must promise this much over plain decoding: estimates are noisy, plain decoding is sure.
MARGIN = 1.03


def best_budget(
    drafted: NDArray[np.float64],
    kept: NDArray[np.float64],
    prices: NDArray[np.float64],
    curve: NDArray[np.float64],
    margin: float = MARGIN,
    calls: Sequence[int] = (),
) -> tuple[list[int], int]:
    """Choose who drafts, and how much, where a step is for all as wide as its widest draft.

    Args:
        drafted: (B, L) probability that each request's node 1, 2, ... is drafted.
        kept: (B, L) probability that it is drafted and accepted.
        prices: (B, 2) seconds of drafting at all, and for each node.
        curve: (L+1,) seconds of the forward by the largest number of draft nodes.
        margin: the gain over plain decoding that must be promised.
        calls: (B,) equal numbers where one call drafts for all: drafting at all is paid once. Empty
            where each has its own.

    Returns:
        Indices of those that draft, and their common budget; none and 0 if nothing pays.
    """
    count = len(drafted)
    order = np.argsort(-kept.sum(axis=1), kind="stable")
    drafted, kept = drafted[order], kept[order]
    fixed, unit = prices[order, :1], prices[order, 1:]
    if len(calls):
        _, first = np.unique(np.asarray(calls)[order], return_index=True)
        fixed = np.where(np.isin(range(count), first)[:, None], fixed, 0.0)
    # Entry (m, b): the first m + 1 requests draft with budget b + 1.
    saved = (1.0 - 1.0 / (1.0 + kept.cumsum(axis=1))).cumsum(axis=0) / count
    is_wide = 1.0 - np.cumprod(1.0 - drafted, axis=0)  # At least one has that node.
    forward = curve[0] + (is_wide * np.diff(curve)).cumsum(axis=1)
    drafting = (fixed + (unit * drafted).cumsum(axis=1)).cumsum(axis=0)
    times = (1.0 - saved) * (forward + drafting) / curve[0]
    members, budget = np.unravel_index(int(times.argmin()), times.shape)
    if times[members, budget] * margin > 1.0:
        return [], 0
    return order[: int(members) + 1].tolist(), int(budget) + 1


def best_budgets(
    drafted: NDArray[np.float64],
    kept: NDArray[np.float64],
    prices: NDArray[np.float64],
    curve: NDArray[np.float64],
    margin: float = MARGIN,
    calls: Sequence[int] = (),
) -> list[int]:
    """Choose how much each request drafts, where a step costs what all its nodes do together.

    Nodes are taken in the order of how likely they are to be kept, each request's own in their
    order, and as many of them as give the most tokens per second.

    Args:
        drafted: (B, L), as for `best_budget`.
        kept: (B, L), as for `best_budget`.
        prices: (B, 2), as for `best_budget`.
        curve: (L+1,) seconds of the forward by the mean number of draft nodes.
        margin: As for `best_budget`.
        calls: (B,), as for `best_budget`.

    Returns:
        Their budgets; zeros if nothing pays.
    """
    count = len(drafted)
    promising = np.flatnonzero(kept.any(axis=0))
    if not len(promising):
        return [0] * count
    limit = int(promising[-1]) + 1  # Nothing is kept of later nodes.
    drafted, kept = drafted[:, :limit], kept[:, :limit]
    # No node comes before those that it is below: it counts as no better than the worst of them.
    order = np.argsort(-np.minimum.accumulate(kept, axis=1), axis=None, kind="stable")
    owner = order // limit
    mean_nodes = drafted.flat[order].cumsum() / count
    forward = np.interp(mean_nodes, np.arange(len(curve)), curve)
    drafting = np.zeros(len(order))
    if prices.any():  # What copies is as good as free.
        callers = np.asarray(calls)[owner] if len(calls) else owner
        _, first = np.unique(callers, return_index=True)
        fixed = np.where(np.isin(np.arange(len(order)), first), prices[owner, 0], 0.0)
        drafting = (fixed + prices[owner, 1] * drafted.flat[order]).cumsum()
    tokens = 1.0 + kept.flat[order].cumsum() / count
    times = (forward + drafting) / (curve[0] * tokens)
    best = int(times.argmin())
    if times[best] * margin > 1.0:
        return [0] * count
    budgets: list[int] = np.bincount(owner[: best + 1], minlength=count).tolist()
    return budgets
