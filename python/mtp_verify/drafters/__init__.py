"""Drafters: sources of cheap guesses for the target to check.

`NGram` and `Suffix` copy from the sequence's own history, `Recycling` reuses the target's rows of
past steps; they need numpy alone. `Heads` drafts with a head on the target's hidden states, `Model`
and `ModelTree` with an independent transformers model, across tokenizers by a `Translation`; they
import torch when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtp_verify.drafters.base import Drafter, Request
from mtp_verify.drafters.combined import Combined
from mtp_verify.drafters.ngram import NGram, Suffix
from mtp_verify.drafters.recycling import Recycling
from mtp_verify.drafters.translation import Translation

__all__ = [
    "Combined",
    "Drafter",
    "Heads",
    "Model",
    "ModelTree",
    "NGram",
    "Recycling",
    "Request",
    "Suffix",
    "Translation",
]

# What needs torch is imported on first use; type checkers see it at once.
if TYPE_CHECKING:
    from mtp_verify.drafters.heads import Heads
    from mtp_verify.drafters.independent import Model
    from mtp_verify.drafters.model_tree import ModelTree
else:
    _LAZY = {"Heads": "heads", "Model": "independent", "ModelTree": "model_tree"}

    def __getattr__(name: str) -> Any:
        """Import what needs torch on first use (PEP 562)."""
        if name in _LAZY:
            return getattr(import_module(f"mtp_verify.drafters.{_LAZY[name]}"), name)
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
