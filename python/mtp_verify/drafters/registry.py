"""What a drafter's entry in the registry says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Entry"]


@dataclass(frozen=True)
class Entry:
    """A drafter that this package brings along; the registry is `mtp_verify.drafters.REGISTRY`.

    The lazy exports, the choices of `--drafter`, the entrants of `bench` and the table of the docs
    derive from it.
    """

    module: str  # of `mtp_verify.drafters`, imported on first use
    guess: str  # what it guesses from, in a few words
    needs: Literal["text", "head", "model", "drafters"]  # besides the text
    name: str | None = None  # on the command line; None where commands do not make it
    # Those that commands make it with, and make trees with; empty where it drafts no better so.
    settings: Mapping[str, Any] = field(default_factory=dict)
    tree: Mapping[str, Any] = field(default_factory=dict)
