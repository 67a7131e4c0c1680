"""The drafters that are compared, with their settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mtp_verify import drafters

if TYPE_CHECKING:
    from mtp_verify.params import SamplingParams

__all__ = ["ENTRANTS", "Entrant"]


@dataclass(frozen=True)
class Entrant:
    """One drafter of the comparison.

    Attributes:
        name: short, for options, tables and JSON.
        kind: class of the drafter.
        settings: of the class.
        is_upper_bound: it drafts with the target itself: its tau is what a drafter could reach at
            best with these limits, and its speed means nothing.
    """

    name: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    is_upper_bound: bool = False

    def make(self, model: Any, params: SamplingParams) -> Any:
        """Return a fresh drafter.

        Args:
            model: the target.
            params: of the target.
        """
        make = getattr(drafters, self.kind)
        if not self.is_upper_bound:
            return make(**self.settings)
        # Greedy rows have one candidate; a tree of them would be a chain.
        return make(model, **self.settings, params=None if params.is_greedy else params)


_TREE = {"max_nodes": 16, "max_children": 4}

ENTRANTS = {
    entrant.name: entrant
    for entrant in (
        Entrant("ngram", "NGram", {"num_tokens": 8, "min_ngram": 2}),
        Entrant("suffix", "Suffix", {"num_tokens": 16}),
        # Short contexts are worth a tree: it costs one wide forward and hedges.
        Entrant("suffix tree", "Suffix", {**_TREE, "min_match": 1, "depth_factor": 2.0}),
        Entrant("recycling", "Recycling", {"max_nodes": 16}),
        Entrant("self", "ModelTree", {**_TREE, "max_depth": 6}, is_upper_bound=True),
    )
}
