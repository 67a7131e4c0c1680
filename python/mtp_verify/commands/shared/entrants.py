"""The drafters that commands use, with their settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mtp_verify import drafters

if TYPE_CHECKING:
    from mtp_verify.verifier.params import SamplingParams

__all__ = ["CHAINS", "ENTRANTS", "TREES", "Entrant"]


@dataclass(frozen=True)
class Entrant:
    """A drafter with its settings.

    Attributes:
        name: for options, tables and JSON.
        kind: class of the drafter; `settings` are its arguments.
        parts: those that a `Combined` asks.
        is_planned: a planner chooses the size of its drafts.
        is_upper_bound: it drafts with the target itself: its tau is what a drafter could reach at
            best with these limits, and its speed means nothing.
    """

    name: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    parts: tuple[Entrant, ...] = ()
    is_planned: bool = False
    is_upper_bound: bool = False

    @property
    def needs_head(self) -> bool:
        """Whether it drafts with a trained head."""
        return self.kind == "Heads" or any(part.needs_head for part in self.parts)

    def make(self, model: Any, params: SamplingParams, head: Any | None = None) -> Any:
        """Return a fresh drafter for a target, with a trained head for it where `needs_head`."""
        make = getattr(drafters, self.kind)
        if self.parts:
            return make([part.make(model, params, head) for part in self.parts], **self.settings)
        if self.kind == "Heads":
            # A tree is deterministic however it is ranked; a chain is drawn as the target draws.
            is_chain = "max_nodes" not in self.settings and not params.is_greedy
            return make(head, **self.settings, params=params if is_chain else None)
        if self.is_upper_bound:
            # Greedy rows have one candidate; a tree of them would be a chain.
            return make(model, **self.settings, params=None if params.is_greedy else params)
        return make(**self.settings)

    def describe(self) -> dict[str, Any]:
        """Return the settings for JSON."""
        parts = {"parts": [part.describe() for part in self.parts]} if self.parts else {}
        planned = {"planner": "auto"} if self.is_planned else {}
        return {"drafter": self.kind, **self.settings, **parts, **planned}


_TREE = {"max_nodes": 16, "max_children": 4}
_SUFFIX = Entrant("suffix", "Suffix", {"num_tokens": 16})
# Short contexts are worth a tree: it costs one wide forward and hedges.
_SUFFIX_TREE = Entrant("suffix tree", "Suffix", {**_TREE, "min_match": 1, "depth_factor": 2.0})
_HEAD = Entrant("head", "Heads", {"num_tokens": 4})
# A doubtful token is seldom right and makes the forward wider.
_SURE_HEAD = Entrant("sure head", "Heads", {"max_nodes": 7, "num_tokens": 5, "min_path": 0.1})
_HEAD_TREE = Entrant("head tree", "Heads", {"max_nodes": 8, "num_tokens": 6})

ENTRANTS = {
    entrant.name: entrant
    for entrant in (
        Entrant("ngram", "NGram", {"num_tokens": 8, "min_ngram": 2}),
        _SUFFIX,
        _SUFFIX_TREE,
        Entrant("recycling", "Recycling", {"max_nodes": 16}),
        _HEAD,
        Entrant("suffix, else head", "Combined", parts=(_SUFFIX, _SURE_HEAD)),
        Entrant("planned", "Combined", parts=(_SUFFIX_TREE, _SURE_HEAD), is_planned=True),
        _HEAD_TREE,
        Entrant("head tree + suffix", "Combined", {"mode": "merge"}, (_HEAD_TREE, _SUFFIX_TREE)),
        Entrant("self", "ModelTree", {**_TREE, "max_depth": 6}, is_upper_bound=True),
    )
}

# What `--drafter` of `demo` and `generate` names, and that of `view`, which draws trees.
CHAINS = {
    "head": ENTRANTS["suffix, else head"],
    "suffix": ENTRANTS["suffix"],
    "ngram": ENTRANTS["ngram"],
}
TREES = {
    "suffix": ENTRANTS["suffix tree"],
    "ngram": ENTRANTS["ngram"],
    "recycling": ENTRANTS["recycling"],
    "head": Entrant("head", "Heads", _TREE),
}
