"""Attention of a few rows over many keys."""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["attend", "grouped_mask"]


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Scaled dot-product attention whose queries may share keys.

    Queries that share a key become rows of one head, so that no key is read, or copied, for each
    of them. torch's own grouping takes three to six times as long for one row on a CPU.

    Args:
        queries: (B, H, W, head_dim).
        keys: (B, G, K, head_dim), G a divisor of H: heads h with equal h // (H / G) share one.
        values: likewise.
        mask: from `grouped_mask`; None shows all keys to all rows.

    Returns:
        (B, H, W, head_dim).

    Example:
        >>> ones = torch.ones(1, 4, 1, 8)
        >>> attend(ones, ones[:, :2], ones[:, :2], None).shape
        torch.Size([1, 4, 1, 8])
    """
    batch, heads, width, dim = queries.shape
    kept = keys.shape[1]
    group = heads // kept
    rows = queries.reshape(batch, kept, group * width, dim)
    if rows.shape[2] == 1 and rows.dtype == torch.bfloat16:
        # torch's CPU kernel takes twice as long for a single bfloat16 row as for two.
        rows = rows.expand(-1, -1, 2, -1)
    mixed = functional.scaled_dot_product_attention(rows, keys, values, attn_mask=mask)
    return mixed[:, :, : group * width].reshape(batch, heads, width, dim)


def grouped_mask(mask: torch.Tensor | None, group: int) -> torch.Tensor | None:
    """The mask of `attend`, for all layers of a model.

    Args:
        mask: (B or 1, 1, W, K), additive or True where visible, or None.
        group: queries that share a key.

    Returns:
        (B or 1, 1, group * W, K), or None.
    """
    return mask if mask is None or group == 1 else mask.repeat(1, 1, group, 1)
