"""Philox4x32-10 in int64: a random function of an address, as in the core.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from mtp_verify.verifier.kernels.device.layout import Step

__all__ = ["Noise", "philox"]

ACCEPT, SAMPLE, RACE = 1, 2, 3

_WORD = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85


def philox(key: tuple[Tensor, Tensor], counter: tuple[Tensor | int, ...]) -> list[Tensor]:
    """Return four words for each key and counter: int64 tensors of words, which are broadcast.

    Words of the counter that are the same for all may be ints.
    """
    k0, k1 = key
    c0, c1, c2, c3 = cast("tuple[Tensor, ...]", counter)
    for number in range(10):
        if number > 0:
            k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
        # Products of 64 bits: int64 wraps around, and the shift's copies of the sign are cut off.
        low, high = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = ((high >> 32) & _WORD) ^ c1 ^ k0, ((low >> 32) & _WORD) ^ c3 ^ k1
        c1, c3 = high & _WORD, low & _WORD
    return [c0, c1, c2, c3]


class Noise:
    """The numbers of a step's requests.

    Args:
        step: Seeds, positions and, for proofs, given numbers.
        request: (R,) int64, the request of each row.
        wide: The type of numbers. A float32 takes the first 24 of their 53 bits.
    """

    def __init__(self, step: Step, request: Tensor, wide: torch.dtype) -> None:
        seed, position = step.requests.seed[request], step.requests.position[request]
        self._key = seed & _WORD, (seed >> 32) & _WORD
        self._position = position & _WORD
        self._number = step.nodes.number.long() & _WORD
        self._depth = step.nodes.depth.long()
        self._given = step.given
        self._wide = wide

    def accepts(self) -> Tensor:
        """Return the number (R,) by which each node is accepted."""
        return self._numbers(ACCEPT)

    def samples(self) -> Tensor:
        """Return the number (R,) by which a token is drawn after each node."""
        return self._numbers(SAMPLE)

    def race(self, part: slice, vocab: int) -> Tensor:
        """Return the numbers (n, V) of all tokens in the races after some rows' nodes."""
        low, high = (word[part, None] for word in self._key)
        position = (self._position + 1 + self._depth)[part, None] & _WORD
        pairs = torch.arange((vocab + 1) // 2, device=low.device)
        w0, w1, w2, w3 = philox((low, high), (position, pairs, RACE, 0))
        both = torch.stack([self._uniform(w0, w1), self._uniform(w2, w3)], dim=-1)
        return both.flatten(1)[:, :vocab]

    def _numbers(self, purpose: int) -> Tensor:
        if self._given is not None:
            return self._given[:, purpose - 1].to(self._wide)
        w0, w1, *_ = philox(self._key, (self._position, self._number, purpose, 0))
        return self._uniform(w0, w1)

    def _uniform(self, high: Tensor, low: Tensor) -> Tensor:
        if self._wide == torch.float64:
            return ((high << 21) | (low >> 11)).to(self._wide) * 2.0**-53
        return (high >> 8).to(self._wide) * 2.0**-24
