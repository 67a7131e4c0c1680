"""The drafts that a law can give, each with its probability."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mtp_verify.testing.device.cases import Case
    from mtp_verify.testing.device.rows import Rows
    from mtp_verify.verifier.words import Law

__all__ = ["Drafted", "drafts"]


class Drafted(NamedTuple):
    """A draft that a law can give.

    Attributes:
        parents: Of each node, -1 for the root.
        tokens: Of each node, -1 for the root.
        sampled: Which nodes were drawn.
        paths: The tokens from below the root down to each node.
        weight: How likely the draft is.
    """

    parents: list[int]
    tokens: list[int]
    sampled: list[bool]
    paths: list[tuple[int, ...]]
    weight: float

    def nodes_to(self, node: int) -> tuple[int, ...]:
        """Return the nodes from below the root down to a node."""
        return (*self.nodes_to(self.parents[node]), node) if node > 0 else ()


def drafts(case: Case, rows: Rows) -> Iterator[Drafted]:
    """List the drafts of a case."""

    def grow(draft: Drafted, node: int) -> Iterator[Drafted]:
        """Give children to a node, and then to those that follow it."""
        if node == len(draft.parents):
            yield draft
            return
        path = draft.paths[node]
        count = case.shape[len(path)] if len(path) < len(case.shape) else 0
        for children, weight in _children(case.law, count, rows.q(path), len(path)):
            tokens = [token for token, _ in children]
            grown = Drafted(
                [*draft.parents, *[node] * len(children)],
                [*draft.tokens, *tokens],
                [*draft.sampled, *(is_sampled for _, is_sampled in children)],
                [*draft.paths, *((*path, token) for token in tokens)],
                draft.weight * weight,
            )
            yield from grow(grown, node + 1)

    return grow(Drafted([-1], [-1], [False], [()], 1.0), 0)


def _children(
    law: Law, count: int, q: NDArray[np.float64], depth: int
) -> Iterator[tuple[list[tuple[int, bool]], float]]:
    """List what `count` children of a node can be: token and whether it was drawn; and how likely.

    Drawing ends where the drafter has no token left. Of a draft of the law "unknown" the least
    likely token is pruned after it was drawn.
    """
    best = [int(token) for token in np.argsort(-q, kind="stable") if q[token] > 0]
    sets = {"top_plus_one": best[: count - 1], "mixed": [depth % len(q)]}
    in_set = sets.get(law, [])
    if law == "deterministic" or count == 0:
        yield [(token, False) for token in best[:count]], 1.0
        return
    most = 1 if law == "top_plus_one" else count - len(in_set)

    def draw(taken: list[int], weight: float) -> Iterator[tuple[list[int], float]]:
        left = q.copy()
        left[in_set if law == "iid" else [*in_set, *taken]] = 0
        total = left.sum()
        if len(taken) >= most or not total > 0:
            yield taken, weight
            return
        for token in np.flatnonzero(left > 0):
            yield from draw([*taken, int(token)], weight * left[token] / total)

    for taken, weight in draw([], 1.0):
        kept = [token for token in taken if law != "unknown" or token != best[-1]]
        yield [*((token, True) for token in kept), *((token, False) for token in in_set)], weight
