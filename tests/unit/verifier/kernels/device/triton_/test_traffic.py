"""What a step reads of rows, counted in the interpreter, is what `benches/gpu.py` says."""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from triton.runtime import interpreter

import mtp_verify as mv

BENCH = Path(__file__).parents[6] / "benches" / "gpu.py"
STAGES = {
    "stats": ("measure", "describe"),
    "shaping": ("bound", "gather", "select", "total", "settle"),
    "rest": ("look_up",),
    "rounds": ("decide",),
    "mass": ("renew",),
    "draw": ("draw",),
    "race": ("race",),
    "walk": ("walk",),
}
STAGE_OF = {kernel: stage for stage, kernels in STAGES.items() for kernel in kernels}


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_gpu", BENCH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def read(monkeypatch):
    """Bytes that each stage reads of the target's rows (bfloat16) and the drafter's (float16)."""
    counted: Counter[tuple[str, str]] = Counter()
    stage = [""]
    load, launch = (
        interpreter.InterpreterBuilder.create_masked_load,
        interpreter.GridExecutor.__call__,
    )

    def counting(self, ptrs, mask, *rest):
        element = str(ptrs.get_element_ty())
        counted[stage[0], element] += 2 * int(mask.data.sum())
        return load(self, ptrs, mask, *rest)

    def noting(self, *args, **kwargs):
        stage[0] = STAGE_OF[self.fn.__name__]
        return launch(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", counting)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", noting)
    return counted


@pytest.mark.parametrize(
    ("rule", "shaping"),
    [
        ("token", "T=1"),
        pytest.param("block", "T=0.7", marks=pytest.mark.slow),
        pytest.param("traversal", "T=1", marks=pytest.mark.slow),
        pytest.param("target_only", "top-k 50, top-p 0.9", marks=pytest.mark.slow),
        ("coupled", "T=1"),
        ("greedy", "T=1"),
    ],
)
def test_bytes_are_those_of_the_bench(bench, read, rule, shaping):
    case = bench.Case(rule, shaping, "bfloat16", 2, 4, 6000)
    setting = bench.Setting(case, torch.device("cpu"))
    if case.is_sampled:
        setting.drafts = replace(setting.drafts, probs=setting.probs.half())
    verifier = mv.ops.DeviceVerifier(
        max_batch=2, max_rows=10, vocab=6000, device="cpu", backend="triton"
    )
    verifier.plan(setting.drafts, case.params, rule=rule, seeds=[1, 2], positions=[5, 6])
    read.clear()
    verifier.verify(setting.logits)
    verifier.host()
    # The bench's drafter has float32.
    found = {stage: read[stage, "bf16"] + 2 * read[stage, "fp16"] for stage in STAGES}
    parts = bench.traffic(case)
    for stage, part in parts.items():
        # A block's first stripe is read before the rest, and single tokens besides.
        assert part["least"] <= found[stage] * 1.001
        assert found[stage] <= 1.03 * part["most"]
    row = 6000 * 2
    for stage in STAGES.keys() - parts.keys():
        assert found[stage] <= 2 * row
