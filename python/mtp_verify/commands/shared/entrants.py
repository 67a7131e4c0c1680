"""The drafters that commands use, with their settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mtp_verify import drafters
from mtp_verify.verifier.tree_shape import TreeShape

__all__ = ["CHAINS", "ENTRANTS", "TREES", "Entrant"]


@dataclass(frozen=True)
class Entrant:
    """A drafter with its settings.

    Attributes:
        name: for options, tables and JSON.
        kind: class of the drafter; `settings` are its arguments.
        parts: those that a `Combined` asks.
        is_planned: a planner chooses the size of its drafts.
        is_upper_bound: it drafts with the target itself: its tau is the best that a drafter could
            reach with these limits, and its speed means nothing.
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

    def make(self, model: Any, head: Any | None = None) -> Any:
        """Return a fresh drafter for a target, with a trained head for it where `needs_head`."""
        make = getattr(drafters, self.kind)
        if self.parts:
            return make([part.make(model, head) for part in self.parts], **self.settings)
        if self.kind == "Heads":
            settings = dict(self.settings)
            if "shape" in settings:
                settings["shape"] = TreeShape.by_depth(*settings["shape"])
            # A best-first tree is deterministic however it is ranked; all else is drawn as the
            # target draws.
            if "max_nodes" in settings:
                settings["params"] = None
            return make(head, **settings)
        if self.is_upper_bound:
            return make(model, **self.settings, params="target")
        return make(**self.settings)

    def describe(self) -> dict[str, Any]:
        """Return the settings for JSON."""
        parts = {"parts": [part.describe() for part in self.parts]} if self.parts else {}
        planned = {"planner": "auto"} if self.is_planned else {}
        return {"drafter": self.kind, **self.settings, **parts, **planned}


# Those of the registry, each as commands make it; then what only some commands compare.
_BY_NAME: dict[str, Entrant] = {}
for _kind, _entry in drafters.REGISTRY.items():
    if _entry.name is not None:
        _BY_NAME[_entry.name] = Entrant(_entry.name, _kind, dict(_entry.settings))
        if _entry.tree:
            _tree = f"{_entry.name} tree"
            _BY_NAME[_tree] = Entrant(_tree, _kind, dict(_entry.tree))

_SUFFIX, _SUFFIX_TREE, _HEAD_TREE = (_BY_NAME[n] for n in ("suffix", "suffix tree", "head tree"))
# A doubtful token is seldom right and makes the forward wider. Of a chain all is drawn where the
# target draws, which more of is accepted than of a tree of what the head thinks best.
_SURE_HEAD = Entrant("sure head", "Heads", {"num_tokens": 5, "min_path": 0.05})
_WIDE = {"max_nodes": 16, "max_children": 4}

ENTRANTS = _BY_NAME | {
    entrant.name: entrant
    for entrant in (
        Entrant("suffix, else head", "Combined", parts=(_SUFFIX, _SURE_HEAD)),
        Entrant("planned", "Combined", parts=(_SUFFIX, _SURE_HEAD), is_planned=True),
        Entrant("head tree of 3 levels", "Heads", {"max_nodes": 8, "num_tokens": 3}),
        Entrant("top-plus-one tree", "Heads", {"shape": (3, 2, 1), "law": "top_plus_one"}),
        Entrant("head tree + suffix", "Combined", {"mode": "merge"}, (_HEAD_TREE, _SUFFIX_TREE)),
        Entrant("self", "ModelTree", {**_WIDE, "max_depth": 6}, is_upper_bound=True),
    )
}

# What `--drafter` of `demo` and `generate` names, and that of `view`, which draws trees.
_NAMES = [entry.name for entry in drafters.REGISTRY.values() if entry.name is not None]
CHAINS = {name: ENTRANTS[name] for name in _NAMES} | {"head": ENTRANTS["suffix, else head"]}
TREES = {name: ENTRANTS.get(f"{name} tree", ENTRANTS[name]) for name in _NAMES} | {
    "head": Entrant("head", "Heads", _WIDE)
}
