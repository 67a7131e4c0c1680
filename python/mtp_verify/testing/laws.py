"""Exact laws of the next tokens of small targets, by teacher forcing every prefix in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.errors import ParamsError
from mtp_verify.verifier.intake import as_count
from mtp_verify.verifier.params import SamplingParams, as_params
from mtp_verify.verifier.reference import penalise, shaped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["ENDED", "MAX_OUTCOMES", "JointLaw", "TokenLaws", "exact_law", "model_rows"]

# Past this, neither enumeration nor a test with a useful number of samples is practical.
MAX_OUTCOMES = 1 << 16
_BATCH = 256  # texts of one forward
# Rows of a model that are kept: those along long strings are many, and seldom asked for twice.
_MOST_ROWS = 1 << 16
# Fills up a string that ends before the others.
ENDED = -1


class TokenLaws:
    """The law of the next token after a text: rows shaped by its history, a grammar, and an end.

    Args:
        rows: From the tokens so far to the logits (V,) of the next one.
        params: How rows are shaped, by the history too; None means `SamplingParams()`.
        eos: A token that ends a string, or None.
        allowed: From the tokens behind the prompt to bool (V,), those that a grammar allows next;
            none ends the string. None allows all.

    Attributes:
        may_end: Whether strings may be shorter than asked for.
    """

    def __init__(
        self,
        rows: Callable[[tuple[int, ...]], Any],
        params: SamplingParams | None = None,
        *,
        eos: int | None = None,
        allowed: Callable[[tuple[int, ...]], Any] | None = None,
    ) -> None:
        self.rows, self.eos, self.allowed = rows, eos, allowed
        self.params = as_params(params)
        self.may_end = eos is not None or allowed is not None

    def after(self, prompt: tuple[int, ...], string: tuple[int, ...]) -> NDArray[np.float64] | None:
        """Return the law (V,) of what follows a string, or None where nothing can."""
        if (row := self._row(prompt, string)) is None:
            return None
        row = shaped(row, self.params)
        return np.asarray(row / row.sum())

    def tied(
        self, prompt: tuple[int, ...], string: tuple[int, ...], gap: float
    ) -> NDArray[np.bool_]:
        """Return which tokens (V,) behind a string have a logit within `gap` of the largest."""
        row = self._row(prompt, string)
        return np.zeros(0, bool) if row is None else np.asarray(row >= row.max() - gap)

    def _row(self, prompt: tuple[int, ...], string: tuple[int, ...]) -> NDArray[np.float64] | None:
        """Return the logits behind a string, not shaped yet, or None where nothing can follow."""
        if self.eos is not None and self.eos in string:
            return None
        path = (*prompt, *string)
        raw = np.asarray(self.rows(path), np.float64)
        row = penalise(raw, path, len(prompt), self.params)
        if self.allowed is None:
            return np.asarray(row)
        mask = np.asarray(self.allowed(string), bool)
        return np.where(mask, row, -np.inf) if mask.any() else None

    def prefetch(self, prompt: tuple[int, ...], strings: NDArray[np.int64]) -> None:
        """Compute the rows along many strings (n, k) at once, where the target can do that."""
        if (many := getattr(self.rows, "prefetch", None)) is not None:
            many(prompt, strings)


@dataclass(frozen=True)
class JointLaw:
    """The law of the first k tokens.

    Attributes:
        vocab: V. Where strings may end there is one token more, the last: `ENDED`.
        length: k.
        probs: float64 (V**k,): the string t_1 .. t_k has index ((t_1 V + t_2) V + ..) + t_k.
        may_end: Whether there is that token.
    """

    vocab: int
    length: int
    probs: NDArray[np.float64]
    may_end: bool = False

    def indices(self, samples: Any) -> NDArray[np.int64]:
        """Return the index of each sampled string.

        Args:
            samples: int (n, >= k); columns past k are not read. `ENDED` fills up what has ended.

        Raises:
            ParamsError: Another shape, or a token outside the vocabulary.
        """
        tokens = np.asarray(samples)
        if tokens.ndim != 2 or tokens.shape[1] < self.length or tokens.dtype.kind not in "iu":
            found = f"found shape {tokens.shape} and dtype {tokens.dtype}"
            message = f"samples: {found}, wanted integers (n, {self.length}) or wider"
            raise ParamsError(message, slug="shape_mismatch")
        tokens = tokens[:, : self.length].astype(np.int64)
        if self.may_end:
            tokens[tokens == ENDED] = self.vocab - 1
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < self.vocab):
            row = int(np.argmax(((tokens < 0) | (tokens >= self.vocab)).any(axis=1)))
            wanted = f"tokens of 0 to {self.vocab - 1}"
            message = f"sample {row}: found {tokens[row].tolist()}, wanted {wanted}"
            raise ParamsError(message, slug="token_out_of_vocab", row=row)
        weights = self.vocab ** np.arange(self.length - 1, -1, -1, dtype=np.int64)
        return np.asarray(tokens @ weights)

    def counts(self, samples: Any) -> NDArray[np.int64]:
        """Count how often each string was sampled: int64 (V**k,)."""
        return np.bincount(self.indices(samples), minlength=len(self.probs))

    def string(self, index: int) -> tuple[int, ...]:
        """Return the tokens of the string with an index."""
        return tuple(
            int(index // self.vocab**power % self.vocab) for power in reversed(range(self.length))
        )

    def marginal(self, depth: int) -> NDArray[np.float64]:
        """Return the law (V,) of token `depth`, 0 being the first."""
        joint = self.probs.reshape((self.vocab,) * self.length)
        return np.asarray(joint.sum(axis=tuple(i for i in range(self.length) if i != depth)))


def exact_law(
    rows: Callable[[tuple[int, ...]], Any] | TokenLaws,
    prompt: Sequence[int],
    length: int,
    params: SamplingParams | None = None,
) -> JointLaw:
    """Compute the law of the `length` tokens that follow a prompt.

    Args:
        rows: From the tokens so far to the logits (V,) of the next one; `TableTarget.rows` and
            what `model_rows` returns are such functions. Or `TokenLaws`, which know more.
        prompt: The tokens that come first.
        length: How many tokens, at least 1.
        params: How rows are shaped, by the history too; None means `SamplingParams()`.

    Raises:
        ParamsError: More than `MAX_OUTCOMES` strings; says how short or small it must be.

    Example:
        >>> law = exact_law(lambda path: [0.0, math.log(3.0)], [0], 2)
        >>> law.probs.round(4).tolist()
        [0.0625, 0.1875, 0.1875, 0.5625]
    """
    laws = rows if isinstance(rows, TokenLaws) else TokenLaws(rows, params)
    length = as_count("length", length)
    start = tuple(int(token) for token in prompt)
    probs = np.ones(1)
    num_tokens = len(laws.rows(start))
    vocab = num_tokens + laws.may_end
    if length * math.log(vocab) > math.log(MAX_OUTCOMES) + 1e-9:
        message = (
            f"{vocab} tokens and {length} positions give {vocab}**{length} strings; the limit for "
            f"an exact law is {MAX_OUTCOMES}: take fewer positions or a smaller vocabulary"
        )
        raise ParamsError(message, slug="law_too_large")
    strings: list[tuple[int, ...]] = [()]
    for depth in range(length):
        live = [i for i, string in enumerate(strings) if probs[i] > 0 and num_tokens not in string]
        if depth and live:
            laws.prefetch(start, np.array([strings[i] for i in live]))
        grown = np.zeros((len(strings), vocab))
        if laws.may_end:
            grown[:, num_tokens] = probs
        for i in live:
            if (row := laws.after(start, strings[i])) is not None:
                grown[i] = 0.0
                grown[i, :num_tokens] = probs[i] * row
        probs = grown.reshape(-1)
        strings = [(*string, token) for string in strings for token in range(vocab)]
    return JointLaw(vocab, length, probs, laws.may_end)


class _ModelRows:
    """The rows of a transformers model in float64, each path computed once while they are few."""

    def __init__(self, model: Any) -> None:
        import copy

        import torch

        self._model = copy.deepcopy(model).to(torch.float64).eval()
        if hasattr(model, "set_experts_implementation"):
            # Grouped products of experts take no float64.
            self._model.set_experts_implementation("eager")
        self._known: dict[tuple[int, ...], NDArray[np.float64]] = {}

    def __call__(self, path: tuple[int, ...]) -> NDArray[np.float64]:
        """Return the logits (V,) behind a path."""
        if path not in self._known:
            self._run([path], len(path))
        return self._known[path]

    def prefetch(self, prompt: tuple[int, ...], strings: NDArray[np.int64]) -> None:
        """Compute the rows behind all beginnings of many strings (n, k), which may have ended."""
        if len(self._known) > _MOST_ROWS:
            self._known.clear()
        texts = dict.fromkeys(
            (*prompt, *(token for token in string if token != ENDED))
            for string in np.unique(strings, axis=0).tolist()
        )
        fresh = sorted((text for text in texts if text not in self._known), key=len)
        for _, several in groupby(fresh, key=len):
            while some := list(islice(several, _BATCH)):
                self._run(some, len(prompt))

    def _run(self, texts: list[tuple[int, ...]], first: int) -> None:
        """Compute the rows behind the first `first` tokens of texts of one length, and on."""
        import torch

        with torch.inference_mode():
            logits = self._model(torch.tensor(texts)).logits.numpy()
        for text, rows in zip(texts, logits, strict=True):
            for end in range(first, len(text) + 1):
                self._known[text[:end]] = rows[end - 1]


def model_rows(model: Any) -> Callable[[tuple[int, ...]], NDArray[np.float64]]:
    """Make a transformers model a function from tokens to logits, in float64.

    Args:
        model: A causal language model; is copied, so that its dtype stays.

    Returns:
        A function for `exact_law`; rows are kept while they are few, and computed without a cache.
    """
    return _ModelRows(model)
