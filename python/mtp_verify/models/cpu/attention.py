"""Attention of a few rows over many keys, which queries share, with torch's own operators.

What a head attends with; the target's rows go through the core (`fused`).
"""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["GroupedMask", "attend"]

_ROW_STEP = 8  # Rows are rounded up: torch's kernels sum in another order for other numbers.


class GroupedMask:
    """The mask of `attend` for all layers of a forward, and scratch memory for the queries of one.

    `mask` is (B or 1, 1, W, K), additive or True where visible, and becomes (B or 1, 1, group * W
    and up to seven more, K); `group` queries share a key.
    """

    def __init__(self, mask: torch.Tensor, group: int) -> None:
        if mask.shape[2] == 1:
            self.mask = mask.expand(-1, -1, group + -group % _ROW_STEP, -1)
        else:
            rows = mask.repeat(1, 1, group, 1)
            # What fills the rows up sees everything: a row without keys would be NaN.
            seen = float(mask.dtype is torch.bool)
            self.mask = functional.pad(rows, (0, 0, 0, -rows.shape[2] % _ROW_STEP), value=seen)
        self._scratch: tuple[torch.Tensor, torch.Tensor] | None = None

    def as_rows(self, queries: torch.Tensor, num_kv_heads: int) -> torch.Tensor:
        """Return queries (B, H, W, head_dim) as (B, num_kv_heads, rows of the mask, head_dim)."""
        batch, heads, width, dim = queries.shape
        group, count = heads // num_kv_heads, self.mask.shape[2]
        if torch.is_grad_enabled():
            rows = queries.reshape(batch, num_kv_heads, group * width, dim)
            return functional.pad(rows, (0, 0, 0, count - group * width))
        split = (batch, num_kv_heads, group, width, dim)
        if self._scratch is None:
            scratch = queries.new_zeros((batch, num_kv_heads, count, dim))
            self._scratch = scratch, scratch[:, :, : group * width].view(split)
        scratch, part = self._scratch
        part.copy_(queries.view(split))
        return scratch


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: GroupedMask | None
) -> torch.Tensor:
    """Scaled dot-product attention whose queries may share keys.

    Queries that share a key become rows of one head, so that no key is read, or copied, for each
    of them. torch's own grouping takes three to six times as long for one row on a CPU.

    Args:
        queries: (B, H, W, head_dim).
        keys: (B, G, K, head_dim), G a divisor of H: heads h with equal h // (H / G) share one.
        values: as `keys`.
        mask: None shows all keys to all rows.

    Returns:
        (B, W, H * head_dim), the heads side by side.

    Example:
        >>> ones = torch.ones(1, 4, 1, 8)
        >>> attend(ones, ones[:, :2], ones[:, :2], None).shape
        torch.Size([1, 1, 32])
    """
    batch, heads, width, dim = queries.shape
    num_kv_heads = keys.shape[1]
    count = heads // num_kv_heads * width
    if mask is not None:
        rows = mask.as_rows(queries, num_kv_heads)
    else:
        rows = queries.reshape(batch, num_kv_heads, count, dim)
        if count == 1 and rows.dtype == torch.bfloat16:
            # torch's CPU kernel takes twice as long for a single bfloat16 row as for two.
            rows = rows.expand(-1, -1, 2, -1)
    shown = None if mask is None else mask.mask
    mixed = functional.scaled_dot_product_attention(rows, keys, values, attn_mask=shown)
    by_head = mixed[:, :, :count].view(batch, num_kv_heads, heads // num_kv_heads, width, dim)
    return by_head.permute(0, 3, 1, 2, 4).reshape(batch, width, heads * dim)
