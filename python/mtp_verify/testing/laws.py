"""Exact laws of the next tokens of small targets, by teacher forcing every prefix in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.errors import ParamsError
from mtp_verify.params import SamplingParams, as_params
from mtp_verify.reference import penalise, shape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["MAX_OUTCOMES", "JointLaw", "exact_law", "model_rows"]

# Past this, neither enumeration nor a test with a useful number of samples is practical.
MAX_OUTCOMES = 1 << 16


@dataclass(frozen=True)
class JointLaw:
    """The law of the first k tokens.

    Attributes:
        vocab: V.
        length: k.
        probs: float64 (V**k,): the string t_1 .. t_k has index ((t_1 V + t_2) V + ..) + t_k.
    """

    vocab: int
    length: int
    probs: NDArray[np.float64]

    def indices(self, samples: Any) -> NDArray[np.int64]:
        """The index of each sampled string.

        Args:
            samples: int (n, >= k); columns past k are not read.

        Raises:
            ParamsError: Another shape, or a token outside the vocabulary.
        """
        tokens = np.asarray(samples)
        if tokens.ndim != 2 or tokens.shape[1] < self.length or tokens.dtype.kind not in "iu":
            message = (
                f"samples: found shape {tokens.shape} and dtype {tokens.dtype}, wanted integers "
                f"(n, {self.length}) or wider"
            )
            raise ParamsError(message, slug="shape_mismatch")
        tokens = tokens[:, : self.length].astype(np.int64)
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < self.vocab):
            row = int(np.argmax(((tokens < 0) | (tokens >= self.vocab)).any(axis=1)))
            message = (
                f"sample {row}: found {tokens[row].tolist()}, wanted tokens of 0 to "
                f"{self.vocab - 1}"
            )
            raise ParamsError(message, slug="token_out_of_vocab", row=row)
        weights = self.vocab ** np.arange(self.length - 1, -1, -1, dtype=np.int64)
        return np.asarray(tokens @ weights)

    def counts(self, samples: Any) -> NDArray[np.int64]:
        """How often each string was sampled: int64 (V**k,)."""
        return np.bincount(self.indices(samples), minlength=len(self.probs))

    def string(self, index: int) -> tuple[int, ...]:
        """The tokens of the string with an index."""
        return tuple(
            int(index // self.vocab**power % self.vocab) for power in reversed(range(self.length))
        )

    def marginal(self, depth: int) -> NDArray[np.float64]:
        """The law (V,) of token `depth`, 0 being the first."""
        joint = self.probs.reshape((self.vocab,) * self.length)
        return np.asarray(joint.sum(axis=tuple(i for i in range(self.length) if i != depth)))


def exact_law(
    rows: Callable[[tuple[int, ...]], Any],
    prompt: Sequence[int],
    length: int,
    params: SamplingParams | None = None,
) -> JointLaw:
    """Compute the law of the `length` tokens that follow a prompt.

    Args:
        rows: From the tokens so far to the logits (V,) of the next one; `TableTarget.rows` and
            what `model_rows` returns are such functions.
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
    params = as_params(params)
    if length < 1:
        message = f"length: found {length}, wanted at least 1"
        raise ParamsError(message, slug="param_out_of_range")
    start = tuple(int(token) for token in prompt)
    probs = np.ones(1)
    vocab = len(rows(start))
    if length * math.log(vocab) > math.log(MAX_OUTCOMES) + 1e-9:
        message = (
            f"{vocab} tokens and {length} positions give {vocab}**{length} strings; the limit for "
            f"an exact law is {MAX_OUTCOMES}: take fewer positions or a smaller vocabulary"
        )
        raise ParamsError(message, slug="law_too_large")
    strings: list[tuple[int, ...]] = [()]
    for _ in range(length):
        grown = np.zeros((len(strings), vocab))
        for i, string in enumerate(strings):
            if probs[i] > 0:
                path = (*start, *string)
                raw = np.asarray(rows(path), np.float64)
                row = shape(penalise(raw, path, len(start), params), params)
                grown[i] = probs[i] * row / row.sum()
        probs = grown.reshape(-1)
        strings = [(*string, token) for string in strings for token in range(vocab)]
    return JointLaw(vocab, length, probs)


def model_rows(model: Any) -> Callable[[tuple[int, ...]], NDArray[np.float64]]:
    """Make a transformers model a function from tokens to logits, in float64.

    Args:
        model: A causal language model; is copied, so that its dtype stays.

    Returns:
        A function for `exact_law`; each path is computed once, without a cache.
    """
    import copy

    import torch

    exact = copy.deepcopy(model).to(torch.float64).eval()
    known: dict[tuple[int, ...], NDArray[np.float64]] = {}

    def rows(path: tuple[int, ...]) -> NDArray[np.float64]:
        if path not in known:
            with torch.inference_mode():
                known[path] = exact(torch.tensor([path])).logits[0, -1].numpy()
        return known[path]

    return rows
