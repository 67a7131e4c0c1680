"""Give every choice its number: Philox4x32-10 of an address, as `src/chance` has it."""

# Kernels take the compiler's own values, which have no types that a checker knows.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["ACCEPT", "SAMPLE", "race_uniforms", "uniform"]

# What a number is used for: the third word of its address.
ACCEPT = tl.constexpr(1)
SAMPLE = tl.constexpr(2)
_RACE = tl.constexpr(3)


@triton.jit
def _from_words(high, low):
    """Return a multiple of 2**-53 in [0, 1) from two words."""
    bits = ((high.to(tl.uint64) << 32) | low.to(tl.uint64)) >> 11
    return bits.to(tl.int64).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def _words(seed, position, which, purpose: tl.constexpr):
    return tl.philox(seed, position.to(tl.uint32), which.to(tl.uint32), purpose, 0)


@triton.jit
def uniform(seed, position, node, purpose: tl.constexpr):
    """Return the number in [0, 1) of a node's choice.

    Args:
        seed: int64, the bits of the request's seed.
        position: Of the request's root.
        node: The node's number in its tree.
        purpose: ACCEPT or SAMPLE.
    """
    w0, w1, _, _ = _words(seed, position, node, purpose)
    return _from_words(w0, w1)


@triton.jit
def race_uniforms(seed, position, pairs):
    """Return the numbers of tokens ``2 pairs`` and ``2 pairs + 1`` in the race of a position."""
    w0, w1, w2, w3 = _words(seed, position, pairs, _RACE)
    return _from_words(w0, w1), _from_words(w2, w3)
