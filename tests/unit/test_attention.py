"""Attention of a few rows: what torch's own gives, however queries share keys."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from mtp_verify.attention import attend, grouped_mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize(("heads", "kept"), [(6, 6), (6, 3), (6, 1)])
def test_it_is_torchs_own(heads: int, kept: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    queries = torch.randn(2, heads, width, 8).to(dtype)
    keys, values = (torch.randn(2, kept, 11, 8).to(dtype) for _ in range(2))
    visible = torch.rand(2, 1, width, 11) < 0.6
    visible[..., 0] = True
    additive = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)
    for mask in (None, visible, visible[:1], additive):
        found = attend(queries, keys, values, grouped_mask(mask, heads // kept))
        expected = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, enable_gqa=heads > kept
        )
        assert found.shape == expected.shape
        tolerance = 1e-6 if dtype is torch.float32 else 2e-2
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
