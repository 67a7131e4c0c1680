"""Between two tokenizers: which tokens both know, and a text of one as tokens of the other.

References: TLI, Timor et al., arXiv 2502.05202.
"""

from __future__ import annotations

import codecs
import copy
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.errors import ParamsError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Transcript", "Translation"]

_SPACE = "\u2581"  # what stands for a space in SentencePiece's vocabularies
# Their tokens are pieces of text.
_PLAIN = {"ByteFallback", "Fuse", "Metaspace", "Replace", "Strip"}

# A text is translated again from its last settled place on: this many tokens of the target at most,
# of which this many stay open, since what follows may still change how they are cut.
_MOST_OPEN = 96
_KEPT_OPEN = 32


class Translation:
    """What a drafter needs to draft for a target whose tokenizer is another one.

    Two tokens are the same if they stand for the same bytes of text, whatever alphabet their
    vocabularies write them in; special tokens if they have the same name or role (end, beginning).
    The drafter draws from its row restricted to the tokens that both know, which is the row that
    its draft states: the target's distribution is kept. It reads the sequence so far as text,
    cut by its own tokenizer.

    Args:
        draft_tokenizer: the drafter's; a fast transformers tokenizer (byte-level, or
            SentencePiece's: their tokens are pieces of text).
        target_tokenizer: the target's, as `draft_tokenizer`.

    Attributes:
        draft_ids: (n,) int64, the shared tokens as the drafter numbers them.
        target_ids: (n,) int64, ascending, the same tokens as the target numbers them.

    Raises:
        UnsupportedModelError: a tokenizer whose tokens cannot be read as text; says which.
        ParamsError: the vocabularies share no token.

    Example:
        >>> way = Translation(draft_tokenizer, target_tokenizer)  # doctest: +SKIP
        >>> drafter = mv.drafters.Model(small, translation=way)  # doctest: +SKIP

    References:
        Token-level intersection: arXiv 2502.05202, algorithm 4.
    """

    def __init__(self, draft_tokenizer: Any, target_tokenizer: Any) -> None:
        self._draft = _Vocabulary(draft_tokenizer, "drafter's")
        self._target = _Vocabulary(target_tokenizer, "target's")
        mine, theirs = self._draft.by_text, self._target.by_text
        pairs = {token: mine[text] for text, token in theirs.items() if text in mine}
        if not pairs:
            found = f"the drafter's {len(mine)} tokens and the target's {len(theirs)}"
            message = f"{found} have none in common; draft with another model"
            raise ParamsError(message, slug="no_shared_tokens")
        self._special = self._draft.match_special(self._target)
        taken = set(pairs.values())
        pairs |= {token: own for token, own in self._special.items() if own not in taken}
        self.target_ids: NDArray[np.int64] = np.array(sorted(pairs), np.int64)
        self.draft_ids: NDArray[np.int64] = np.array([pairs[t] for t in sorted(pairs)], np.int64)

    def __repr__(self) -> str:
        """Say how much the two vocabularies share."""
        draft, target = len(self._draft.by_text), len(self._target.by_text)
        return f"Translation(shared={len(self.target_ids)}, draft={draft}, target={target})"

    def start(self) -> Transcript:
        """Return the transcript of a new sequence."""
        return Transcript(self, self._draft.first)

    def to_draft(self, tokens: Sequence[int]) -> list[int]:
        """Return shared tokens of the target as the drafter numbers them."""
        ids: list[int] = self.draft_ids[np.searchsorted(self.target_ids, tokens)].tolist()
        return ids

    def is_special(self, token: int) -> bool:
        """Return whether a token of the target is no piece of text."""
        return token in self._target.special

    def special(self, token: int) -> list[int]:
        """Return the drafter's counterpart of a special token of the target, if it has one."""
        return [self._special[token]] if token in self._special else []

    def encode(self, tokens: Sequence[int], *, at_start: bool) -> list[int]:
        """Cut the text of some tokens, none of them special, by the drafter's tokenizer.

        A text starts with them, or goes on with a space where that tokenizer always puts one.
        """
        content = b"".join(self._target.texts.get(token, b"") for token in tokens)
        if self._target.adds_space if at_start else self._draft.adds_space:
            content = content.removeprefix(b" ")
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        ids = self._draft.encode(decoder.decode(content))
        # The last character may be incomplete: its bytes, if the drafter has tokens for them.
        begun = [self._draft.by_text.get(bytes([byte])) for byte in decoder.getstate()[0]]
        return ids + [token for token in begun if token is not None]

    def find_cut(self, tokens: Sequence[int], ids: Sequence[int]) -> tuple[int, int] | None:
        """Find where both ways to cut a text have a boundary, and what follows stays as it is.

        Return how many of the target's `tokens` and of the drafter's `ids` stand before the last
        such place, or None. At least `_KEPT_OPEN` tokens follow it.
        """
        places: dict[int, int] = {}
        size = 0
        for index in range(len(ids) - 1, 0, -1):
            size += len(self._draft.texts.get(ids[index], b""))
            places[size] = index
        size = 0
        for index in range(len(tokens) - 1, 0, -1):
            text = self._target.texts.get(tokens[index], b"")
            size += len(text)
            has_space = text.startswith(b" ") or not self._draft.adds_space
            if len(tokens) - index >= _KEPT_OPEN and size in places and has_space:
                place = places[size]
                is_stable = self.encode(tokens[index:], at_start=False) == list(ids[place:])
                return (index, place) if is_stable else None
        return None


