"""What a simulated drafter drafts, and what becomes of it.

A drafter is a list of rates: how often its most probable token is the right one, its second most
probable one, and so on, the same at every node. Trees are grown from them by the real best-first
grower; acceptance is a walk down the tree with those rates.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from mtp_verify.errors import ParamsError
from mtp_verify.verifier.growers import Heap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify import Draft

__all__ = ["Drafts"]

_OTHERS = 64  # Tokens that share what the rates leave over.


class Drafts:
    """Best-first drafts of every size for one list of rates.

    Args:
        rates: of acceptance by rank, falling; their sum is below 1.
        max_nodes: size of the largest draft.
        max_depth: most levels.

    Raises:
        ParamsError: rates that are none.
    """

    def __init__(self, rates: Sequence[float], *, max_nodes: int, max_depth: int = 8) -> None:
        if not rates or min(rates) <= 0 or sum(rates) >= 1 or sorted(rates)[::-1] != list(rates):
            msg = f"rates: found {list(rates)}, wanted falling ones above 0 whose sum is below 1"
            raise ParamsError(msg, slug="bad_rates")
        rest = (1.0 - sum(rates)) / _OTHERS
        row = np.log(np.array([*rates, *[rest] * _OTHERS], dtype=np.float32))
        heap = Heap(max_nodes, max_depth=max_depth, max_children=len(rates), root=0)
        while nodes := heap.frontier():
            heap.extend(np.tile(row, (len(nodes), 1)))
        self._drafts = [heap.finish(count) for count in range(max_nodes + 1)]
        self._children: list[dict[tuple[int, int], int]] = [
            {
                (parent, token): node
                for node, (parent, token) in enumerate(
                    zip(draft.tree.parents.tolist(), draft.tokens.tolist(), strict=True)
                )
                if node
            }
            for draft in self._drafts
        ]
        self._depths = [int(max(draft.tree.depths)) for draft in self._drafts]
        self._bounds = np.cumsum(rates).tolist()

    def of(self, budget: int) -> Draft:
        """Return the draft of at most `budget` nodes."""
        return self._drafts[min(budget, len(self._drafts) - 1)]

    def depth(self, budget: int) -> int:
        """Return its depth: the runs of a drafter that drafts level by level."""
        return self._depths[min(budget, len(self._drafts) - 1)]

    def accept(self, budget: int, quality: float, draws: np.random.Generator) -> list[int]:
        """Return the accepted path of a draft.

        Args:
            budget: of the draft.
            quality: multiplies the rates; 1 is the drafter at its best, 0 is always wrong.
            draws: source of chance.
        """
        children = self._children[min(budget, len(self._drafts) - 1)]
        node, path = 0, []
        while quality > 0:
            share = draws.random() / quality
            rank = next((r for r, bound in enumerate(self._bounds) if share < bound), None)
            if rank is None or (node, rank) not in children:
                break
            node = children[node, rank]
            path.append(node)
        return path

    def expected(self, budget: int, quality: float) -> float:
        """Return the mean length of `accept`'s path."""
        draft = self.of(budget)
        reach = [1.0]
        rates = np.diff([0.0, *self._bounds])
        parents, tokens = draft.tree.parents.tolist(), draft.tokens.tolist()
        for parent, token in zip(parents[1:], tokens[1:], strict=True):
            reach.append(reach[parent] * quality * float(rates[token]))
        return math.fsum(reach[1:])
