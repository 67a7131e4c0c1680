"""Drafters: sources of cheap guesses for the target to check.

`NGram` and `Suffix` copy from the sequence's own history, `Recycling` reuses the target's rows of
past steps; they need numpy alone. `Model` and `ModelTree` run an independent transformers model and
import torch when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtp_verify.drafters.base import Drafter, Request
from mtp_verify.drafters.ngram import NGram, Suffix
from mtp_verify.drafters.recycling import Recycling

if TYPE_CHECKING:
    from mtp_verify.drafters.independent import Model
    from mtp_verify.drafters.model_tree import ModelTree

__all__ = ["Drafter", "Model", "ModelTree", "NGram", "Recycling", "Request", "Suffix"]


def __getattr__(name: str) -> Any:
    """Import the drafters that need torch on first use (PEP 562)."""
    if name == "Model":
        from mtp_verify.drafters.independent import Model

        return Model
    if name == "ModelTree":
        from mtp_verify.drafters.model_tree import ModelTree

        return ModelTree
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
