"""Every benchmark runs, at its smallest size, and writes its report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slow import few

ROOT = Path(__file__).parents[2]

# The fewest turns of each.
SMALLEST = {
    "block_table": ["--steps", "3"],
    "draft_batch": ["--rounds", "1"],
    "decode_batch": ["--rounds", "1", "--max-new-tokens", "4"],
    "forward": ["--rounds", "1", "--widths", "1", "2"],
    "gpu": ["--turns", "1"],
    "json_schema": ["--prompts", "2", "--timed", "1", "--batch", "2", "--max-new-tokens", "8"],
    "mixed_batches": ["--rounds", "1", "--max-new-tokens", "4", "--dtypes", "bfloat16"],
    "planner": ["--rounds", "1", "--max-new-tokens", "4"],
    "processors": ["--rounds", "1"],
    "simulation": ["--rounds", "1", "--max-new-tokens", "4"],
    "rules": ["--drafts", "1", "--rounds", "1"],
    "suffix_store": ["--tokens", "2000", "--rounds", "9", "--max-new-tokens", "4"],
    "verify_batch": ["--rounds", "1"],
    "verify_chain": ["--rounds", "1"],
}


def test_none_is_missing() -> None:
    assert {path.stem for path in (ROOT / "benches").glob("*.py")} == SMALLEST.keys()


@pytest.mark.parametrize("name", few(SMALLEST, fast=("block_table", "verify_batch")))
@pytest.mark.timeout(600)
def test_runs(name: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    run = [sys.executable, ROOT / "benches" / f"{name}.py", "--json", report, *SMALLEST[name]]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    assert json.loads(report.read_text(encoding="utf-8"))
