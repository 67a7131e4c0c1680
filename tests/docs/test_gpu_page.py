"""The figures of the page on GPUs are computed by the bench, and its picture shows its launches."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "gpu.md").read_text()
PICTURE = (ROOT / "docs" / "img" / "gpu-step.svg").read_text()


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_gpu", ROOT / "benches" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_floors_are_those_of_the_bench(bench):
    lines = re.findall(r"^\| (\d+) \| (\d+) \| (.*) \|$", PAGE, re.MULTILINE)
    assert len(lines) == len(bench.BATCHES) * len(bench.DRAFTED)
    for batch, drafted, cells in lines:
        for vocab, cell in zip(bench.VOCABS, cells.split(" | "), strict=True):
            size = int(batch), int(drafted), vocab
            found = [bench.floor(*size, bandwidth) for bandwidth in bench.CARDS.values()]
            assert cell == " / ".join(f"{value:.1f}" for value in found)


def test_a_report_without_a_gpu_says_so(bench, tmp_path, monkeypatch, capsys):
    path = tmp_path / "gpu.json"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--json", str(path), "--quick"])
    bench.main()
    report = json.loads(path.read_text())
    assert report["note"] == bench.NOT_MEASURED
    assert capsys.readouterr().out.endswith(f"{bench.NOT_MEASURED}\n")
    assert report["gpu"] is None
    assert [case["microseconds"] for case in report["cases"]] == [None] * len(bench.RULES)
    assert report["compiled"]["kernels"].keys() == bench_kernels()


def bench_kernels() -> set[str]:
    return json.loads((ROOT / "docs" / "data" / "kernels.json").read_text())["kernels"].keys()


@pytest.mark.parametrize("rule", ["token", "block", "rrsw", "traversal", "target_only", "greedy"])
def test_what_a_step_reads_is_at_least_its_rows(bench, rule):
    case = bench.Case(rule, "T=1", "bfloat16", 2, 4, 5000)
    parts = bench.traffic(case)
    rows, inner = 2 * 5, case.inner
    drafted = 2 * inner * 5000 * 4 if case.is_sampled else 0
    assert parts["stats"]["least"] == rows * 5000 * 2 + drafted
    assert all(part["least"] <= part["most"] for part in parts.values())
    assert ("mass" in parts) == case.is_sampled


def test_trees_of_the_bench_have_the_children_they_say(bench):
    assert bench.Case("token", "T=1", "bfloat16", 1, 4, 9).parents == [-1, 0, 1, 2, 3]
    assert bench.Case("rrsw", "T=1", "bfloat16", 1, 5, 9).parents == [-1, 0, 0, 1, 1, 2]
    assert bench.Case("rrsw", "T=1", "bfloat16", 1, 5, 9).inner == 3


def test_launches_of_the_picture_are_those_of_the_page():
    drawn = re.findall(r'class="name"[^>]*>(\w+)<', PICTURE)
    table = re.findall(r"^\| `(\w+)` \|", PAGE.split("## What a step reads")[1], re.MULTILINE)
    assert set(drawn) <= set(table)
    assert len(drawn) >= 7
