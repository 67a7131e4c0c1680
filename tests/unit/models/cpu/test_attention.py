"""Attention of a few rows: what torch's own gives, however queries share keys."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from mtp_verify.models.cpu.attention import GroupedMask, attend, num_shown
from tests.models import on_measured_cpus


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


def _causal(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, past: int
) -> torch.Tensor:
    """Rows behind `past` entries, shown as many keys as a fused forward shows them."""
    width = queries.shape[2]
    count = num_shown(past + width)
    hidden = torch.arange(count)[None] > past + torch.arange(width)[:, None]
    mask = torch.zeros(1, 1, width, count, dtype=queries.dtype)
    mask.masked_fill_(hidden, torch.finfo(queries.dtype).min)
    group = queries.shape[1] // keys.shape[1]
    return attend(queries, keys[:, :, :count], values[:, :, :count], GroupedMask(mask, group))


@on_measured_cpus
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_in_any_company(dtype: torch.dtype) -> None:
    """Nine queries that share three keys, as in SmolLM2, behind 1 to 120 entries."""
    torch.manual_seed(0)
    widest = 9
    for past in range(1, 120, 7):
        queries = torch.randn(1, 9, widest, 64).to(dtype)
        keys, values = (torch.randn(1, 3, num_shown(past + widest), 64).to(dtype) for _ in "kv")
        alone = torch.cat(
            [
                _causal(queries[:, :, place : place + 1], keys, values, past + place)
                for place in range(widest)
            ],
            dim=1,
        )
        for width in range(2, widest + 1):
            together = _causal(queries[:, :, :width], keys, values, past)
            assert torch.equal(together, alone[:, :width]), (past, width)
