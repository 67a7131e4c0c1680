"""`studies heads`: budgets that are equal, training of each kind, and the judgement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from studies import heads
from studies.head_training import train_drafter, write_text
from studies.spelling import small_target

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def found() -> Any:
    return heads.run(quick=True)


def test_those_that_are_compared_have_equal_weights(found: Any) -> None:
    weights = [facts["weights"] for facts in found.data["drafters"].values()]
    assert len(weights) == heads.NUM_EQUAL
    assert max(weights) < 1.03 * min(weights)


def test_every_drafter_is_measured_in_both_modes(found: Any) -> None:
    for by_name in found.data["figures"].values():
        assert set(by_name) == {"no draft", *found.data["drafters"]}
        assert all(1.0 <= figure["tau"] <= heads.DEPTH + 1 for figure in by_name.values())
    assert all("independent" in table.to_text() for table in found.tables)


def test_the_plot_is_drawn(found: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found.draw(tmp_path / "heads.svg")
    assert (tmp_path / "heads.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize("entrant", heads.ENTRANTS[-1:], ids=lambda entrant: entrant.name)
def test_koalas_form_trains(entrant: Any, tmp_path: Path) -> None:
    target = small_target(num_layers=2)
    shards = write_text(target, (-1,), 4, 8, tmp_path)
    drafter, weights = train_drafter(entrant, target, shards, 4, tmp_path / "run")
    assert drafter.num_tokens == heads.DEPTH
    assert weights > 80_000  # two blocks


def test_the_judgement_counts_what_is_surely_above() -> None:
    def figure(tau: float, share: float) -> dict[str, Any]:
        return {
            "tau": tau, "tau_error": 0.01, "by_depth": [share] * 4, "tried": [1000] * 4,
            "draft_ms": 1.0, "tokens_per_second": 9.0,
        }  # fmt: skip

    trained = {
        entrant.name: {"kind": entrant.kind, "weights": 1, "seconds": 1.0}
        for entrant in heads.ENTRANTS
    }

    def judged(causal: float, deep: float) -> str:
        by_name = {
            name: figure(deep if "K = 2" in name else 1.0, causal * (facts["kind"] == "causal"))
            for name, facts in trained.items()
        }
        return heads._judge(trained, dict.fromkeys(("greedy", "sampled"), by_name), {}).verdict

    assert judged(0.9, 1.5) == "reproduced"
    assert judged(0.9, 1.0) == judged(0.0, 1.5) == "mixed"
    assert judged(0.0, 0.9) == "not reproduced"
