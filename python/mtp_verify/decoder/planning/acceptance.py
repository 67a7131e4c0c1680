"""What drafts have earned so far: how often each node is drafted, and how often accepted.

Nodes are told apart by their number: the draft of a smaller budget is the beginning of that of a
larger one, and the expected number of accepted tokens of a budget is a sum over its nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from numpy.typing import NDArray

    from mtp_verify._core import Draft

__all__ = ["Rates", "Watch"]

# What is assumed of a drafter that nothing is known of: how often its first node is kept (after a
# wrong guess, after a right one), and how much less often each further node than the one before.
# Two observations weigh as much as that. Copies come in runs; a model or a head guesses always, and
# was trained to guess right.
_FIRST_COPY = (0.2, 0.5)
_FIRST_GUESS = (0.5, 0.5)
_NEXT = 0.8
_WEIGHT = 2.0
_DECAY = 0.93  # A sum of past observations is worth about 14 of them.


class Rates:
    """Decayed rates by the number of a node, at most `limit`.

    They are of drafts that follow a right guess or not, of a drafter that copies or not.
    """

    def __init__(self, limit: int, *, was_right: bool = False, copies: bool = True) -> None:
        self._limit = limit
        self._first = (_FIRST_COPY if copies else _FIRST_GUESS)[was_right]
        self._drafts = [0.0] * (limit + 1)
        self._drafted = [0.0] * (limit + 1)
        self._seen = [0.0] * (limit + 1)
        self._accepted = [0.0] * (limit + 1)

    def count_draft(self, num_nodes: int, budget: int) -> None:
        """Count a draft of so many nodes; whether a larger budget had brought more is not known."""
        for node in range(1, min(budget, self._limit) + 1):
            self._drafts[node] = _DECAY * self._drafts[node] + 1.0
            self._drafted[node] = _DECAY * self._drafted[node] + (node <= num_nodes)

    def count_nodes(self, nodes: Iterable[int], accepted: Container[int]) -> None:
        """Count nodes that are decided now, and those among them that were accepted."""
        for node in nodes:
            if node <= self._limit:
                self._seen[node] = _DECAY * self._seen[node] + 1.0
                self._accepted[node] = _DECAY * self._accepted[node] + (node in accepted)

    def estimate(
        self, limit: int, *, is_sure: bool = False
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what to expect of each node of the next draft.

        That is (L,) the probability that node 1, 2, ... is drafted, and (L,) that it is drafted and
        accepted; 0 beyond `limit`. With `is_sure` the draft is known to have that many nodes.
        """
        drafted, kept = np.zeros(self._limit), np.zeros(self._limit)
        rate, exists = self._first / _NEXT, 1.0
        for node in range(1, min(limit, self._limit) + 1):
            prior = _WEIGHT * min(1.0, rate * _NEXT)
            rate = (self._accepted[node] + prior) / (self._seen[node] + _WEIGHT)
            if not is_sure:
                share = (self._drafted[node] + _WEIGHT) / (self._drafts[node] + _WEIGHT)
                exists = min(exists, share)
            drafted[node - 1] = exists
            kept[node - 1] = exists * rate
        return drafted, kept


@dataclass
class Watch:
    """A draft that is compared with the text as it grows, whether or not it was run."""

    parents: list[int]  # of the draft's nodes
    tokens: list[int]
    place: int  # index in the text of the token that is compared next
    rates: Rates  # where the outcome counts
    node: int = 0  # the last one that was right
    undecided: list[int] = field(default_factory=list)  # nodes that may still be right

    @classmethod
    def over(cls, draft: Draft, position: int, rates: Rates) -> Watch:
        """Return a watch over a draft whose root stands at `position`."""
        parents = draft.tree.parents.tolist()
        nodes = list(range(1, len(parents)))
        return cls(parents, draft.tokens.tolist(), position + 1, rates, undecided=nodes)

    def read(self, text: Sequence[int]) -> bool | None:
        """Compare with the whole text; return whether the first guess was right, once known."""
        first: bool | None = None
        while self.undecided and self.place < len(text):
            token = text[self.place]
            children = (n for n in self.undecided if self.parents[n] == self.node)
            right = next((n for n in children if self.tokens[n] == token), None)
            # Parents come before their children: one pass finds all that lie below the right one.
            below: set[int | None] = {right}
            open_still, decided = [], []
            for node in self.undecided:
                if self.parents[node] in below:
                    below.add(node)
                    open_still.append(node)
                else:
                    decided.append(node)
            self.rates.count_nodes(decided, () if right is None else (right,))
            if self.node == 0:
                first = right is not None
            self.undecided, self.node = open_still, right or 0
            self.place += 1
        return first
