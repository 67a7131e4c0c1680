"""Attention of a few rows over many keys, with the same bits however many rows come together.

torch's CPU kernels sum in another order for other numbers of rows and of keys, so that in bfloat16
a token may depend on the draft that it was verified with. Both numbers are therefore rounded up:
rows here, to a multiple of eight, and keys by the caller, to `num_shown`; the mask hides what is
too much. Products of laid-out weights (`mtp_verify.packing`) do not depend on their rows' number.
"""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["attend", "grouped_mask", "num_shown"]

_ROW_STEP, _KEY_STEP = 8, 16


def num_shown(num_entries: int) -> int:
    """How many keys `attend` should be shown for that many entries; the mask hides the others."""
    return -(-num_entries // _KEY_STEP) * _KEY_STEP


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
    count = heads // kept * width
    rows = queries.reshape(batch, kept, count, dim)
    if mask is not None:
        rows = functional.pad(rows, (0, 0, 0, mask.shape[2] - count))
    elif count == 1 and rows.dtype == torch.bfloat16:
        # torch's CPU kernel takes twice as long for a single bfloat16 row as for two.
        rows = rows.expand(-1, -1, 2, -1)
    mixed = functional.scaled_dot_product_attention(rows, keys, values, attn_mask=mask)
    return mixed[:, :, :count].reshape(batch, heads, width, dim)


def grouped_mask(mask: torch.Tensor | None, group: int) -> torch.Tensor | None:
    """The mask of `attend`, for all layers of a model.

    Args:
        mask: (B or 1, 1, W, K), additive or True where visible, or None.
        group: queries that share a key.

    Returns:
        (B or 1, 1, group * W and up to seven more, K), or None.
    """
    if mask is None:
        return None
    rows = mask if group == 1 else mask.repeat(1, 1, group, 1)
    # What fills the rows up sees everything: a row without keys would be NaN.
    return functional.pad(
        rows, (0, 0, 0, -rows.shape[2] % _ROW_STEP), value=float(mask.dtype is torch.bool)
    )
