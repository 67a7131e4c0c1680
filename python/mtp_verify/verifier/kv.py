"""KV-cache bookkeeping: what a verdict keeps of a cache, and the blocks of paged caches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtp_verify import _core
from mtp_verify._core import (
    BlockTable,
    CommitPlan,
    CommitPlanBatch,
    Reservation,
    ReservationBatch,
    TokenTree,
)
from mtp_verify.errors import ParamsError
from mtp_verify.verifier.intake import as_list, check_type

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "BlockTable",
    "CommitPlan",
    "CommitPlanBatch",
    "Reservation",
    "ReservationBatch",
    "add_sequence",
    "commit_plan",
]


def add_sequence(
    tables: Sequence[BlockTable],
    seq: int,
    length: int,
    tokens: Any | None = None,
    *,
    keys: dict[str, str] | None = None,
    items: Sequence[tuple[int, int, str]] | None = None,
) -> int:
    """Add a sequence to the block tables of a model whose layers are of several kinds.

    Layers that see everything have one table, those of each sliding window another, with its
    ``window``. What is computed already must be so in all of them: they agree on the longest such
    beginning. All other calls are made to each table on its own. Other threads must leave the
    tables alone meanwhile.

    Args:
        tables: At least one; their block sizes may differ.
        seq: Its number, which none of the tables has.
        length: As for ``BlockTable.add_sequence``.
        tokens: As there.
        keys: As there.
        items: As there.

    Returns:
        How many of the entries are computed already in every table.

    Raises:
        MtpVerifyError: What a table refuses; then none has the sequence.
        ParamsError: There are no tables.

    Example:
        >>> full, near = BlockTable(8, 2, True), BlockTable(4, 2, True, window=2)
        >>> add_sequence([full, near], 7, length=3, tokens=[1, 2, 3])
        0
    """
    given: dict[str, Any] = {"keys": keys, "items": items}
    listed: list[BlockTable] = as_list("tables", tables)
    for table in listed:
        check_type("tables", table, BlockTable)
    if not listed:
        message = "tables: found none, wanted one for each kind of layer"
        raise ParamsError(message, slug="param_out_of_range")
    most = None if tokens is None else _num_cached(listed, tokens, **given)
    found = 0
    added: list[BlockTable] = []
    try:
        for table in listed:
            found = table.add_sequence(seq, length, tokens, **given, max_cached=most)
            added.append(table)
    except BaseException:
        for table in added:
            table.release(seq)
        raise
    return found


def _num_cached(tables: list[BlockTable], tokens: Any, **given: Any) -> int:
    """Return the longest beginning that is computed in every table."""
    agreed = tables[0].num_cached(tokens, **given)
    while True:
        # A shorter beginning may be gone where a longer one is not: until nobody objects.
        most = agreed
        for table in tables:
            agreed = table.num_cached(tokens, **given, max_cached=agreed)
        if agreed == most:
            return agreed


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
