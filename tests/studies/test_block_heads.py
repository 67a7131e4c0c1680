"""`studies block-heads`: both heads are trained on one text and judged by their speed."""

from __future__ import annotations

from typing import Any

import pytest

from studies import block_heads


@pytest.fixture(scope="module")
def found() -> Any:
    return block_heads.run(quick=True)


def test_both_heads_are_trained_and_measured(found: Any) -> None:
    runs = found.data["runs"]
    assert [run["head"] for run in runs] == ["sequential", "block"]
    for run in runs:
        assert 1.0 <= run["tau"] <= block_heads.DEPTH + 1
        assert len(run["by_depth"]) == len(run["overlap"]) == block_heads.DEPTH
        assert all(0.0 <= share <= 1.0 for share in run["overlap"])
        assert 0.0 < run["draft_ms_min"] <= run["draft_ms"]
    assert "block" in found.tables[0].to_text()


def test_the_judgement_weighs_tau_against_the_time_of_a_step() -> None:
    def run(head: str, tau: float, draft_ms: float) -> dict[str, Any]:
        return {
            "head": head, "seed": 0, "weights": 1, "steps": 1, "tau": tau, "by_depth": [0.5] * 4,
            "overlap": [0.5] * 4, "draft_ms": draft_ms, "draft_ms_min": draft_ms,
        }  # fmt: skip

    slower = block_heads._judge([run("sequential", 2.0, 5.0), run("block", 1.8, 1.0)], 14.0, {})
    # 2 / 19 against 1.8 / 15.
    assert slower.verdict == "reproduced"
    worse = block_heads._judge([run("sequential", 2.0, 5.0), run("block", 1.5, 1.0)], 14.0, {})
    assert worse.verdict == "not reproduced"
