"""Temperature 0: tokens that rounding chose among logits that tie are no failure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mtp_verify.testing.laws import JointLaw, TokenLaws

__all__ = ["Ties"]


class Ties:
    """Recognises strings each of whose tokens has a logit within `gap` of the largest.

    Attributes:
        num: How many such strings were not the greedy one.
    """

    def __init__(
        self, tokens: TokenLaws, length: int, gap: float, laws: Mapping[tuple[int, ...], JointLaw]
    ) -> None:
        self.tokens, self.length, self.gap = tokens, length, gap
        self.greedy = {prompt: law.string(int(law.probs.argmax())) for prompt, law in laws.items()}
        self.num = 0

    def resolve(self, prompt: Sequence[int], samples: Any) -> Any:
        """Return samples with such strings replaced by the greedy one of the prompt."""
        found = np.array(samples)[:, : self.length]
        greedy = self.greedy[tuple(prompt)]
        for string in np.unique(found, axis=0):
            tokens = tuple(int(token) for token in string)
            if tokens != greedy and self._is_tied(tuple(prompt), tokens):
                same = (found == string).all(axis=1)
                self.num += int(same.sum())
                found[same] = greedy
        return found

    def _is_tied(self, prompt: tuple[int, ...], tokens: tuple[int, ...]) -> bool:
        ties = (self.tokens.tied(prompt, tokens[:at], self.gap) for at in range(len(tokens)))
        pairs = zip(tokens, ties, strict=True)
        return all(0 <= token < len(tied) and tied[token] for token, tied in pairs)
