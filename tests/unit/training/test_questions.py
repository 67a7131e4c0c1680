"""Prompts that the target makes up: what stands around a message, and what stands in it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from mtp_verify.commands.shared.subjects import subject_for
from mtp_verify.training.prompts import TEMPLATES
from mtp_verify.training.questions import Frame, finish_messages, frame_of
from mtp_verify.training.recipe import Recipe
from mtp_verify.training.run import Budget, train
from mtp_verify.training.shards import Shards
from mtp_verify.training.writers import Job
from tests.models import tiny_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("before", "behind"), [([], [3]), ([3], []), ([], [])], ids=["no opening", "no closing", "none"]
)
def test_text_without_a_form_has_no_frame(before: list[int], behind: list[int]) -> None:
    assert frame_of(lambda text: [*before, *text.encode(), *behind]) is None


def test_a_message_ends_with_the_closing_mark() -> None:
    model = tiny_model("llama")
    frame = Frame((3, 5), (7, 1))
    prompts = finish_messages(model, [frame.opening] * 6, frame.closing, seed=0)
    assert len(prompts) == 6
    assert len({tuple(prompt) for prompt in prompts}) == 6, "messages differ"
    for prompt in prompts:
        assert prompt[:2] == [3, 5]
        assert prompt[-2:] == [7, 1]
        assert 7 not in prompt[2:-2]
    assert prompts == finish_messages(model, [frame.opening] * 6, frame.closing, seed=0)


def test_a_job_lets_the_target_finish_its_prompts(tmp_path: Path) -> None:
    model = tiny_model("llama")
    given = Job(tmp_path / "given", [[3, 5]] * 3, (-1,), [0.0] * 3, 4, 0)
    made = dataclasses.replace(given, path=tmp_path / "made", closing=(7, 1))
    for job in (given, made):
        job.run(model)
    one, two = Shards([given.path]), Shards([made.path])
    assert [len(text.tokens) for text in one] == [5] * 3
    for text in two:
        (end,) = (text.tokens == 7).nonzero()[:1, 0].tolist()
        assert text.tokens[end + 1] == 1
        assert not text.top_probs[:end].any(), "nothing is learned within a prompt"


def test_their_share_of_the_text(tmp_path: Path) -> None:
    subject = subject_for(tiny=True)
    model = subject.load("float32")

    def encode(text: str) -> list[int]:
        return [250, *subject.encode(text), 251, 252]

    recipe = Recipe(draft_vocab_size=64, depth=1, evaluate_every=10)
    budget = Budget(None, tokens=400, epochs=0.1, answer=4, together=4, held_out=2, questions=0.5)
    train(model, encode, recipe, budget, tmp_path, lambda _: None)
    written: set[str] = {template.split()[0] for template in TEMPLATES}

    def is_ours(path: Path) -> bool:
        text = bytes(Shards([path])[0].tokens.tolist())
        return text.decode("latin-1").split()[0] in written

    paths = sorted((tmp_path / "text").iterdir())
    assert len(paths) > 1
    assert [is_ours(path) for path in paths] == [place % 2 == 0 for place in range(len(paths))]
    assert is_ours(tmp_path / "held-out" / paths[0].name), "what measures stays as it is"
