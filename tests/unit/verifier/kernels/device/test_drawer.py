"""Tokens drawn on a device are those that the core's growers draw."""

from __future__ import annotations

import pytest
import torch

import mtp_verify as mv
from mtp_verify import _core
from mtp_verify.verifier.growers import Chain
from mtp_verify.verifier.kernels.device.drawer import Drawer
from tests.host_reads import HostReads

CPU = torch.device("cpu")
SIZES = (1, 2, 31, 2048, 2049)
PARAMS = [
    mv.SamplingParams(),
    mv.SamplingParams(temperature=0.0),
    mv.SamplingParams(temperature=0.3, top_k=3, top_p=0.8),
    mv.SamplingParams(min_p=0.1, preset="vllm"),
    # Penalties are for the target's rows.
    mv.SamplingParams(logit_bias={0: 50.0}, repetition_penalty=2.0),
]
SEEDS = [0, 1, 2**64 - 1, 5 << 40]
POSITIONS = [0, 9, 2**32 - 3, 1_000_000]
NODES = [1, 2, 3, 40]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("params", PARAMS, ids=repr)
@pytest.mark.parametrize("size", SIZES)
def test_a_row_gives_the_token_that_the_core_draws(size, params, dtype):
    drawer = Drawer(len(SEEDS), size, dtype, CPU)
    generator = torch.Generator().manual_seed(size)
    for spread in (0.0, 1.0, 8.0):
        rows = (spread * torch.randn(len(SEEDS), size, generator=generator)).to(dtype)
        given = {"seeds": SEEDS, "positions": POSITIONS, "nodes": NODES}
        with HostReads() as reads:
            found = drawer.draw(rows, params, **given)
        assert reads.places == []
        wanted = [
            _core.draw(rows[i : i + 1], params, SEEDS[i], POSITIONS[i], NODES[i]) for i in range(4)
        ]
        assert found.tolist() == wanted


def test_a_chain_has_the_tokens_of_its_grower():
    generator = torch.Generator().manual_seed(3)
    rows = 2 * torch.randn(6, 50, generator=generator)
    chain = Chain(5, root=0, seed=7, position=11)
    draft = chain.grow(lambda paths: rows[[len(path) for path in paths]])
    drawer = Drawer(1, 50, torch.float32, CPU)
    for node in range(1, 6):
        place = {"seeds": [7], "positions": [11], "nodes": [node]}
        token = drawer.draw(rows[node - 1 : node], mv.SamplingParams(), **place)
        assert token.tolist() == [draft.tokens[node]]


def test_rows_fewer_than_there_is_space_for():
    drawer = Drawer(4, 9, torch.float32, CPU)
    rows = torch.randn(2, 9, generator=torch.Generator().manual_seed(1))
    found = drawer.draw(rows, mv.SamplingParams(), seeds=[1, 2], positions=[3, 3], nodes=[1, 1])
    wanted = [_core.draw(rows[i : i + 1], mv.SamplingParams(), 1 + i, 3, 1) for i in range(2)]
    assert found.tolist() == wanted
