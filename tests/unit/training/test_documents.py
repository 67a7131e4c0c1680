"""Tasks on texts that the target wrote before: their form, their share, what they are made of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from mtp_verify.commands.shared.subjects import subject_for
from mtp_verify.training.documents import document_prompts, read_documents
from mtp_verify.training.jobs import Budget, _kinds
from mtp_verify.training.prompts import TASKS
from mtp_verify.training.questions import Frame, frame_of
from mtp_verify.training.recipe import Recipe
from mtp_verify.training.run import train
from mtp_verify.training.shards import Shards
from mtp_verify.training.writers import Job
from tests.models import tiny_model

if TYPE_CHECKING:
    from pathlib import Path

FRAME = Frame((250, 249), (251, 252))
DOCUMENTS = [list(range(100, 140)), [7] * 300, [9] * 900]


def encode(text: str) -> list[int]:
    return [*FRAME.opening, *text.encode(), *FRAME.closing]


def test_every_task_has_one_place_for_documents() -> None:
    assert len(TASKS) == len(set(TASKS))
    assert all(task.count("{}") == 1 for task in TASKS)
    assert frame_of(encode) == FRAME


def test_prompts_are_tasks_in_the_frame_with_documents_of_the_list() -> None:
    made = document_prompts(DOCUMENTS, 200, encode, FRAME, seed=1)
    assert made == document_prompts(DOCUMENTS, 200, encode, FRAME, seed=1)
    assert made != document_prompts(DOCUMENTS, 200, encode, FRAME, seed=2)
    used = set()
    for prompt in made:
        assert prompt[:2] == [250, 249]
        assert prompt[-2:] == [251, 252]
        text = bytes(prompt[2:-2])
        (task,) = (
            task
            for task in TASKS
            for before, after in [task.encode().split(b"{}")]
            if text.startswith(before) and text.endswith(after)
        )
        used.add(task)
        before, after = task.encode().split(b"{}")
        body = text[len(before) : len(text) - len(after)]
        assert len(body) <= (64 if "passage" in before.decode() else 720)
        assert not set(body) - {*DOCUMENTS[0], 7, 9, ord("\n")}, "documents with gaps between"
    assert len(used) > 0.8 * len(TASKS)


def test_open_prompts_end_where_a_question_begins() -> None:
    for prompt in document_prompts(DOCUMENTS, 20, encode, FRAME, seed=1, is_open=True):
        assert bytes(prompt[2:]).endswith(b"\n\nQuestion:")


@pytest.mark.parametrize("room", [300, 40, 1])
def test_documents_end_where_the_room_does(room: int) -> None:
    made = document_prompts(DOCUMENTS, 50, encode, FRAME, seed=1, room=room)
    least = max(len(encode(task.replace("{}", ""))) for task in TASKS)
    assert all(len(prompt) <= max(room, least) for prompt in made)


def test_without_documents_there_are_no_prompts() -> None:
    assert document_prompts([], 5, encode, FRAME, seed=1) == []


def test_documents_are_answers_without_prompts_and_marks(tmp_path: Path) -> None:
    job = Job(tmp_path / "one", [[3, 5, 6]] * 2 + [[4]], (-1,), [1.0] * 3, 30, 0)
    job.run(tiny_model("llama"))
    texts = Shards([job.path])
    expected = [
        [token for token in texts[i].tokens.tolist()[prompt - 1 :] if token != 11]
        for i, prompt in enumerate([3, 3, 1])
    ]
    assert read_documents([job.path], [11]) == expected


@pytest.mark.parametrize(
    ("questions", "share", "expected"),
    [
        (0.0, 0.0, "mmmmmmmm"),
        (0.5, 0.0, "mqmqmqmq"),
        (1.0, 0.0, "qqqqqqqq"),
        (0.0, 1.0, "mmdddddd"),
        (0.4, 0.4, "qmdqdqdm"),
    ],
)
def test_shares_of_the_shards(questions: float, share: float, expected: str) -> None:
    kinds = _kinds(7, Budget(questions=questions, documents=share))
    assert "".join(kind[0] for kind in kinds) == expected


def test_a_run_trains_and_measures_on_documents(tmp_path: Path) -> None:
    subject = subject_for(tiny=True)

    def framed(text: str) -> list[int]:
        return [250, *subject.encode(text), 251, 252]

    recipe = Recipe(draft_vocab_size=64, depth=1, evaluate_every=10)
    budget = Budget(None, tokens=2500, epochs=0.1, answer=40, together=4, held_out=2, documents=0.5)
    train(subject.load("float32"), framed, recipe, budget, tmp_path, lambda _: None)
    head = json.loads((tmp_path / "head" / "head.json").read_text())
    assert head["record"]["documents"] == 0.5
    sizes = [len(Shards([path])) for path in sorted((tmp_path / "text").iterdir())]
    assert sizes[:4] == [4, 4, 2, 2], "long prompts lie side by side in smaller numbers"
    assert len(list((tmp_path / "held-out").iterdir())) == 2
    answers = read_documents([tmp_path / "held-out" / "shard-00000.safetensors"], [])
    task = bytes(Shards([tmp_path / "held-out" / "shard-00001.safetensors"])[0].tokens.tolist())
    assert any(bytes(answer)[:20] in task for answer in answers), "its documents are held out too"
