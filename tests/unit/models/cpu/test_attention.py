"""Attention of a few rows: what torch's own gives, however queries share keys."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from mtp_verify.models.cpu.attention import GroupedMask, attend


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize(("heads", "kept"), [(6, 6), (6, 3), (6, 1)])
@pytest.mark.parametrize("wants_gradients", [False, True])
def test_it_is_torchs_own(
    heads: int, kept: int, width: int, dtype: torch.dtype, wants_gradients: bool
) -> None:
    torch.manual_seed(0)
    # Of two layers, which share a mask.
    both = [torch.randn(2, heads, width, 8).to(dtype) for _ in range(2)]
    keys, values = (torch.randn(2, kept, 11, 8).to(dtype) for _ in range(2))
    visible = torch.rand(2, 1, width, 11) < 0.6
    visible[..., 0] = True
    additive = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)
    for mask in (None, visible, visible[:1], additive):
        shared = None if mask is None else GroupedMask(mask, heads // kept)
        with torch.set_grad_enabled(wants_gradients):
            found = [attend(queries, keys, values, shared) for queries in both]
        for mine, queries in zip(found, both, strict=True):
            by_head = functional.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, enable_gqa=heads > kept
            )
            expected = by_head.transpose(1, 2).flatten(2)
            assert mine.shape == expected.shape
            tolerance = 1e-6 if dtype is torch.float32 else 2e-2
            torch.testing.assert_close(mine, expected, rtol=tolerance, atol=tolerance)
