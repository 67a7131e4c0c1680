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
    """Drafts as `drafter` does, and keeps the steps.

    Args:
        drafter: any drafter.
    """

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self.laws, self.makes_trees = drafter.laws, drafter.makes_trees
        self.hidden_layers = drafter.hidden_layers
        self._proposed: list[tuple[int, int, Draft]] = []
        self.steps: list[Step] = []

    def check_vocabulary(self, vocab_size: int | None) -> None:
        """Let the drafter refuse the target's vocabulary."""
        self._drafter.check_vocabulary(vocab_size)

    def check_rule(self, rule: str) -> None:
        """Let the drafter refuse the rule."""
        self._drafter.check_rule(rule)

    def start(self, request: Request) -> None:
        """Take a new request."""
        self._drafter.start(request)

    def propose(self, requests: Sequence[Request], budgets: Sequence[int]) -> list[Draft]:
        """Return the drafter's own drafts."""
        drafts = self._drafter.propose(requests, budgets)
        self._proposed = [
            (request.position, request.tokens[-1], draft)
            for request, draft in zip(requests, drafts, strict=True)
        ]
        return drafts

    def observe(
        self, requests: Sequence[Request], drafts: Sequence[Draft], logits: Sequence[Any]
    ) -> None:
        """Hand the target's rows to the drafter."""
        self._drafter.observe(requests, drafts, logits)

    def commit(self, verdicts: Sequence[Verdict], hidden: Any | None) -> None:
        """Keep the step, and tell the drafter."""
        self.steps += [
            Step(position, root, draft, verdict)
            for (position, root, draft), verdict in zip(self._proposed, verdicts, strict=False)
        ]
        self._drafter.commit(verdicts, hidden)

    def release(self, request: Request) -> None:
        """Forget a request; its steps stay."""
        self._drafter.release(request)
