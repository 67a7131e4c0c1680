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

    Attributes:
        module: of `mtp_verify.drafters`, imported on first use.
        guess: what it guesses from, in a few words.
        needs: besides the text: a draft head, a second model, or other drafters.
        name: on the command line; None where commands do not make it.
        settings: those that commands make it with.
        tree: those that commands make trees with; empty where it drafts no better by trees.
    """

    module: str
    guess: str
    needs: Literal["text", "head", "model", "drafters"]
    name: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    tree: Mapping[str, Any] = field(default_factory=dict)
