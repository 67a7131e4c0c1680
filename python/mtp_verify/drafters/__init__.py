"""Drafters: sources of cheap guesses for the target to check.

`REGISTRY` lists those that this package brings along. Each is imported on first use: those that
guess from the text need NumPy alone, those with a head or a model need torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtp_verify.drafters.base import Drafter, Request
from mtp_verify.drafters.registry import Entry
from mtp_verify.drafters.store import SuffixStore
from mtp_verify.drafters.translation import Translation

# What type checkers see of the classes below.
if TYPE_CHECKING:
    from mtp_verify.drafters.combined import Combined as Combined
    from mtp_verify.drafters.heads import Heads as Heads
    from mtp_verify.drafters.independent import Model as Model
    from mtp_verify.drafters.model_tree import ModelTree as ModelTree
    from mtp_verify.drafters.ngram import NGram as NGram
    from mtp_verify.drafters.ngram import Suffix as Suffix
    from mtp_verify.drafters.recycling import Recycling as Recycling

REGISTRY = {
    "NGram": Entry(
        "ngram",
        "what followed the last few tokens before",
        "text",
        name="ngram",
        # Matches of one token only cost time on free text; `Suffix` leaves them out by itself.
        settings={"num_tokens": 8, "min_ngram": 2},
    ),
    "Suffix": Entry(
        "ngram",
        "all that followed the longest suffix that occurred before",
        "text",
        name="suffix",
        settings={"num_tokens": 16},
        # Short contexts are worth a tree: it costs one wide forward and hedges.
        tree={"max_nodes": 16, "max_children": 4, "min_match": 1, "depth_factor": 2.0},
    ),
    "Recycling": Entry(
        "recycling",
        "the most likely tokens of the target's rows so far",
        "text",
        name="recycling",
        settings={"max_nodes": 16},
    ),
    "Heads": Entry(
        "heads",
        "the target's hidden states",
        "head",
        name="head",
        settings={"num_tokens": 4},
        tree={"max_nodes": 8, "num_tokens": 6},
    ),
    "Model": Entry("independent", "a smaller model's rows: a chain", "model"),
    "ModelTree": Entry("model_tree", "a smaller model's rows: a tree", "model"),
    "Combined": Entry("combined", "several drafters: the first that speaks, or all", "drafters"),
}

__all__ = ["REGISTRY", "Drafter", "Request", "SuffixStore", "Translation", *REGISTRY]


if not TYPE_CHECKING:  # Type checkers know the names; this would hide misspelt ones.

    def __getattr__(name: str) -> Any:
        """Import a drafter of the registry on first use (PEP 562)."""
        if name in REGISTRY:
            return getattr(import_module(f"{__name__}.{REGISTRY[name].module}"), name)
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
