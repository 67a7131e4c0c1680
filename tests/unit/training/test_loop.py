"""The loop: it learns, continues exactly, stops where it must, and measures what decoding does."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch

import mtp_verify as mv
from mtp_verify.errors import NumericsError, ParamsError, UnsupportedModelError
from mtp_verify.training.acceptance import measure_acceptance
from mtp_verify.training.loop import Trainer
from mtp_verify.training.recipe import Recipe
from mtp_verify.training.start import places_of, start_from

if TYPE_CHECKING:
    from pathlib import Path


def _trainer(stand: Any, recipe: Recipe, folder: Path, steps: int = 24, **options: Any) -> Trainer:
    head, text, held_out = stand.head(recipe)
    return Trainer(
        head, text, held_out, recipe, steps=steps, folder=folder, save_every=5, **options
    )


def _weights(trainer: Trainer) -> list[torch.Tensor]:
    return [value for _, value in sorted(trainer.head.state_dict().items())]


def test_a_head_learns_its_text_by_heart(stand: Any, recipe: Recipe, tmp_path: Path) -> None:
    # The text that is trained on is measured too: what is tested is the loop, not what it finds.
    head, text, _ = stand.head(recipe)
    trainer = Trainer(head, text, text, recipe, steps=80, folder=tmp_path)
    before = measure_acceptance(head, [text[0], text[1]], places_of(head), 4).tau
    best = trainer.run()
    assert best["tau"] > max(1.5, before + 0.3)
    assert trainer.curve[-1]["loss"] < trainer.curve[0]["loss"] * 3
    kept = mv.heads.load(tmp_path / "head", target=stand.model)
    again = measure_acceptance(kept, [text[i] for i in range(len(text))], places_of(kept), 4)
    assert again.tau == pytest.approx(best["tau"])
    assert kept.record["recipe"]["family"] == "mimo"


@pytest.mark.parametrize("adversarial", [0.0, 0.05])
def test_a_run_goes_on_bit_for_bit(
    stand: Any, recipe: Recipe, tmp_path: Path, adversarial: float
) -> None:
    recipe = recipe.replace(family="eagle", feature_weight=1.0, adversarial_weight=adversarial)
    whole = _trainer(stand, recipe, tmp_path / "whole")
    whole.run()
    (tmp_path / "cut").mkdir()
    cut = _trainer(stand, recipe, tmp_path / "cut")
    while cut.step < 13:  # the last state on disk is older
        cut.take_step()
        if cut.step % 5 == 0:
            cut._save()
    resumed = _trainer(stand, recipe, tmp_path / "cut")
    assert resumed.step == 10
    resumed.curve = [point for point in whole.curve if point["step"] <= 10]
    resumed.run()
    assert all(map(torch.equal, _weights(whole), _weights(resumed)))
    assert whole.curve == resumed.curve


def test_the_adversarial_term_changes_the_head(stand: Any, recipe: Recipe, tmp_path: Path) -> None:
    recipe = recipe.replace(family="eagle", feature_weight=1.0)
    plain = _trainer(stand, recipe, tmp_path / "plain", steps=10)
    with_term = _trainer(stand, recipe.replace(adversarial_weight=0.5), tmp_path / "term", steps=10)
    assert with_term._discriminator is not None
    judge = [p.clone() for p in with_term._discriminator.parameters()]
    for _ in range(3):  # before 30 % of the steps both do the same
        plain.take_step()
        with_term.take_step()
    assert all(map(torch.equal, _weights(plain), _weights(with_term)))
    for _ in range(4):
        plain.take_step()
        with_term.take_step()
    assert not all(map(torch.equal, _weights(plain), _weights(with_term)))
    assert not all(map(torch.equal, judge, with_term._discriminator.parameters()))


def test_a_loss_that_is_not_a_number_keeps_the_best_head(
    stand: Any, recipe: Recipe, tmp_path: Path
) -> None:
    trainer = _trainer(stand, recipe, tmp_path)
    while trainer.step < 8:
        loss = trainer.take_step()
    trainer._keep_if_best(loss)
    before = [w.clone() for w in _weights(trainer)]
    shards = trainer._shards

    class Broken:
        lengths = shards.lengths

        def __getitem__(self, index: int) -> Any:
            text = shards[index]
            return dataclasses.replace(text, hidden=(text.hidden[0] * float("nan"),))

    trainer._shards = Broken()  # type: ignore[assignment]
    with pytest.raises(NumericsError, match=r"step 8 is nan \(sequences .*head of step 8 is kept"):
        trainer.run()
    assert all(map(torch.equal, before, _weights(trainer)))
    assert mv.heads.load(tmp_path / "head", target=stand.model) is not None


def test_a_run_ends_where_acceptance_stops_to_rise(
    stand: Any, recipe: Recipe, tmp_path: Path
) -> None:
    recipe = recipe.replace(matrix_rate=0.0, vector_rate=0.0, evaluate_every=2, patience=3)
    trainer = _trainer(stand, recipe, tmp_path, steps=40)
    trainer.run()
    assert trainer.step == 8
    assert trainer.best["step"] == 2


def test_a_head_trained_before_gives_weights_and_vocabulary(
    stand: Any, recipe: Recipe, tmp_path: Path
) -> None:
    old, _, _ = stand.head(recipe.replace(seed=3))
    words = (torch.arange(recipe.draft_vocab_size) + 8).sort().values
    old.set_vocab(words)
    mv.heads.save(old, tmp_path, record={"tau": 1.5})
    head, _, _ = stand.head(recipe)
    assert start_from(head, tmp_path) == {"tau": 1.5}
    assert torch.equal(head.vocab, words)
    assert all(map(torch.equal, head.parameters(), old.parameters()))
    other, _, _ = stand.head(recipe.replace(context_tokens=False))
    with pytest.raises(
        ParamsError, match="context_tokens: found True, wanted False as in the recipe"
    ):
        start_from(other, tmp_path)


def test_measured_acceptance_is_that_of_decoding(stand: Any, recipe: Recipe) -> None:
    head, _, held_out = stand.head(recipe.replace(draft_vocab_size=32))
    texts = [held_out[index] for index in range(len(held_out))]
    found = measure_acceptance(head, texts, places_of(head), 3)
    decoder = mv.Decoder(
        stand.model, mv.drafters.Heads(head, num_tokens=3), mv.SamplingParams(temperature=0.0)
    )
    steps = emitted = 0
    for prompt, text in zip(stand.prompts[14:], texts, strict=True):
        count = len(text) + 1 - len(prompt)
        stats = decoder.generate([prompt], max_new_tokens=count).stats
        # The first step has no draft; the roll-out starts behind it.
        steps, emitted = steps + stats.steps - 1, emitted + stats.emitted - 1
    assert found.num_steps == steps
    assert found.tau == pytest.approx(emitted / steps)


def test_recipes_that_cannot_be_right_are_refused(
    stand: Any, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(ParamsError, match="loss: found 'mse', wanted one of"):
        Recipe(loss="mse")
    with pytest.raises(ParamsError, match="share of 0 to 1"):
        Recipe(warm_up=2.0)
    with pytest.raises(ParamsError, match="mimo head does not take the place"):
        _trainer(stand, recipe.replace(feature_weight=1.0), tmp_path)
    with pytest.raises(ParamsError, match="none may be 0"):
        _trainer(stand, recipe, tmp_path, steps=0)


def test_a_state_of_another_run_is_refused(stand: Any, recipe: Recipe, tmp_path: Path) -> None:
    trainer = _trainer(stand, recipe, tmp_path)
    trainer.take_step()
    trainer._save()
    with pytest.raises(UnsupportedModelError, match=r"state\.safetensors"):
        _trainer(stand, recipe.replace(family="medusa"), tmp_path)
    (tmp_path / "state.safetensors").write_bytes(b"nothing")
    with pytest.raises(UnsupportedModelError, match="too few"):
        _trainer(stand, recipe, tmp_path)
