"""`make kernels` compiles what is launched, and finds what it looks for: on kernels of a toy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]

KERNELS = """
import triton
import triton.language as tl


@triton.jit
def twice(x):
    return x + x


@triton.jit
def forgotten(x):
    return x


@triton.jit
def plain(x, y, VALUES: tl.constexpr):
    place = tl.arange(0, VALUES)
    value = tl.load(x + place).to(tl.float64)
    tl.store(y + place, (twice(value) * value + 1.0) / 3.0)


@triton.jit
def fused(x, y, VALUES: tl.constexpr):
    place = tl.arange(0, VALUES)
    value = tl.load(x + place).to(tl.float64)
    tl.store(y + place, tl.fma(value, value, 1.0))


@triton.jit
def logarithm(x, y, VALUES: tl.constexpr):
    place = tl.arange(0, VALUES)
    tl.store(y + place, tl.log(tl.load(x + place).to(tl.float32)).to(tl.float64))


@triton.jit
def rough(x, y, VALUES: tl.constexpr):
    place = tl.arange(0, VALUES)
    value = tl.load(x + place).to(tl.float32)
    tl.store(y + place, tl.exp(value / (value + 1.0)).to(tl.float64))


@triton.jit
def crowded(x, y, VALUES: tl.constexpr):
    place = tl.arange(0, VALUES)
    value = tl.load(x + place).to(tl.float64)
    tl.store(y + place, value / tl.sum(value))
"""

RUN = """
import json

import check_kernels as check
import torch
from toy import kernels

IN = {16: torch.empty(64, dtype=torch.bfloat16), 32: torch.empty(64, dtype=torch.float32)}
OUT = torch.empty(64, dtype=torch.float64)


def run():
    for function in (kernels.plain, kernels.fused, kernels.logarithm, kernels.rough):
        for values in IN.values():
            function[(1,)](values, OUT, VALUES=64, num_warps=1, enable_fp_fusion=False)
    kernels.plain[(1,)](IN[16], OUT, VALUES=64, num_warps=1, enable_fp_fusion=True)
    kernels.crowded[(1,)](OUT, OUT, VALUES=16384, num_warps=1, enable_fp_fusion=False)


if __name__ == "__main__":
    jobs = check.trace(run)
    results = check.compile_all(jobs, 2)
    needs = check.needed(jobs, results)
    tight = json.loads(json.dumps(needs))
    tight["kernels.plain"]["sm_90"]["registers"] = 8
    del tight["kernels.rough"]
    faults = {}
    for job, found in zip(jobs, results):
        faults.setdefault(f"{job.target} {job.kernel}", []).append(found.faults)
    print(json.dumps({
        "jobs": len(jobs),
        "faults": faults,
        "needs": needs,
        "uncovered": check.uncovered(check.modules("toy"), {job.function for job in jobs}),
        "same": check.exceeded(needs, needs),
        "exceeded": check.exceeded(needs, tight),
    }))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What is found in the toy, by a process of its own: the script changes Triton's driver."""
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "toy").mkdir()
    (folder / "toy" / "__init__.py").touch()
    (folder / "toy" / "kernels.py").write_text(KERNELS)
    (folder / "run.py").write_text(RUN)
    path = f"{ROOT / 'scripts'}:{folder}:{ROOT / 'python'}"
    environment = {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(folder / "cache"), "PATH": ""}
    done = subprocess.run(
        [sys.executable, str(folder / "run.py")], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


NVIDIA = ("sm_80", "sm_90", "sm_100")
TARGETS = (*NVIDIA, "gfx942")


def test_every_launch_is_compiled_for_every_target_once(report):
    assert report["jobs"] == 4 * (4 * 2 + 2)
    assert report["needs"]["kernels.plain"]["sm_90"]["specialisations"] == 3


@pytest.mark.parametrize("target", TARGETS)
def test_what_the_source_says_is_no_fault(report, target):
    for kernel in ("fused", "logarithm"):
        assert report["faults"][f"{target} kernels.{kernel}"] == [[], []]
    assert report["faults"][f"{target} kernels.plain"][:2] == [[], []]


@pytest.mark.parametrize("target", NVIDIA)
def test_approximations_are_found(report, target):
    for found in report["faults"][f"{target} kernels.rough"]:
        assert any(fault.startswith("PTX ex2.approx") for fault in found)
        assert "PTX div.full.f32" in found


@pytest.mark.parametrize("target", TARGETS)
def test_permission_to_fuse_is_found(report, target):
    assert (
        "launched without enable_fp_fusion=False" in report["faults"][f"{target} kernels.plain"][2]
    )


@pytest.mark.parametrize("target", NVIDIA)
def test_fused_operations_are_found(report, target):
    assert "PTX fma.rn.f64" in report["faults"][f"{target} kernels.plain"][2]


@pytest.mark.parametrize("target", TARGETS)
def test_local_memory_is_found(report, target):
    (found,) = report["faults"][f"{target} kernels.crowded"]
    said = "vgpr_spill_count" if target == "gfx942" else "bytes of STACK"
    assert any(said in fault for fault in found)


def test_a_kernel_that_is_not_launched_is_found(report):
    assert report["uncovered"] == ["toy.kernels.forgotten"]


def test_registers_above_the_bound_are_found(report):
    assert report["same"] == []
    used = report["needs"]["kernels.plain"]["sm_90"]["registers"]
    assert f"sm_90 kernels.plain: {used} registers, bound 8" in report["exceeded"]
    assert any("kernels.rough" in line and line.endswith("bound 0") for line in report["exceeded"])
