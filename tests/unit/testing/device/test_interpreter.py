"""The quick interpreter computes what Triton's computes, and leaves nothing behind."""

from __future__ import annotations

import pytest
import torch

triton = pytest.importorskip("triton")

import triton.language as tl
from triton.runtime import interpreter as stock

from mtp_verify.testing.device import interpreter
from mtp_verify.verifier.kernels.device.triton_ import race, rows


@triton.jit
def _helper(x, y):
    return tl.where(x > y, x - y, x * 2 + y)


@triton.jit
def _kernel(source, goal, LANES: tl.constexpr):
    row = tl.program_id(0)
    lanes = tl.arange(0, LANES)
    x = tl.load(source + row * LANES + lanes).to(tl.float64)
    total = tl.sum(_helper(x[:, None], lanes[None, :]), 1)
    tl.store(goal + row * LANES + lanes, tl.cumsum(total, 0).to(tl.float32), lanes < 3)


def computed() -> torch.Tensor:
    source = torch.arange(8, dtype=torch.float32)
    goal = torch.zeros(8)
    _kernel[(2,)](source, goal, LANES=4)
    return goal


def test_it_computes_the_same():
    wanted = computed()
    assert wanted.count_nonzero() == 6
    with interpreter.hastened():
        assert computed().equal(wanted)
        assert computed().equal(wanted)


def test_it_leaves_nothing_behind():
    before = stock._patch_lang, tl.tensor.__init__, stock.interpreter_builder.options
    with interpreter.hastened():
        computed()
        assert stock._patch_lang is not before[0]
    assert (stock._patch_lang, tl.tensor.__init__, stock.interpreter_builder.options) == before


def test_kernels_that_would_be_compiled_are_refused(monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET: not set"), interpreter.hastened():
        pass


def test_programs_are_larger_inside_the_block():
    before = race.PAIRS, rows.UNROLLED
    with interpreter.enlarged("mtp_verify.verifier.kernels.device.triton_"):
        assert before[0] < race.PAIRS
        assert rows.UNROLLED == 1
    assert before == (race.PAIRS, rows.UNROLLED)
