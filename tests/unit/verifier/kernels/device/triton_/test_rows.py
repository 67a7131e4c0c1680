"""Rows are read by the core's operations, bit for bit."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

import mtp_verify as mv
from mtp_verify import _core
from mtp_verify.verifier.kernels.device.triton_ import Workspace, rows, run
from mtp_verify.verifier.kernels.device.triton_.rows import target_source
from tests.random_requests import DTYPES, KINDS, random_logits
from tests.steps import Request, step_of


@triton.jit
def _divide(x, d, out, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    divisor = tl.load(d + at)
    tl.store(out + at, rows.divide(tl.load(x + at), divisor, tl.div_rn(1.0, divisor)))


def test_division_is_ieee_s(rng):
    size = 1 << 16
    bits = rng.integers(0, 1 << 32, (2, size), np.uint32)
    x = bits[0].view(np.float32)
    x = np.where(np.isnan(x), np.float32(np.nan), x)
    # Logits as models have them, and any; quotients stay normal, as temperatures leave them.
    x[: size // 2] = torch.tensor(rng.normal(0, 30, size // 2)).to(torch.bfloat16).float()
    d = np.float32(rng.choice([0.7, 1.3, 1e-2, 3.0], size) * rng.uniform(0.5, 2, size))
    wanted = x / d
    tiny = (np.abs(wanted) < 1e-30) & (x != 0)
    x, d, wanted = x[~tiny], d[~tiny], wanted[~tiny]
    x, d = np.resize(x, size), np.resize(d, size)
    x[:5] = [np.inf, -np.inf, np.nan, 3e38, 0.0]
    d[:5] = [0.5, 3.0, 1.0, 0.01, 0.7]
    wanted = x / d
    out = torch.empty(size)
    _divide[(1,)](torch.tensor(x), torch.tensor(d), out, SIZE=size)
    np.testing.assert_array_equal(out.numpy(), wanted)


@triton.jit
def _fold(x, out, ROWS: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, ROWS)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out + tl.arange(0, ROWS), rows.fold(tl.load(x + at)))


def test_folds_add_halves_onto_halves(rng):
    for size in (1, 2, 16, 128):
        x = rng.normal(0, 1, (4, size)) * 10.0 ** rng.integers(-9, 9, (4, size))
        out = torch.empty(4, dtype=torch.float64)
        _fold[(1,)](torch.tensor(x), out, ROWS=4, SIZE=size)
        wanted = x.copy()
        while wanted.shape[1] > 1:
            half = wanted.shape[1] // 2
            wanted = wanted[:, :half] + wanted[:, half:]
        np.testing.assert_array_equal(out.numpy(), wanted[:, 0])


@triton.jit
def _probabilities(source, records, out, SIZE: tl.constexpr):
    row = tl.program_id(0)
    tokens = tl.arange(0, SIZE)
    within = tokens < source.width
    weight = rows.weights(source, records, row, tokens, within).to(tl.float64)
    tl.store(out + row * source.width + tokens, weight / tl.load(records.total + row), within)


def test_probabilities_are_the_core_s(rng):
    """Weights, totals and windows together: each probability has the core's bits."""
    for vocab, dtype in ((1, 0), (17, 1), (130, 2), (2049, 0), (5000, 1)):
        logits = random_logits(rng, 12, vocab, DTYPES[dtype], [k for k in KINDS if k != "masked"])
        logits[3, : vocab // 2] = -torch.inf
        logits[4, -1] = 200.0
        params = [
            mv.SamplingParams(temperature=float(t))
            for t in (1.0, 0.7, 0.03, 2.5, 1.0, 0.9, 0.0, 1.0, 0.2, 7.0, 1.0, 0.31)
        ]
        requests = [
            Request([-1], [-1], "deterministic", logits[row : row + 1], own, "target_only")
            for row, own in enumerate(params)
        ]
        step = step_of(requests, order=rng)
        workspace = Workspace(step.capacity, "cpu")
        run(step, workspace)
        out = torch.empty((len(params), vocab), dtype=torch.float64)
        size = triton.next_power_of_2(vocab)
        _probabilities[(len(params),)](target_source(step), workspace.target, out, SIZE=size)
        for row, own in enumerate(params):
            wanted = _core.shaped_row(logits[row : row + 1], own)
            np.testing.assert_array_equal(out[row].numpy(), np.ravel(wanted), err_msg=f"{row}")
