"""A tiny language over a tiny vocabulary, its exact masks, and a matcher of our own for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.decoder.constraints import Matcher

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Tokens overlap, so that one string has several tokenisations; `x` is in no word.
TOKENS = [b"a", b"b", b"c", b"ab", b"bc", b"x", b"d", b"<eos>"]
EOS = 7
PATTERN = "(a|bc){1,3}d?"
WORDS = frozenset(
    stem + tail
    for first in (b"a", b"bc")
    for second in (b"", b"a", b"bc")
    for third in (b"", b"a", b"bc")
    for stem in (first + second + third,)
    for tail in (b"", b"d")
)


def allowed_after(path: Sequence[int], words: Iterable[bytes] = WORDS) -> set[int]:
    """The tokens that may follow a path of tokens, by looking at every word."""
    text = b"".join(TOKENS[token] for token in path)
    grown = {
        token
        for token, piece in enumerate(TOKENS)
        if token != EOS and any(word.startswith(text + piece) for word in words)
    }
    return grown | ({EOS} if text in words else set())


class Finite:
    """A constraint to a finite set of words."""

    def __init__(self, words: Iterable[bytes] = WORDS, vocab_size: int = len(TOKENS)) -> None:
        self.words = frozenset(words)
        self.vocab_size = vocab_size
        self.stop_ids = frozenset({EOS})

    def start(self, prompt: Sequence[int]) -> Matcher:
        return FiniteMatcher(self)


class FiniteMatcher(Matcher):
    def __init__(self, language: Finite) -> None:
        super().__init__(language.vocab_size)
        self.words = language.words
        self.path: list[int] = []

    def fill(self, mask: np.ndarray) -> None:
        ended = self.path[-1:] == [EOS]
        bits = np.zeros(32 * len(mask), np.uint8)
        bits[list(range(len(bits)) if ended else allowed_after(self.path, self.words))] = 1
        mask[:] = np.packbits(bits, bitorder="little").view("<i4")

    def accept(self, token: int) -> bool:
        if self.path[-1:] == [EOS] or token not in allowed_after(self.path, self.words):
            return False
        self.path.append(token)
        return True

    def rollback(self, count: int) -> None:
        del self.path[len(self.path) - count :]


class _Tokenizer:
    """What `llguidance.TokenizerWrapper` wants of a tokenizer."""

    eos_token_id = EOS
    bos_token_id = None
    tokens = TOKENS
    special_token_ids = (EOS,)

    def __call__(self, text: Any) -> list[int]:
        octets = text if isinstance(text, bytes) else text.encode()
        return [TOKENS.index(bytes([octet])) for octet in octets if bytes([octet]) in TOKENS]


def by_xgrammar(vocab_size: int = len(TOKENS)) -> Any:
    """The compiler of xgrammar over the tiny vocabulary."""
    import xgrammar

    from mtp_verify.decoder.constraints import XGrammar

    info = xgrammar.TokenizerInfo(TOKENS, vocab_size=vocab_size, stop_token_ids=[EOS])
    return XGrammar(info)


def by_llguidance(vocab_size: int = len(TOKENS)) -> Any:
    """The compiler of llguidance over the tiny vocabulary."""
    import llguidance

    from mtp_verify.decoder.constraints import LLGuidance

    wrapped = llguidance.TokenizerWrapper(_Tokenizer())
    return LLGuidance(llguidance.LLTokenizer(wrapped), vocab_size=vocab_size)
