"""Other programs, each in an environment of its own: what is not there is skipped."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def interpreter(variable, default, *modules):
    """The interpreter of the environment that `variable` names and that has `modules`."""
    path = Path(os.environ.get(variable, ROOT / default)) / "bin" / "python"
    if not path.exists():
        pytest.skip(f"{path} is not there; {variable} says where {modules[0]} is installed")
    if subprocess.run([path, "-c", f"import {', '.join(modules)}"], capture_output=True).returncode:
        pytest.skip(f"{path} cannot import {' and '.join(modules)}")
    return path


def run_vllm(python, folder, request, **variables):
    """Run `vllm_worker.py` on a request, and return its report."""
    (folder / "request.json").write_text(json.dumps(request))
    words = [python, ROOT / "tests/vllm_worker.py", folder / "request.json"]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=900, env={**os.environ, **variables}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
