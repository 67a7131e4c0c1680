"""`mtp-verify study`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from mtp_verify import cli

if TYPE_CHECKING:
    from pathlib import Path


def test_one_experiment_as_json_with_its_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    words = ["study", "choice-points", "--quick", "--json", "--plot", str(tmp_path)]
    assert cli.main(words) == 0
    found = json.loads(capsys.readouterr().out)["studies"]["choice-points"]
    assert found["verdict"] == "reproduced"
    assert {"claim", "rule", "result", "seconds", "share_by_n"} <= set(found)
    assert (tmp_path / "study-choice-points.svg").read_text().startswith("<?xml")


def test_the_text_states_claim_rule_and_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "choice-points"]) == 0
    text = capsys.readouterr().out
    assert text.index("claim:") < text.index("rule:") < text.index("reproduced: 1 of 7 and 6 of 21")


def test_a_folder_that_is_not_there_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["study", "all", "--json", "--plot", str(tmp_path / "no")]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["slug"] == "bad_options"
