"""`python -m studies`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from studies import __main__ as cli

if TYPE_CHECKING:
    from pathlib import Path


def test_one_experiment_as_json_with_its_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    words = ["choice-points", "--quick", "--json", "--plot", str(tmp_path)]
    assert cli.main(words) == 0
    found = json.loads(capsys.readouterr().out)["studies"]["choice-points"]
    assert found["noted"] == [[1, 7], [6, 21]]
    assert {"claim", "rule", "result", "seconds", "share_by_n"} <= set(found)
    assert (tmp_path / "study-choice-points.svg").read_text().startswith("<?xml")


def test_the_text_states_claim_rule_and_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["choice-points", "--quick"]) == 0
    text = capsys.readouterr().out
    assert text.index("claim:") < text.index("rule:") < text.index(": 1 of 7 and 6 of 21")


@pytest.mark.parametrize("name", ["planning", "signal", "reasoning"])
def test_trained_experiments_run_in_their_small_form(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    words = [name, "--quick", "--json", "--plot", str(tmp_path)]
    assert cli.main(words) == 0
    found = json.loads(capsys.readouterr().out)["studies"][name]
    assert found["verdict"] in {"reproduced", "mixed", "not reproduced"}
    for course in found["courses"].values():
        assert [len(scores) for scores in course["scores"]] == [len(course["marks"])]
    assert (tmp_path / f"study-{name}.svg").read_text().startswith("<?xml")


def test_a_folder_that_is_not_there_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["all", "--json", "--plot", str(tmp_path / "no")]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["slug"] == "bad_options"
