"""The V2 samplers of vLLM's own source, where an unpacked wheel is at hand.

`pip download --no-deps vllm==0.34.0` and `unzip` make one; VLLM_SOURCE names the folder, or several
with colons between them. Nothing of vLLM is installed or run but its samplers' files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parents[2] / "vllm_source_worker.py"
FOLDERS = [Path(name) for name in os.environ.get("VLLM_SOURCE", "").split(":") if name]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "folder", FOLDERS or [pytest.param(None, marks=pytest.mark.skip("VLLM_SOURCE is not set"))]
)
def test_its_samplers_emit_what_the_core_emits(folder):
    pytest.importorskip("triton")
    (record,) = folder.glob("vllm-*.dist-info")
    version = record.name.removeprefix("vllm-").removesuffix(".dist-info")
    done = subprocess.run(
        [sys.executable, WORKER, folder, version], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cases = json.loads(done.stdout.splitlines()[-1])
    # Rows that were drawn from come in two forms since 0.34, in one before.
    assert len(cases) == (18 if version.startswith(("0.32", "0.33")) else 27)
    for name, (found, wanted) in cases.items():
        assert found == wanted, name
