"""A drafter around another one that keeps each step's draft and verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtp_verify.drafters.base import Drafter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify._core import Draft, Verdict
    from mtp_verify.drafters.base import Request

__all__ = ["Recorder", "Step"]

# What the decoder reads and calls of a drafter, beside what is recorded.
_READ = ("laws", "makes_trees", "hidden_layers")
_CALLED = ("check_vocabulary", "check_rule", "start", "observe", "release")


@dataclass(frozen=True)
class Step:
    """One step of one request.

    Attributes:
        position: index of the root among the sequence's own tokens.
        root: the root's token (a draft's own `tokens[0]` may be -1).
        verdict: cut to what was really emitted.
    """

    position: int
    root: int
    draft: Draft
    verdict: Verdict

    @property
    def accepted(self) -> frozenset[int]:
        """The nodes that were kept."""
        return frozenset(self.verdict.path.tolist())

    @property
    def bonus(self) -> int | None:
        """The token that the verifier drew itself; None if the verdict was cut before it."""
        tokens = self.verdict.tokens.tolist()
        return tokens[-1] if len(tokens) > len(self.accepted) else None


class Recorder(Drafter):
    """Drafts as `drafter` does, and keeps the steps."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        for name in (*_READ, *_CALLED):
            setattr(self, name, getattr(drafter, name))
        self._proposed: list[tuple[int, int, Draft]] = []
        self.steps: list[Step] = []

    def propose(self, requests: Sequence[Request], budgets: Sequence[int]) -> list[Draft]:
        """Return the drafter's own drafts."""
        drafts = self._drafter.propose(requests, budgets)
        self._proposed = [
            (request.position, request.tokens[-1], draft)
            for request, draft in zip(requests, drafts, strict=True)
        ]
        return drafts

    def commit(self, verdicts: Sequence[Verdict], hidden: Any | None) -> None:
        """Keep the step, and tell the drafter."""
        self.steps += [
            Step(position, root, draft, verdict)
            for (position, root, draft), verdict in zip(self._proposed, verdicts, strict=False)
        ]
        self._drafter.commit(verdicts, hidden)
