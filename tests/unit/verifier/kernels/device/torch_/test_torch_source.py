"""Tokens that growers take on a device are those that the core takes from the same rows."""

from __future__ import annotations

import pytest
import torch

import mtp_verify as mv
from mtp_verify import _core
from mtp_verify.verifier.kernels.device.torch_.source import Source, draft_noise, race_noise
from tests.host_reads import HostReads

SIZES = (1, 2, 31, 2048, 2049)
PARAMS = [
    mv.SamplingParams(),
    mv.SamplingParams(temperature=0.0),
    mv.SamplingParams(temperature=0.3, top_k=3, top_p=0.8),
    mv.SamplingParams(min_p=0.1, preset="vllm"),
    # Penalties are for the target's rows.
    mv.SamplingParams(logit_bias={0: 50.0}, repetition_penalty=2.0),
]
PLACES = [(0, 0), (1, 9), (2**64 - 1, 2**32 - 3), (5 << 40, 1_000_000)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("params", PARAMS, ids=repr)
@pytest.mark.parametrize("size", SIZES)
def test_a_row_gives_the_tokens_that_the_core_draws(size, params, dtype):
    generator = torch.Generator().manual_seed(size)
    for (seed, position), spread in zip(PLACES, (0.0, 1.0, 8.0, 90.0), strict=True):
        row = (spread * torch.randn(1, size, generator=generator)).to(dtype)
        with HostReads() as reads:
            found = Source(row, params).draw(draft_noise(seed, position, 6)[None])
        assert reads.places == []
        wanted = [_core.draw(row, params, seed, position, node) for node in range(1, 7)]
        assert found.tolist() == [wanted]


def test_rows_without_likely_tokens_have_as_many_as_they_have():
    rows = torch.tensor([[0.0, -torch.inf, 2.0, -torch.inf], [1.0, 1.0, 1.0, 1.0]])
    source = Source(rows, mv.SamplingParams())
    assert source.num_possible.tolist() == [2, 4]
    assert source.best(3)[:, :2].tolist() == [[2, 0], [0, 1]]
    assert source.best(1).tolist() == [[2], [0]]
    u = torch.tensor([[0.999999], [0.999999]])
    assert source.draw(u, torch.tensor([[2, -1], [3, 2]])).tolist() == [[0], [1]]
    noise = race_noise(3, 4, torch.arange(4))
    raced = source.race(4, noise)
    assert sorted(raced[0, :2].tolist()) == [0, 2]
    assert sorted(raced[1].tolist()) == [0, 1, 2, 3]


def test_what_is_no_distribution_is_read_as_one():
    rows = torch.tensor([[0.0, torch.nan], [torch.inf, 0.0], [-torch.inf, -torch.inf]])
    source = Source(rows, mv.SamplingParams())
    assert torch.equal(source.weights, torch.ones_like(source.weights))
