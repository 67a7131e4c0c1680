"""`mtp-verify train`: from nothing to a head that drafts; and what it refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import mtp_verify as mv
from mtp_verify import cli
from mtp_verify.subjects import subject_for
from mtp_verify.training import run as run_module
from mtp_verify.training.run import Budget

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers and groups small enough for a test."""

    def budget(**fields: Any) -> Budget:
        return Budget(**{**fields, "answer": 8, "together": 3, "held_out": 2})

    monkeypatch.setattr(run_module, "Budget", budget)


def _train(folder: Path, *words: str) -> int:
    return cli.main(
        ["train", "--model", "tiny", "--out", str(folder), "--tokens", "100", "--epochs", "2",
         "--json", *words]
    )  # fmt: skip


def test_a_run_gives_a_head_that_drafts_and_is_not_done_twice(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(tmp_path) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["status"] == "ok"
    assert report["plan"]["steps"] == report["curve"][-1]["step"] >= 2
    assert report["tau"] >= 1.0
    model = subject_for(tiny=True).load("float32")
    head = mv.heads.load(report["head"], target=model)
    prompt = list(b"Which way?")
    greedy = mv.SamplingParams(temperature=0.0)
    plain = mv.Decoder(model, None, greedy).generate(prompt, max_new_tokens=12)
    drafted = mv.Decoder(model, mv.drafters.Heads(head), greedy).generate(prompt, max_new_tokens=12)
    assert drafted.tokens == plain.tokens
    assert drafted.stats.drafted > 0

    shard = tmp_path / "text" / "shard-00000.safetensors"
    written = shard.stat().st_mtime_ns
    assert _train(tmp_path) == 0
    again = json.loads(capsys.readouterr().out)
    assert shard.stat().st_mtime_ns == written
    assert again["curve"] == report["curve"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--head", "eagle"], "holds a run with family = 'mimo', and 'eagle' is asked for"),
        (["--seed", "3"], "seed = 0"),
    ],
)
def test_a_folder_of_another_run_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {"recipe": {"family": "mimo", **_recipe_of_tiny()}}
    (tmp_path / "plan.json").write_text(json.dumps(recipe))
    assert _train(tmp_path, *words) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["slug"] == "bad_run_folder"
    assert message in error["message"]


def _recipe_of_tiny() -> dict[str, Any]:
    from mtp_verify.training.command import _HEADS, _TINY
    from mtp_verify.training.recipe import Recipe

    return Recipe(**_HEADS["mtp"], **_TINY).as_dict()


@pytest.mark.parametrize(
    ("words", "slug"),
    [
        (["--model", "/nowhere"], "bad_options"),
        (["--minutes", "0"], "param_out_of_range"),
        (["--loss", "mse"], "unknown_loss"),
        (["--adversarial", "0.1"], "bad_recipe"),
    ],
)
def test_wrong_options_are_refused(
    words: list[str], slug: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(tmp_path / "run", *words) == 2
    assert json.loads(capsys.readouterr().out)["error"]["slug"] == slug
