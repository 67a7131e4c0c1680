"""The core's floating-point operations that torch has no operators for.

`wide` is float64, in which a product of two float32 is exact; on devices without it float32, and
then every operation here rounds as it likes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["even_exponent", "fused_subtract", "power_of_two", "round_up", "single"]

# Of each type: integers of its size, the bits of its mantissa, its exponent's bias.
_LAYOUTS = {torch.float64: (torch.int64, 52, 1023), torch.float32: (torch.int32, 23, 127)}


def single(x: float) -> float:
    """Return the float32 that is nearest to a number."""
    return float(struct.unpack("f", struct.pack("f", x))[0])


def power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 2 to a whole power, exactly; 0 where it is below the smallest normal number."""
    whole, mantissa, bias = _LAYOUTS[dtype]
    biased = (exponent.to(whole) + bias).clamp(0, 2 * bias)
    return (biased << mantissa).view(dtype)


def even_exponent(x: Tensor) -> Tensor:
    """Return the even number 2 m with ``4**m <= x < 4**(m + 1)``, int32, for positive normal x."""
    whole, mantissa, bias = _LAYOUTS[x.dtype]
    exponent = (x.view(whole) >> mantissa) - bias
    return (exponent & ~1).to(torch.int32)


def round_up(x: Tensor) -> Tensor:
    """Return the smallest float32 that is not below x."""
    near = x.to(torch.float32)
    above = torch.nextafter(near, torch.full_like(near, torch.inf))
    return torch.where(near.to(x.dtype) < x, above, near)


def fused_subtract(whole: Tensor, factor: Tensor, taken: Tensor) -> Tensor:
    """Return ``whole - factor taken`` rounded once, for wide `taken` and `whole` of float32 values.

    The factor is split into 29 and 24 bits, whose products with 24 bits are exact. What the first
    subtraction rounds off is computed, and joined with the second product: that sum rounds too,
    but where the terms cancel it is exact, and elsewhere it moves the result by one unit in the
    last place about once in 2**27 times.
    """
    if whole.dtype != torch.float64:
        return whole - factor * taken
    high = (factor.view(torch.int64) & -(1 << 24)).view(torch.float64)
    product, rest = high * taken, (factor - high) * taken
    left = whole - product
    moved = left - whole
    rounded_off = (whole - (left - moved)) - (product + moved)
    return left + (rounded_off - rest)
