"""What drafting has cost so far: so much for a draft at all, and so much for each of its nodes.

A head reads the text once however little it drafts; an independent model runs once for each node.
"""

from __future__ import annotations

__all__ = ["DraftingCost"]

_DECAY = 0.9  # Of past drafts.
# Before sizes have differed, a node is assumed to cost this share of the mean. Little, since large
# drafts that are thought too dear are never tried, and those that are tried tell their cost.
_NODE_SHARE = 0.25
_WEIGHT = 1.0  # Squared nodes of difference that weigh as much as this assumption.


class DraftingCost:
    """A line through the decayed costs of past drafts, by their nodes."""

    def __init__(self) -> None:
        self._weight = self._nodes = self._seconds = 0.0
        self._squares = self._products = 0.0

    def count(self, num_nodes: int, seconds: float) -> None:
        """Count a draft of at least one node."""
        self._weight = _DECAY * self._weight + 1.0
        self._nodes = _DECAY * self._nodes + num_nodes
        self._seconds = _DECAY * self._seconds + seconds
        self._squares = _DECAY * self._squares + num_nodes**2
        self._products = _DECAY * self._products + num_nodes * seconds

    def price(self) -> tuple[float, float]:
        """Return the seconds of drafting at all, and those for each node; neither is negative.

        At least one draft must have been counted.
        """
        nodes, seconds = self._nodes / self._weight, self._seconds / self._weight
        spread = self._squares / self._weight - nodes**2
        shared = self._products / self._weight - nodes * seconds
        mean = seconds / nodes
        unit = (shared + _WEIGHT * _NODE_SHARE * mean) / (max(0.0, spread) + _WEIGHT)
        unit = min(max(0.0, unit), mean)
        return seconds - unit * nodes, unit
