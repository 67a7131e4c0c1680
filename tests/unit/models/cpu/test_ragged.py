"""Ragged forwards: rows of drafts of any sizes are those of the padded forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mtp_verify as mv
from mtp_verify.caches.slots import SlotCache
from mtp_verify.models.cpu.fused import FusedLayer, fuse
from mtp_verify.models.cpu.ragged import Ragged
from mtp_verify.models.target import as_target
from tests.models import VOCAB, TreeDrafter, tiny_model

GREEDY = mv.SamplingParams(temperature=0.0)
DTYPES = {"float32": 1e-5, "bfloat16": 0.1}


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_spread_is_the_reverse_of_gather(counts: list[int]) -> None:
    width = max(counts)
    ragged = Ragged(counts, width)
    rows = torch.arange(1.0, sum(counts) + 1)[None, :, None].expand(-1, -1, 2)
    padded = ragged.spread(rows)
    assert torch.equal(ragged.gather(padded), rows)
    for slot, count in enumerate(counts):
        assert padded[slot, :count].all()
        assert not padded[slot, count:].any()


@pytest.fixture(params=list(DTYPES))
def fused(request: Any) -> Any:
    model = tiny_model("llama").to(getattr(torch, request.param))
    assert fuse(model) > 0
    return as_target(model), DTYPES[request.param]


@torch.inference_mode()
@pytest.mark.parametrize("counts", [[4, 1, 2, 1], [1, 1, 1, 3], [1, 2, 4, 3]], ids=str)
def test_a_forward_has_the_rows_of_the_padded_one(fused: Any, counts: list[int]) -> None:
    target, tolerance = fused
    generator = torch.Generator().manual_seed(1)
    tree = mv.TokenTree([-1, 0, 0, 1])
    ancestors = torch.from_numpy(tree.mask()).bool().repeat(4, 1, 1)
    prompts = [torch.randint(0, VOCAB, (1, 3 + 2 * i), generator=generator) for i in range(4)]
    nodes = torch.randint(0, VOCAB, (4, 4), generator=generator)
    found = []
    for more in ({}, {"counts": counts}):
        cache = SlotCache(target.new_kv())
        for slot, prompt in enumerate(prompts):
            cache.add()
            cache.aim(prompt.shape[1], target.device, slot)
            target.forward(prompt, None, None, cache, num_logits=1)
            cache.extend(slot, prompt.shape[1])
        positions = torch.tensor(cache.lengths)[:, None] + torch.from_numpy(tree.depths)
        found.append(target.forward_slots(nodes, positions, ancestors, cache, (-1, 1), **more))
        for slot in range(4):  # And once more, over the entries that it has written.
            cache.extend(slot, cache.lengths[slot] + 1)
        positions = positions + 1
        found[-1] += target.forward_slots(nodes, positions, ancestors, cache, (-1,), **more)
    for one, other in zip(*found, strict=True):
        pairs = [(one, other)] if isinstance(one, torch.Tensor) else zip(one, other, strict=True)
        for padded, ragged in pairs:
            assert padded.shape == ragged.shape
            for slot, count in enumerate(counts):
                torch.testing.assert_close(
                    padded[slot, :count], ragged[slot, :count], atol=tolerance, rtol=tolerance
                )


def test_only_rows_that_are_wanted_go_through_the_products(
    fused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, _ = fused
    rows: list[int] = []
    run = FusedLayer.__call__

    def counting(layer: FusedLayer, x: torch.Tensor, *args: Any) -> torch.Tensor:
        rows.append(x.shape[0] * x.shape[1])
        return run(layer, x, *args)

    monkeypatch.setattr(FusedLayer, "__call__", counting)

    class One(TreeDrafter):
        """Drafts for one request of all."""

        def draft(self, request: Any, budget: int) -> mv.Draft:
            return super().draft(request, budget if request.tokens[0] == 5 else 0)

    drafter = One([-1, 0, 1, 2, 3], text=list(range(60)))
    decoder = mv.Decoder(target, drafter, GREEDY, batching="together")
    decoder.generate([[5, 6], [7, 8], [9, 3]], max_new_tokens=6, eos_token_id=())
    assert max(rows) == 5 + 1 + 1, "not three times five"
