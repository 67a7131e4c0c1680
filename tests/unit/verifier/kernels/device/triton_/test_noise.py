"""Kernels find the core's numbers at every address."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from mtp_verify.verifier.kernels.device.triton_ import noise

MASK = (1 << 32) - 1


def philox(key: tuple[int, int], counter: tuple[int, ...]) -> tuple[int, ...]:
    """Return the words of Philox4x32-10 by its definition (Salmon et al., SC 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        low, high = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (high >> 32) ^ c1 ^ k0, high & MASK, (low >> 32) ^ c3 ^ k1, low & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def test_the_definition_gives_the_published_answers():
    # Random123's kat_vectors for philox4x32-10.
    zero = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    pi = (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)
    assert philox((0, 0), (0, 0, 0, 0)) == zero
    key = (0xA4093822, 0x299F31D0)
    assert philox(key, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)) == pi


@triton.jit
def _uniforms(seeds, positions, nodes, accept, sample, even, odd, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    seed, position = tl.load(seeds + at), tl.load(positions + at)
    node = tl.load(nodes + at)
    tl.store(accept + at, noise.uniform(seed, position, node, noise.ACCEPT))
    tl.store(sample + at, noise.uniform(seed, position, node, noise.SAMPLE))
    first, second = noise.race_uniforms(seed, position, node)
    tl.store(even + at, first)
    tl.store(odd + at, second)


def test_uniforms_are_those_of_their_addresses(rng):
    seeds = rng.integers(0, 1 << 64, 64, np.uint64)
    positions, nodes = rng.integers(0, 1 << 32, 64), rng.integers(0, 1 << 31, 64)
    found = torch.empty((4, 64), dtype=torch.float64)
    _uniforms[(1,)](
        torch.tensor(seeds.view(np.int64)), torch.tensor(positions),
        torch.tensor(nodes, dtype=torch.int32), *found, SIZE=64,
    )  # fmt: skip
    for i in range(64):
        key = (int(seeds[i]) & MASK, int(seeds[i]) >> 32)
        words = [
            philox(key, (int(positions[i]), int(nodes[i]), purpose, 0)) for purpose in (1, 2, 3)
        ]
        pairs = [words[0][:2], words[1][:2], words[2][:2], words[2][2:]]
        wanted = [((high << 32 | low) >> 11) * 2.0**-53 for high, low in pairs]
        assert found[:, i].tolist() == wanted
