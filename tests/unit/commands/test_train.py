"""`mtp-verify train`: from nothing to a head that drafts; and what it refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import mtp_verify as mv
from mtp_verify.commands import cli
from mtp_verify.commands.shared.subjects import subject_for
from mtp_verify.training import run as run_module
from mtp_verify.training.run import Budget
from mtp_verify.training.shards import Shards

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


def test_a_run_starts_from_a_head_trained_before(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(tmp_path / "one") == 0
    first = json.loads(capsys.readouterr().out)
    start = ["--from", first["head"], "--set", "plain_share=0", "--set", "matrix_rate=0.001"]
    assert _train(tmp_path / "two", *start) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["recipe"]["matrix_rate"] == 0.001
    old, new = (mv.heads.load(report["head"]) for report in (first, second))
    assert new.record["start"]["recipe"] == first["recipe"]
    # Two small steps from the old weights, not from random ones.
    before, after = (head.get_parameter("levels.0.fusion.weight") for head in (old, new))
    assert 0 < (after - before).norm() < 0.2 * before.norm()

    assert _train(tmp_path / "three", "--layers", "2", *start[:2]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["slug"] == "bad_recipe"
    assert "num_layers: found 1, wanted 2 as in the recipe" in error["message"]


def test_an_independent_model_is_trained_and_told_how_to_be_used(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(tmp_path, "--head", "model", "--layers", "1") == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["num_layers"] == 1
    words = ["--tokens", "100", "--epochs", "2", "--head", "model", "--layers", "1"]
    assert cli.main(["train", "--model", "tiny", "--out", str(tmp_path), *words]) == 0
    assert "mv.drafters.Model(AutoModelForCausalLM.from_pretrained(" in capsys.readouterr().out
    config = json.loads((tmp_path / "head" / "config.json").read_text())
    assert config["num_hidden_layers"] == 1


def test_own_prompts_are_kept_apart_from_held_out_ones(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.txt"
    asked = [f"Question number {number}?" for number in range(8)]
    mine.write_text("\n".join(asked))
    folder = tmp_path / "run"
    # More tokens than these prompts give: the text ends with them.
    words = ["--prompts", str(mine), "--tokens", "100000", "--questions", "0.5"]
    assert _train(folder, *words) == 0
    report = json.loads(capsys.readouterr().out)
    found = {}
    for kind in ("text", "held-out"):
        shards = Shards(sorted((folder / kind).glob("shard-*.safetensors")))
        # The first token of a text has no row, the last eight are the answer.
        read = [bytes(shards[n].tokens.tolist()).decode("latin-1") for n in range(len(shards))]
        found[kind] = {q for q in asked if any(text.startswith(q[1:]) for text in read)}
    assert len(found["text"]) == 7
    assert found["text"] | found["held-out"] == set(asked)
    assert not found["text"] & found["held-out"]
    assert mv.heads.load(report["head"]).record["prompts"] == {"text": 7, "held-out": 1}

    mine.write_text("\n".join(asked[1:]))
    assert _train(folder, *words) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["slug"] == "bad_run_folder"
    assert "other prompts" in error["message"]
    assert _train(folder) == 2  # nor those that the package brings along


def test_a_prompt_that_is_too_long_leaves_no_run_behind(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"prompt": "short"}\n' + json.dumps({"prompt": "long" * 1024}))
    assert _train(tmp_path / "run", "--prompts", str(mine)) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert "mine.jsonl, line 2: found a prompt of 4096 tokens" in error["message"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("depth", "wanted a value of type int"),
        ("depth=many", "wanted a value of type int"),
        ("seed=3", "wanted NAME=VALUE with one of these names: cool_down, decay, depth"),
        ("curve=1", "wanted NAME=VALUE"),
    ],
)
def test_settings_that_no_recipe_has_are_refused(
    word: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(tmp_path, "--set", word) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["slug"] == "bad_options"
    assert message in error["message"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--head", "eagle"], "family: found 'mimo', wanted 'eagle'"),
        (["--seed", "3"], "seed: found 0"),
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
    from mtp_verify.commands.train import _HEADS, _TINY
    from mtp_verify.training.recipe import Recipe

    return Recipe(**_HEADS["mtp"], **_TINY).as_dict()


@pytest.mark.parametrize(
    ("words", "slug"),
    [
        (["--model", "/nowhere"], "bad_options"),
        (["--minutes", "0"], "param_out_of_range"),
        (["--questions", "1.5"], "param_out_of_range"),
        (["--prompts", "/dev/null"], "not_a_file"),
        (["--loss", "mse"], "unknown_loss"),
        (["--adversarial", "0.1"], "bad_recipe"),
    ],
)
def test_wrong_options_are_refused(
    words: list[str], slug: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(tmp_path / "run", *words) == 2
    assert json.loads(capsys.readouterr().out)["error"]["slug"] == slug