class Transcript:
    """A growing sequence of the target's tokens, as the drafter reads it.

    Only the end of a long text is cut again as it grows, from a place where cutting the rest by
    itself has been seen to make no difference.
    """

    def __init__(self, translation: Translation, first: Sequence[int]) -> None:
        self._translation = translation
        self._first = list(first)
        self._ids = list(first)  # of the settled part, with what a text starts with
        self._num_settled = 0  # tokens of the target that they stand for
        self._is_start = True  # whether the open part starts a text
        self._most_open = _MOST_OPEN

    def update(self, tokens: Sequence[int]) -> list[int]:
        """Return the drafter's tokens of the text so far, which has grown since the last call."""
        way = self._translation
        for index in range(self._num_settled, len(tokens)):
            if way.is_special(tokens[index]):
                ids = way.encode(tokens[self._num_settled : index], at_start=self._is_start)
                found = way.special(tokens[index])
                if self._ids + ids + found == self._first * 2:
                    found = []  # Both begin a sequence with the same token.
                self._settle(index + 1, ids + found, is_start=True)
        open_tokens = tokens[self._num_settled :]
        ids = way.encode(open_tokens, at_start=self._is_start)
        whole = self._ids + ids
        if len(open_tokens) > self._most_open:
            self._most_open *= 2
            if cut := way.find_cut(open_tokens, ids):
                self._settle(self._num_settled + cut[0], ids[: cut[1]], is_start=False)
                self._most_open = _MOST_OPEN
        return whole

    def _settle(self, num_tokens: int, ids: Sequence[int], *, is_start: bool) -> None:
        self._num_settled, self._is_start = num_tokens, is_start
        self._ids = [*self._ids, *ids]


class _Vocabulary:
    """A tokenizer's tokens as bytes of text."""

    def __init__(self, tokenizer: Any, whose: str) -> None:
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if not hasattr(backend, "get_added_tokens_decoder"):
            kind = type(tokenizer).__name__
            message = f"the {whose} tokenizer: found a {kind}, wanted a fast one"
            raise UnsupportedModelError(message, slug="unknown_tokenizer")
        self._backend: Any = copy.deepcopy(backend)
        self._backend.no_padding()
        self._backend.no_truncation()
        # A special token's name that stands in a text is text.
        self._backend.encode_special_tokens = True
        self._roles = (tokenizer.eos_token_id, tokenizer.bos_token_id)
        decoder = backend.decoder
        kinds = set() if decoder is None else _kinds(json.loads(decoder.__getstate__()))
        is_bytes = "ByteLevel" in kinds
        if not is_bytes and (not kinds or kinds - _PLAIN):
            message = (
                f"the {whose} tokenizer: found one that joins tokens by "
                f"{', '.join(sorted(kinds)) or 'spaces'}, so that a token is no piece of text, "
                "wanted a byte-level or SentencePiece tokenizer"
            )
            raise UnsupportedModelError(message, slug="unknown_tokenizer")
        added = self._backend.get_added_tokens_decoder()
        # Names of the special tokens; what each other one stands for; the token of each text.
        self.special = {token: word.content for token, word in added.items() if word.special}
        self.texts: dict[int, bytes] = {}
        fallbacks: dict[int, bytes] = {}
        alphabet = _byte_alphabet()
        for word, token in self._backend.get_vocab(with_added_tokens=True).items():
            if token in self.special:
                continue
            if token in added:
                self.texts[token] = word.encode()
            elif is_bytes:
                self.texts[token] = bytes(alphabet[char] for char in word if char in alphabet)
            elif "ByteFallback" in kinds and (byte := _fallback_byte(word)) is not None:
                fallbacks[token] = bytes([byte])
            else:
                self.texts[token] = word.replace(_SPACE, " ").encode()
        self.by_text: dict[bytes, int] = {}
        for texts in (self.texts, fallbacks):
            for token in sorted(texts):
                self.by_text.setdefault(texts[token], token)
        self.by_text.pop(b"", None)
        self.texts |= fallbacks
        # What the tokenizer puts before every sequence, and whether it puts a space before a text.
        first = self._backend.encode("", add_special_tokens=True).ids[:1]
        self.first = first if first == [tokenizer.bos_token_id] else []
        begins = [self.texts.get(token, b"") for token in self.encode("a")[:1]]
        self.adds_space = any(text.startswith(b" ") for text in begins)

    def encode(self, text: str) -> list[int]:
        """Cut a text; an empty one into nothing."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids if text else []
        return ids

    def match_special(self, other: _Vocabulary) -> dict[int, int]:
        """Return special tokens of another vocabulary as these: by name, else by role."""
        names = {name: token for token, name in self.special.items()}
        found = {token: names[name] for token, name in other.special.items() if name in names}
        for mine, theirs in zip(self._roles, other._roles, strict=True):
            if mine in self.special and theirs in other.special and mine not in found.values():
                found.setdefault(theirs, mine)
        return found


def _kinds(decoder: Any) -> set[str]:
    """Return the names of a decoder's parts."""
    if decoder["type"] == "Sequence":
        return set().union(*map(_kinds, decoder["decoders"]))
    return {decoder["type"]}


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character stands for in byte-level vocabularies (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    alphabet = {chr(byte): byte for byte in shown}
    return alphabet | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def _fallback_byte(word: str) -> int | None:
    """Return the byte of a token such as <0x0A>."""
    is_byte = len(word) == 6 and word.startswith("<0x") and word.endswith(">")
    return int(word[3:5], 16) if is_byte else None
