"""Rows of logits as they are read: chosen, replaced, masked, divided by the temperature."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from mtp_verify.verifier.kernels.device.torch_.weights import weigh

if TYPE_CHECKING:
    from torch import Tensor

    from mtp_verify.verifier.kernels.device.layout import Edited, Shaping

__all__ = ["ANY_TIE", "Logits", "Shaped"]

# Tokens of equal logits are all kept.
ANY_TIE = (1 << 31) - 1


class Shaped(NamedTuple):
    """What describes N shaped rows: as in the core, with the sums of their blocks.

    A token of scaled logit `y` is kept if ``y - origin`` is above the cut, or equal to it and the
    token below `tie_end`. Rows that are no distributions have a status, and are read as zeros.

    Attributes:
        origin: (N,) float32, taken off the scaled logits; 0 for almost all rows.
        exponent: (N,) int32, even: weights are ``exp(y - origin) 2**-exponent``.
        cut: (N,) float32.
        tie_end: (N,) int64.
        only: (N,) int64, the one token left by greedy decoding, or -1.
        sums: (N, blocks) wide, of kept weights.
        total: (N,) wide, their fold, in [1, 4).
        status: (N,) int32, bits of the layout.
    """

    origin: Tensor
    exponent: Tensor
    cut: Tensor
    tie_end: Tensor
    only: Tensor
    sums: Tensor
    total: Tensor
    status: Tensor

    def weights(self, rows: Tensor | slice, y: Tensor, tokens: Tensor) -> Tensor:
        """Return the weights (n, k) of tokens, 0 for those that are not kept.

        Args:
            rows: Which rows, n of them.
            y: (n, k) float32, scaled logits.
            tokens: (k,) or (n, k) int64.

        Returns:
            Wide, of float32 values.
        """
        return self._weights(rows, y - self.origin[rows, None], tokens)

    def weights_of_scaled(self, y: Tensor) -> Tensor:
        """Return the weights (N, V), wide, of all tokens, by their logits with origins off."""
        return self._weights(slice(None), y, torch.arange(y.shape[1], device=y.device))

    def _weights(self, rows: Tensor | slice, y: Tensor, tokens: Tensor) -> Tensor:
        wide = self.total.dtype
        cut, only = self.cut[rows, None], self.only[rows, None]
        is_kept = (y > cut) | ((y >= cut) & (tokens < self.tie_end[rows, None]))
        weights = torch.where(is_kept, weigh(y, self.exponent[rows, None], wide).to(wide), 0.0)
        return torch.where(only >= 0, (tokens == only).to(wide), weights)


class Logits(NamedTuple):
    """N rows of logits.

    Attributes:
        rows: (M, V) of any floating type.
        place: (N,) int64, which of them.
        shaping: (N,) each.
        edited: What replaces and masks them.
    """

    rows: Tensor
    place: Tensor
    shaping: Shaping
    edited: Edited

    def divisor(self, rows: Tensor | slice) -> Tensor:
        """Return what some rows (n,) are divided by: (n, 1); greedy rows are compared raw."""
        temperature = self.shaping.temperature[rows, None]
        return torch.where(temperature > 0, temperature, 1.0)

    def whole(self, rows: Tensor | slice) -> Tensor:
        """Return some rows (n, V) before the temperature, float32."""
        values = self.rows.index_select(0, self.place[rows]).to(torch.float32)
        bitmask, shadow, shadow_of = self.edited
        if shadow is not None and shadow_of is not None:
            other = shadow_of[rows].long()
            replaced = shadow.index_select(0, other.clamp(min=0))
            values = torch.where(other[:, None] >= 0, replaced, values)
        if bitmask is not None:
            bits = (bitmask[rows, :, None] >> torch.arange(32, device=bitmask.device)) & 1
            is_allowed = bits.flatten(1)[:, : values.shape[1]] > 0
            values = torch.where(is_allowed, values, -torch.inf)
        return values

    def scaled_at(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Return the scaled logits (n, k) of some tokens (n, k) of rows (n,), float32."""
        values = self.rows[self.place[rows, None], tokens].to(torch.float32)
        bitmask, shadow, shadow_of = self.edited
        if shadow is not None and shadow_of is not None:
            other = shadow_of[rows, None].long()
            values = torch.where(other >= 0, shadow[other.clamp(min=0), tokens], values)
        if bitmask is not None:
            bits = bitmask[rows[:, None], tokens // 32] >> (tokens % 32)
            values = torch.where((bits & 1) > 0, values, -torch.inf)
        return values / self.divisor(rows)
