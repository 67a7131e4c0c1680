"""`scripts/engine_tests.py` on stand-ins of tests and engines: what counts, and what it puts in."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from tests.scripts import load_script

SCRIPT = load_script("engine_tests")
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@pytest.mark.parametrize(
    ("without", "found", "worse", "is_right"),
    [
        ({"a": PASSED, "b": FAILED}, {"a": PASSED, "b": FAILED}, [], True),
        ({"a": FAILED}, {"a": PASSED}, [], True),
        ({"a": PASSED, "b": PASSED}, {"a": FAILED, "b": PASSED}, ["a"], False),
        ({"a": SKIPPED}, {"a": FAILED}, ["a"], False),
        ({"a": PASSED}, {"a": SKIPPED}, [], True),
        ({"a": PASSED, "b": PASSED}, {"a": PASSED}, ["b"], False),  # One is gone.
        ({}, {"a": PASSED, "b": FAILED}, ["b"], False),
        ({}, {"a": PASSED}, [], True),
        ({"a": FAILED}, {}, [], False),
        ({}, {}, [], False),
    ],
)
def test_a_test_may_not_fail_that_did_not_fail_before(without, found, worse, is_right):
    text, verdict = SCRIPT.compared(without, found)
    assert verdict is is_right
    lines = text.splitlines()
    assert [line.split(":")[1].strip() for line in lines if line.startswith("worse: ")] == worse


def test_the_exit_status_and_the_report(tmp_path, monkeypatch, capsys):
    place = tmp_path / "tests" / "test_it.py"
    place.parent.mkdir()
    place.touch()
    runs = []

    def outcomes_of(engine, tests, *, is_ours):
        runs.append((engine, tests, is_ours))
        return {"a": FAILED if is_ours else PASSED}

    monkeypatch.setattr(SCRIPT, "outcomes_of", outcomes_of)
    report = tmp_path / "report.json"
    assert SCRIPT.main(["vllm", str(place), "--report", str(report)]) == 1
    assert runs == [("vllm", [place], False), ("vllm", [place], True)]
    assert "worse: a: passed, then failed" in capsys.readouterr().out
    kept = json.loads(report.read_text())
    assert kept == {"engine": "vllm", "without": {"a": PASSED}, "with": {"a": FAILED}}


@pytest.mark.parametrize("name", ["tests/test_it.py", "test_it.py"])
def test_files_that_are_not_there_are_refused(tmp_path, name, capsys):
    if "/" not in name:
        (tmp_path / name).touch()  # There, and not below `tests`.
    with pytest.raises(SystemExit):
        SCRIPT.main(["sglang", str(tmp_path / name)])
    assert "wanted one below `tests`" in capsys.readouterr().err


def test_outcomes_are_those_of_whole_tests(monkeypatch):
    found = {}
    monkeypatch.setattr(SCRIPT, "_outcomes", found)

    def report(name, when, outcome):
        flags = {"failed": outcome == FAILED, "skipped": outcome == SKIPPED}
        own = SimpleNamespace(nodeid=name, when=when, outcome=outcome, **flags)
        SCRIPT.pytest_runtest_logreport(own)

    for name, outcomes in {
        "good": [PASSED, PASSED, PASSED],
        "bad": [PASSED, FAILED, PASSED],
        "no set-up": [FAILED, PASSED],
        "no end": [PASSED, PASSED, FAILED],
        "left out": [SKIPPED, PASSED],
    }.items():
        whens = ["setup", "call", "teardown"] if len(outcomes) == 3 else ["setup", "teardown"]
        for when, outcome in zip(whens, outcomes, strict=True):
            report(name, when, outcome)
    assert found == {
        "good": PASSED, "bad": FAILED, "no set-up": FAILED, "no end": FAILED, "left out": SKIPPED,
    }  # fmt: skip


def sampler(bonus):
    mock = Mock()
    mock.return_value = SimpleNamespace(sampled_token_ids=torch.tensor(bonus))
    return SimpleNamespace(sampler=mock)


def forward(self, metadata, draft_probs, logits, sampling_metadata):
    return metadata, logits


def test_rows_of_mocked_bonus_tokens_are_put_behind_those_of_their_requests():
    metadata = SimpleNamespace(
        num_draft_tokens=[2, 0, 1],
        bonus_logits_indices=torch.zeros(3, dtype=torch.int32),
        target_logits_indices=torch.arange(3),
    )
    given = torch.arange(15.0).reshape(3, 5)
    own = sampler([[4], [1], [0]])
    found, rows = SCRIPT.with_bonus_rows(forward)(own, metadata, None, given, None)
    assert found.bonus_logits_indices.tolist() == [2, 3, 5]
    assert found.target_logits_indices.tolist() == [0, 1, 4]
    assert torch.equal(rows[found.target_logits_indices], given)
    bonus = rows[found.bonus_logits_indices]
    assert bonus.argmax(1).tolist() == [4, 1, 0]
    assert (bonus.softmax(1).amax(1) == 1).all()
    assert metadata.target_logits_indices.tolist() == [0, 1, 2]  # The test's own stay.
    assert own.sampler.apply_logits_processors(rows, None, predict_bonus_token=True) is rows


def test_steps_that_have_their_bonus_rows_are_left_alone():
    metadata = SimpleNamespace(num_draft_tokens=[2], bonus_logits_indices=torch.tensor([2]))
    rows = torch.zeros(3, 5)
    found = SCRIPT.with_bonus_rows(forward)(sampler([1]), metadata, None, rows, None)
    assert found == (metadata, rows)


def kernel_tensors():
    """Two levels; the target wants column 2, then token 1."""
    return {
        "predicts": torch.full((4,), -1, dtype=torch.int32),
        "accept_index": torch.full((1, 3), -1, dtype=torch.int32),
        "accept_token_num": torch.zeros(1, dtype=torch.int32),
        "candidates": torch.tensor([[0, 1, 2, 0]]),
        "retrieve_index": torch.tensor([[0, 1, 2, 3]]),
        "retrieve_next_token": torch.tensor([[1, 3, -1, -1]]),
        "retrive_next_sibling": torch.tensor([[-1, 2, -1, -1]]),
    }


def check_kernel(given):
    assert given["accept_index"].tolist() == [[0, 2, -1]]
    assert given["predicts"].tolist() == [2, -1, 1, -1]
    assert given["accept_token_num"].tolist() == [1]


def test_ours_take_the_arguments_of_the_engines_kernels():
    given = kernel_tensors()
    SCRIPT.verify_tree_greedy(**given, target_predict=torch.tensor([[2, 0, 1, 0]]), topk=2)
    check_kernel(given)
    given = kernel_tensors()
    probs = torch.eye(3)[[2, 0, 1, 0]][None]
    SCRIPT.sampled(None)(**given, target_probs=probs, uniform_samples=None, deterministic=True)
    check_kernel(given)


def test_thresholds_are_the_engines_own():
    options = {"target_probs": None, "threshold_single": 0.5, "threshold_acc": 1}
    seen = []
    SCRIPT.sampled(lambda **given: seen.append(given))(**options, predicts=3)
    assert seen == [{**options, "predicts": 3}]
    with pytest.raises(pytest.skip.Exception, match="left to the engine"):
        SCRIPT.sampled(None)(**options)


def test_what_is_asked_for_on_a_gpu_is_on_the_cpu():
    with SCRIPT._on_cpu():
        made = torch.zeros(2, device="cuda:1"), torch.ones(1).to(torch.device("cuda"))
    assert {tensor.device.type for tensor in made} == {"cpu"}


@pytest.mark.slow
@pytest.mark.parametrize(("theirs", "status"), [(1, 0), (2, 1)])
def test_a_whole_run_on_a_stand_in_of_the_kernels(tmp_path, monkeypatch, theirs, status):
    # One drafted token is right, which ours finds; the engine's own says what its test wants.
    folder = tmp_path / "tests"
    folder.mkdir()
    (tmp_path / "sgl_kernel.py").write_text(
        f"def verify_tree_greedy(**given):\n    given['accept_token_num'].fill_({theirs})\n"
    )
    (folder / "test_it.py").write_text(
        "import torch\n"
        "from sgl_kernel import verify_tree_greedy\n\n\n"
        "def test_it():\n"
        "    found = torch.zeros(1, dtype=torch.int32)\n"
        "    verify_tree_greedy(\n"
        "        predicts=torch.zeros(2, dtype=torch.int32),\n"
        "        accept_index=torch.zeros((1, 2), dtype=torch.int32),\n"
        "        accept_token_num=found,\n"
        "        candidates=torch.tensor([[0, 1]]),\n"
        "        retrieve_index=torch.tensor([[0, 1]]),\n"
        "        retrieve_next_token=torch.tensor([[1, -1]]),\n"
        "        retrieve_next_sibling=torch.tensor([[-1, -1]]),\n"
        "        target_predict=torch.tensor([[1, 0]]),\n"
        "    )\n"
        f"    assert found.tolist() == [{theirs}]\n"
    )
    places = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    assert SCRIPT.main(["sglang", str(folder / "test_it.py")]) == status
