"""Real processes: killed at random moments, and two of them on one run."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mtp_verify.checkpoints.tensors import TensorFile

ROOT = Path(__file__).parents[3]
STEPS = 120
KILLS = 20


def _start(stand: Any, folder: Path, steps: int, rank: int = 0, world: int = 1) -> Any:
    stand.shards((1 << 16,))  # before the final norm: what the default head reads
    paths = [
        next(stand.folder.glob(f"{name}-*/shard-00000.safetensors")) for name in ("text", "held")
    ]
    words = [*map(str, paths), str(folder), str(steps), str(rank), str(world)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training_worker", *words],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    file = TensorFile(folder / "state.safetensors")
    return {name: file.read(name) for name in file.tensors}


def _finish(process: Any) -> None:
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    assert out.endswith("done\n")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_run_killed_twenty_times_ends_with_the_same_bits(stand: Any, tmp_path: Path) -> None:
    process = _start(stand, tmp_path / "whole", STEPS)
    assert process.stdout.readline() == "from step 0\n"
    ready = time.monotonic()
    _finish(process)
    length = time.monotonic() - ready
    moments = random.Random(7)
    resumed_at = []
    for _ in range(KILLS):
        process = _start(stand, tmp_path / "killed", STEPS)
        line = process.stdout.readline()
        resumed_at.append(int(line.split()[-1]))
        # Each life gets on by a twentieth of the run at most, so that there is always work left.
        time.sleep(moments.random() * length / KILLS)
        process.kill()
        process.communicate()
    process = _start(stand, tmp_path / "killed", STEPS)
    _finish(process)
    whole, killed = _weights(tmp_path / "whole"), _weights(tmp_path / "killed")
    assert len(set(resumed_at)) > 2, "the kills came before anything was saved"
    assert resumed_at == sorted(resumed_at)
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_as_one(stand: Any, tmp_path: Path) -> None:
    steps = 20
    _finish(_start(stand, tmp_path / "one", steps))
    pair = [_start(stand, tmp_path / "two", steps, rank, 2) for rank in (0, 1)]
    for process in pair:
        _finish(process)
    one, two = (TensorFile(tmp_path / name / "state.safetensors") for name in ("one", "two"))
    curves = [json.loads(file.metadata["progress"])["curve"] for file in (one, two)]
    losses = [[point["loss"] for point in curve] for curve in curves]
    # Sums come in another order: equal to float32's rounding, grown over the steps.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert [point["tau"] for point in curves[0]] == [point["tau"] for point in curves[1]]
    one_weights, two_weights = (_weights(tmp_path / name) for name in ("one", "two"))
    assert one_weights.keys() == two_weights.keys()
    for name, weight in one_weights.items():
        torch.testing.assert_close(two_weights[name], weight, rtol=1e-5, atol=1e-5, msg=name)
