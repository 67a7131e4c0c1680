"""The parts of a step in torch operators, each against its definition."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from mtp_verify.verifier import reference
from mtp_verify.verifier.kernels.device.torch_ import Workspace
from mtp_verify.verifier.kernels.device.torch_.arithmetic import (
    even_exponent,
    fused_subtract,
    power_of_two,
    round_up,
)
from mtp_verify.verifier.kernels.device.torch_.drafter import sums_without
from mtp_verify.verifier.kernels.device.torch_.noise import philox
from mtp_verify.verifier.kernels.device.torch_.weights import (
    around,
    block_sums,
    fold,
    lowest,
    weigh,
)


def rounded(x: Fraction) -> float:
    return x.numerator / x.denominator  # Python rounds a quotient of integers once.


def test_differences_are_rounded_once(rng: np.random.Generator) -> None:
    whole = rng.random(3000, np.float32)
    taken = rng.random(3000, np.float32)
    factor = rng.random(3000) * 2.0 ** rng.integers(-3, 3, 3000)
    # A third of them nearly cancel.
    factor[:1000] = whole[:1000].astype(float) / taken[:1000]
    found = fused_subtract(*(torch.from_numpy(x).double() for x in (whole, factor, taken)))
    wanted = [
        rounded(Fraction(float(u)) - Fraction(float(f)) * Fraction(float(v)))
        for u, f, v in zip(whole, factor, taken, strict=True)
    ]
    assert found.tolist() == wanted


def test_weights_have_their_stated_error_and_whole_powers_of_two_between_windows() -> None:
    y = torch.linspace(-80.0, 3.0, 100_001)
    zero = torch.zeros(1, dtype=torch.int32)
    near = weigh(y, zero, torch.float64)
    wanted = (y.double() * (float(np.float32(np.log2(np.e))) * np.log(2))).exp()
    assert float((near.double() / wanted - 1).abs().max()) < 2e-7
    far = weigh(y, zero - 20, torch.float64)
    assert torch.equal(near * 2.0**20, far)
    above = weigh(torch.tensor([90.0, torch.inf, torch.nan]), zero, torch.float64)
    assert (above > 1e29).all()


@pytest.mark.parametrize("wide", [torch.float64, torch.float32])
def test_windows_hold_what_they_are_made_around(wide: torch.dtype) -> None:
    y = torch.tensor([0.0, 0.3, -0.3, 5.0, -1000.0, 2.0**20, 88.0])
    exponent = around(y, wide)
    weight = weigh(y, exponent, wide)
    assert ((weight >= 0.49) & (weight <= 4.1)).all()
    assert (lowest(exponent, wide) < y).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_powers_and_exponents(dtype: torch.dtype) -> None:
    powers = torch.tensor([-126, -60, -1, 0, 1, 2, 127])
    found = power_of_two(powers, dtype)
    assert found.tolist() == [2.0 ** int(p) for p in powers]
    assert even_exponent(1.5 * found).tolist() == [int(p) // 2 * 2 for p in powers]
    assert power_of_two(torch.tensor([-5000]), dtype).tolist() == [0.0]


def test_numbers_are_rounded_up() -> None:
    x = torch.tensor([1.0, 1.0 + 1e-12, -1.0 - 1e-12, 0.1], dtype=torch.float64)
    found = round_up(x)
    assert (found.double() >= x).all()
    below = torch.nextafter(found, torch.tensor(-torch.inf))
    assert (below.double() < x).all()


@pytest.mark.parametrize("width", [1, 15, 16, 17, 2047, 2048, 2049, 7000])
def test_sums_have_the_order_of_the_core(rng: np.random.Generator, width: int) -> None:
    values = rng.random((2, width))
    for row, found in zip(values, block_sums(torch.from_numpy(values)), strict=True):
        wanted = []
        for start in range(0, width, 2048):
            lanes = [0.0] * 16
            for place, value in enumerate(row[start : start + 2048]):
                lanes[place % 16] += value
            wanted.append(folded(lanes))
        assert found.tolist() == wanted
        assert float(fold(found)) == folded(wanted)


def folded(values: list[float]) -> float:
    values = list(values)
    size = 1
    while size < len(values):
        size *= 2
    values += [0.0] * (size - len(values))
    while len(values) > 1:
        half = len(values) // 2
        values = [a + b for a, b in zip(values[:half], values[half:], strict=True)]
    return values[0]


def test_sums_without_some_places(rng: np.random.Generator) -> None:
    width = 5000
    weights = torch.from_numpy(rng.random((3, width)))
    places = torch.tensor([[5, 2050, 7], [-1, 4999, -1], [-1, -1, -1]])
    left = weights.clone()
    for row, own in enumerate(places.tolist()):
        left[row, [place for place in own if place >= 0]] = 0
    found = sums_without(block_sums(weights), width, places, lambda at: weights.gather(1, at))
    assert torch.equal(found, block_sums(left))


def test_philox_gives_the_published_answers() -> None:
    # Random123's kat_vectors for philox4x32-10.
    ones = 0xFFFFFFFF
    cases = [
        ((0, 0), (0, 0, 0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ((ones, ones), (ones,) * 4, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ]
    for key, counter, wanted in cases:
        found = philox(tensors(key), tensors(counter))
        assert [int(word) for word in found] == wanted


def tensors(words: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([word]) for word in words)


def test_philox_is_the_reference_s(rng: np.random.Generator) -> None:
    counter = rng.integers(0, 1 << 32, (50, 4), np.uint32)
    key = (123456789, 0xFEDCBA98)
    found = philox(tensors(key), tuple(torch.from_numpy(counter.astype(np.int64)).unbind(1)))
    assert torch.stack(found, dim=1).tolist() == reference.philox(key, counter).tolist()


def test_parts_cover_all_rows() -> None:
    from mtp_verify.verifier.kernels.device.layout import Capacity

    workspace = Workspace(Capacity(1, 1, 1, 1, 1, 1, 1))
    for width in (1, 100_000, 1 << 24):
        covered = [i for part in workspace.parts(50, width) for i in range(50)[part]]
        assert covered == list(range(50))
