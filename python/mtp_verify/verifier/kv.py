"""KV-cache bookkeeping: what a verdict keeps of a cache, and the blocks of paged caches."""

from typing import Any

from mtp_verify import _core
from mtp_verify._core import (
    BlockTable,
    CommitPlan,
    CommitPlanBatch,
    Reservation,
    ReservationBatch,
    TokenTree,
)

__all__ = [
    "BlockTable",
    "CommitPlan",
    "CommitPlanBatch",
    "Reservation",
    "ReservationBatch",
    "commit_plan",
]


def commit_plan(tree: TokenTree, path: Any, start: int) -> CommitPlan:
    """Return which entries of a contiguous KV cache a verdict keeps, and where they go.

    Args:
        tree: The verified tree; entries ``start, start + 1, ...`` hold its nodes 0, 1, ...
        path: int (A,), the verdict's path (cut where the decoder cut it).
        start: The root's entry, >= 0.

    Returns:
        The plan: ``moves`` int64 (M, 2) from -> to in an order that is safe in place, ``length``
        (``start + 1 + A``), ``state_select`` (the node whose state is kept).

    Raises:
        CacheError: ``path`` does not lead from below the root downwards.
        ParamsError: ``start`` is out of range.

    Example:
        >>> plan = commit_plan(TokenTree([-1, 0, 0, 2]), [2, 3], start=10)
        >>> plan.moves.tolist(), plan.length
        ([[12, 11], [13, 12]], 13)
    """
    return _core.commit_plan(tree, path, start)
