"""Minutes hold, whatever is slow: on a clock that moves with forwards, steps and measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mtp_verify.commands.shared.subjects import subject_for
from mtp_verify.training import loop, run, writing
from mtp_verify.training.loop import Trainer
from mtp_verify.training.questions import finish_messages
from mtp_verify.training.recipe import Recipe
from mtp_verify.training.run import Budget
from mtp_verify.training.writing import LEAST, write_texts

if TYPE_CHECKING:
    from pathlib import Path

FORWARD, STEP, MEASURE = 1.0, 2.0, 3.0  # seconds of each
RECIPE = Recipe(max_rows=64, draft_vocab_size=64, dtype="float32", evaluate_every=4, patience=1000)


class Clock:
    """Seconds that pass only when something is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        for module in (writing, loop, run):
            monkeypatch.setattr(module, "monotonic", lambda: self.now)
        step, measure = Trainer.take_step, loop.measure_acceptance

        def slow_step(trainer: Trainer) -> float:
            self.now += STEP
            return step(trainer)

        def slow_measure(*args: Any) -> Any:
            self.now += MEASURE
            return measure(*args)

        monkeypatch.setattr(Trainer, "take_step", slow_step)
        monkeypatch.setattr(loop, "measure_acceptance", slow_measure)

    def model(self) -> Any:
        """A small target whose forwards take time."""

        def pass_time(*_: Any) -> None:
            self.now += FORWARD

        model = subject_for(tiny=True).load("float32")
        model.register_forward_pre_hook(pass_time)
        return model


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def _train(model: Any, folder: Path, **budget: Any) -> dict[str, Any]:
    size: dict[str, Any] = {"tokens": 100_000, "answer": 200, "together": 3, "held_out": 2}
    encode = subject_for(tiny=True).encode
    _, found = run.train(model, encode, RECIPE, Budget(**size, **budget), folder, lambda _: None)
    return found


@pytest.mark.parametrize("questions", [0.0, 1.0])
def test_a_slow_machine_gets_less_done_in_its_minutes(
    clock: Clock, tmp_path: Path, questions: float
) -> None:
    with pytest.warns(UserWarning, match="1 minutes were enough for .* texts were cut short"):
        found = _train(clock.model(), tmp_path, minutes=1.0, questions=questions)
    assert clock.now <= 1.2 * 60
    assert found["curve"][-1]["step"] == found["plan"]["steps"] > 1


def test_steps_that_become_slower_than_planned_are_left_out(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = run._cost_of_a_step
    monkeypatch.setattr(run, "_cost_of_a_step", lambda *a: (planned(*a)[0] / 4, MEASURE))
    with pytest.warns(UserWarning, match=r"for [0-9]+ of [0-9]+ planned steps") as seen:
        found = _train(clock.model(), tmp_path, minutes=3.0, epochs=1000.0)
    assert 0.9 * 180 < clock.now <= 1.2 * 180
    done, steps = found["curve"][-1]["step"], found["plan"]["steps"]
    assert 1 < done < steps
    assert f"for {done} of {steps} planned steps" in str(seen[0].message)


def test_enough_time_gives_no_warning(clock: Clock, tmp_path: Path) -> None:
    size = Budget(minutes=100.0, tokens=50, epochs=2.0, answer=12, together=3, held_out=2)
    encode = subject_for(tiny=True).encode
    run.train(clock.model(), encode, RECIPE, size, tmp_path, lambda _: None)


def test_training_ends_before_its_deadline_and_goes_on_later(
    clock: Clock, stand: Any, recipe: Recipe, tmp_path: Path
) -> None:
    head, text, held_out = stand.head(recipe)

    def trainer() -> Trainer:
        return Trainer(head, text, held_out, recipe, steps=24, folder=tmp_path)

    first = trainer()
    first.run(deadline=clock.now + 30)
    assert 20 < clock.now <= 30
    assert first.curve[-1]["step"] == first.step < 24
    second = trainer()
    assert (second.step, second.curve) == (first.step, first.curve)
    second.run(deadline=clock.now - 1)  # no time at all, and there is a head: nothing is done
    assert second.step == first.step
    second.run()
    assert second.step == 24


def test_a_run_without_time_gives_one_measured_step(
    clock: Clock, stand: Any, recipe: Recipe, tmp_path: Path
) -> None:
    head, text, held_out = stand.head(recipe)
    trainer = Trainer(head, text, held_out, recipe, steps=24, folder=tmp_path)
    trainer.run(deadline=clock.now - 1)
    assert [point["step"] for point in trainer.curve] == [trainer.step] == [1]


def test_texts_and_messages_end_at_the_deadline(stand: Any) -> None:
    def lengths(**late: float) -> list[int]:
        texts = write_texts(
            stand.model, stand.prompts[:3], (-1,), temperatures=[1.0] * 3, max_new_tokens=30,
            seed=3, **late,
        )  # fmt: skip
        return [len(text) for text in texts]

    sizes = [len(prompt) for prompt in stand.prompts[:3]]
    # The last token of a text has no row behind it.
    assert lengths(deadline=0.0) == [size + LEAST - 1 for size in sizes]
    assert max(lengths()) == max(sizes) + 30 - 1
    messages = finish_messages(stand.model, [[3, 4], [5, 6]], [1], 3, 0.0)
    assert all(len(message) <= 2 + LEAST + 1 for message in messages)
