"""`--head` of the commands that generate: the head drafts, or it is said why it cannot."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers", reason="heads need a target")

import mtp_verify as mv
from mtp_verify.commands import cli, demo
from mtp_verify.commands.shared.subjects import subject_for
from mtp_verify.heads import Sizes, export, save
from tests.heads import tiny_head
from tests.models import tiny_model

COMMANDS = {
    "generate": ("generate", "abcabc", "--tiny", "--max-new-tokens", "24"),
    "demo": ("demo", "--tiny", "--max-new-tokens", "6", "--repeats", "1"),
    "view": ("view", "abcabc", "--tiny", "--max-new-tokens", "24"),
    "bench": ("bench", "--tiny", "--drafter", "head", "--max-new-tokens", "6", "--mode", "greedy",
              "--per-category", "1"),
}  # fmt: skip
DRAFTING = [name for name in COMMANDS if name != "bench"]  # its --drafter may be repeated


@pytest.fixture
def head(tmp_path):
    """The folder of a head for the tiny model of the commands."""
    model = subject_for(tiny=True).load("float32")
    made = tiny_head("mimo", model, sizes=Sizes.of(model.config))
    save(made, tmp_path / "head", target=model)
    return tmp_path / "head"


def run(capsys, command, *words):
    code = cli.main([*COMMANDS[command], *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture
def one_prompt(monkeypatch):
    monkeypatch.setattr(demo, "PROMPTS", demo.PROMPTS[-1:])


def test_generate_drafts_with_the_head_and_gives_the_same_text(head, capsys):
    words = ("--dtype", "float32")
    _, plain = run(capsys, "generate", *words, "--drafter", "none")
    code, drafted = run(capsys, "generate", *words, "--head", head)
    assert (code, drafted["drafter"]) == (0, "head")
    assert drafted["tokens"] == plain["tokens"]
    assert drafted["stats"]["drafted"] > 0


def test_demo_and_bench_draft_with_the_head(head, one_prompt, capsys):
    code, found = run(capsys, "demo", "--head", head)
    assert (code, found["drafter"]) == (0, "head")
    assert found["prompts"][0]["identity"]["greedy"]["identical"]
    code, found = run(capsys, "bench", "--head", head)
    assert (code, list(found["settings"])) == (0, ["head"])
    entry = found["figures"]["greedy"]["drafters"]["head"]
    assert set(entry["first_level"]) == set(entry["tau"])
    paired = found["figures"]["greedy"]["paired"]["head"]
    assert (paired["num_places"], paired["drafted"]) == (found["num_prompts"], 4.0)
    assert paired["ahead"]["all"]["value"] == 0.0


def test_view_draws_the_trees_of_the_head(head, capsys):
    code, found = run(capsys, "view", "--head", head)
    assert (code, found["drafter"]) == (0, "head")
    drafts = [len(step["tokens"]) - 1 for step in found["steps"]]
    # The head has nothing to read before the first forward; then it grows trees.
    assert drafts[0] == 0
    assert max(drafts) > 4


def test_a_published_head_is_taken_too(tmp_path, capsys):
    model = subject_for(tiny=True).load("float32")
    export(tiny_head("medusa", model, sizes=Sizes.of(model.config)), tmp_path / "m", "medusa")
    code, found = run(capsys, "generate", "--head", tmp_path / "m")
    assert (code, found["drafter"]) == (0, "head")
    assert found["stats"]["drafted"] > 0


@pytest.mark.parametrize("command", COMMANDS)
def test_a_head_of_another_target_is_refused_with_the_reason(command, tmp_path, capsys):
    other = tiny_model("llama")
    save(tiny_head("mimo", other), tmp_path / "head", target=other)
    code, found = run(capsys, command, "--head", tmp_path / "head")
    assert (code, found["error"]["slug"]) == (2, "head_of_another_target")
    message = found["error"]["message"]
    assert message.startswith(f"--head {tmp_path / 'head'} cannot draft for this model: ")
    assert "hidden_size of the target: found 64, wanted 32" in message


def test_sizes_are_compared_if_the_head_names_no_target(tmp_path, capsys):
    save(tiny_head("mimo", tiny_model("llama")), tmp_path / "head")
    code, found = run(capsys, "generate", "--head", tmp_path / "head")
    assert code == 2
    assert "cannot draft for this model" in found["error"]["message"]
    assert "64" in found["error"]["message"]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_head_is_refused(command, tmp_path, capsys):
    code, found = run(capsys, command, "--head", tmp_path / "nowhere")
    assert code == 2
    assert f"{tmp_path / 'nowhere'}: no such file or folder" in found["error"]["message"]
    code, found = run(capsys, command, "--head", tmp_path)
    assert code == 2
    assert "cannot draft for this model" in found["error"]["message"]


@pytest.mark.parametrize("command", DRAFTING)
def test_a_drafter_that_makes_no_use_of_the_head_is_refused(command, head, capsys):
    code, found = run(capsys, command, "--head", head, "--drafter", "ngram")
    assert (code, found["error"]["slug"]) == (2, "bad_options")
    assert "--drafter ngram makes no use of what --head gives" in found["error"]["message"]
    code, found = run(capsys, command, "--drafter", "head")
    assert (code, found["error"]["slug"]) == (2, "bad_options")
    assert "there is no trained head for tiny random model" in found["error"]["message"]


@pytest.mark.parametrize("command", ["generate", "view"])
def test_a_model_that_is_not_there_is_refused(command, capsys):
    code = cli.main([command, "hello", "--model", "no/such/folder"])
    assert code == 2
    assert "no/such/folder: no such folder" in capsys.readouterr().err


def test_heads_load_what_the_option_takes(head):
    model = subject_for(tiny=True).load("float32")
    assert mv.heads.load(head, model).spec.family == "mimo"
