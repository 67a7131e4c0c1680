"""Tokens of texts, for servers that give no token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.errors import ParamsError
from mtp_verify.testing.laws import ENDED

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Characters", "Texts", "WordTexts"]

_TRIALS = 200
_TRIAL_LENGTH = 6


class Texts:
    """From tokens to text, and back.

    Attributes:
        has_ids: Whether the tokens are the server's own; else prompts go to it as text.
    """

    has_ids = True

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the text of a prompt."""
        raise NotImplementedError

    def tokens_of(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a continuation."""
        raise NotImplementedError


class WordTexts(Texts):
    """Texts by a tokenizer whose tokens can be read off their text.

    Args:
        tokenizer: One of transformers.

    Raises:
        ParamsError: Different tokens have the same text, so that the law of the tokens cannot be
            seen in it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        rng = np.random.default_rng(0)
        for _ in range(_TRIALS):
            tokens = tuple(rng.integers(0, len(tokenizer), _TRIAL_LENGTH).tolist())
            if (found := self.tokens_of(self.text_of(tokens))) != tokens:
                text = self.text_of(tokens)
                message = (
                    f"tokenizer: the tokens {tokens} have the text {text!r}, which is read as "
                    f"{found}: the server gives text alone, and its law cannot be seen in such "
                    "texts; wanted a server with token ids, or a checkpoint of --make-checkpoint"
                )
                raise ParamsError(message, slug="ambiguous_text")

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))

    def tokens_of(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))


class Characters(Texts):
    """Texts as their characters: to compare two servers whose tokenizer is not at hand.

    Args:
        prompts: The texts of the prompts, whose tokens are then their numbers.
        num: Characters of a text that are read, at most.
    """

    has_ids = False

    def __init__(self, prompts: Sequence[str], num: int) -> None:
        self._prompts, self._num = list(prompts), num

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the prompt of a number."""
        (number,) = tokens
        return self._prompts[number]

    def tokens_of(self, text: str) -> tuple[int, ...]:
        """Return the first characters' numbers; what is missing is `ENDED`."""
        found = [ord(character) for character in text[: self._num]]
        return (*found, *[ENDED] * (self._num - len(found)))
