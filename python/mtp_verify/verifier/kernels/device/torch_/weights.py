"""Weights of logits, and sums of weights in the core's order.

A token's weight is ``exp(y) 2**-exponent`` as a float32, `y` its scaled logit, by the operations of
the core: two fused multiplications that take the whole powers of two off, and a polynomial. A fused
operation is done in `wide` and then rounded to float32: the product is exact, the sum is rounded
twice, which differs from rounding once about once in 2**29 times (then by one unit in the last
place).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from mtp_verify.verifier.kernels.device.layout import BLOCK, LANES
from mtp_verify.verifier.kernels.device.torch_.arithmetic import single

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["around", "block_sums", "fold", "in_blocks", "lowest", "num_blocks", "weigh"]

# Weights below 2**-124 are 0, those above 2**100 are capped; see `exp.rs` of the core.
_BELOW, _ABOVE = 124, 100
_MAGIC = 12582912.0
_LOG2_E = single(math.log2(math.e))
# 2**r for |r| <= 1/2, from the highest power down.
_POLYNOMIAL = [
    single(x)
    for x in (1.5453262e-4, 1.3390979e-3, 9.618082e-3, 5.550357e-2, 0.2402265, math.log(2.0), 1.0)
]


def _nats(power: Tensor, wide: torch.dtype) -> Tensor:
    return (power.to(wide) * math.log(2.0)).to(torch.float32)


def around(y: Tensor, wide: torch.dtype) -> Tensor:
    """Return the even exponent, int32, under which the weight of `y` is 1/2 to 4."""
    half = (y.to(wide) * (math.log2(math.e) / 2)).floor()
    return 2 * half.to(torch.int32)


def lowest(exponent: Tensor, wide: torch.dtype) -> Tensor:
    """Return the float32 below which weights are 0."""
    return _nats(exponent - _BELOW, wide)


def weigh(y: Tensor, exponent: Tensor, wide: torch.dtype) -> Tensor:
    """Return weights, not to be used where `y` is below `lowest`.

    Args:
        y: float32, of any shape.
        exponent: int32, broadcast with y.
        wide: The type of sums.

    Returns:
        float32, of y's shape.
    """
    magic = _MAGIC - exponent.to(torch.float32)
    ceiling = _nats(exponent + _ABOVE, wide)
    product = torch.where(y < ceiling, y, ceiling).to(wide) * _LOG2_E
    shifted = (product + magic).to(torch.float32)
    r = (product + (magic - shifted)).to(torch.float32).to(wide)
    p = torch.full_like(r, _POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        p = p.mul_(r).add_(coefficient).to(torch.float32).to(wide)
    bits = p.to(torch.float32).view(torch.int32) + (shifted.view(torch.int32) << 23)
    return bits.view(torch.float32)


def num_blocks(width: int) -> int:
    """Return how many blocks a row of `width` values has."""
    return -(-width // BLOCK)


def in_blocks(values: Tensor, fill: float) -> Tensor:
    """View rows (n, V) as blocks (n, blocks, BLOCK), the last one filled up."""
    rows, width = values.shape
    blocks = num_blocks(width)
    return pad(values, (0, blocks * BLOCK - width), value=fill).view(rows, blocks, BLOCK)


def block_sums(values: Tensor) -> Tensor:
    """Sum the blocks of rows (n, V): (n, blocks).

    Value i of a block belongs to lane ``i % LANES``; a lane adds in order, and the lanes are
    folded.
    """
    rows, width = values.shape
    if width < BLOCK:  # Zeros change no sum: none are added behind a short row.
        values = pad(values, (0, -width % LANES))
        stripes = values.view(rows, 1, -1, LANES)
    else:
        stripes = in_blocks(values, 0.0).view(rows, -1, BLOCK // LANES, LANES)
    lanes = stripes[:, :, 0].clone()
    for stripe in range(1, stripes.shape[2]):
        lanes += stripes[:, :, stripe]
    return fold(lanes)


def fold(values: Tensor) -> Tensor:
    """Sum over the last axis: filled up with zeros to a power of two, halves onto halves."""
    width = values.shape[-1]
    values = pad(values, (0, (1 << (width - 1).bit_length()) - width))
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        values = values[..., :half] + values[..., half:]
    return values[..., 0]
