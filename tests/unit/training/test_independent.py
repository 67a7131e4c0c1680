"""An independent draft model: layers of its target, trained like a head, read by transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import mtp_verify as mv
from mtp_verify.errors import ParamsError, UnsupportedModelError
from mtp_verify.training.batches import collate
from mtp_verify.training.independent import FAMILY, IndependentDraft, shrink
from mtp_verify.training.loop import Trainer
from mtp_verify.training.rollout import level_logits, roll_out
from mtp_verify.training.start import check_features, places_of, start_from

if TYPE_CHECKING:
    from pathlib import Path

    from mtp_verify.training.recipe import Recipe


@pytest.fixture
def recipe(recipe: Recipe) -> Recipe:
    return recipe.replace(family=FAMILY, num_layers=2, plain_share=1.0, context_tokens=False)


def test_all_layers_are_the_target_itself(stand: Any) -> None:
    tokens = torch.tensor([stand.prompts[0]])
    with torch.no_grad():
        same = shrink(stand.model, 4)(tokens).logits
        torch.testing.assert_close(same, stand.model(tokens).logits)


def test_layers_are_spread_from_the_first_to_the_last(stand: Any) -> None:
    layers = stand.model.get_decoder().layers
    small = shrink(stand.model, 2).get_decoder().layers
    for mine, index in zip(small, (0, 3), strict=True):
        assert torch.equal(mine.mlp.up_proj.weight, layers[index].mlp.up_proj.weight)
    assert len(shrink(stand.model, 1).get_decoder().layers) == 1
    with pytest.raises(UnsupportedModelError, match="found 4, wanted 5"):
        shrink(stand.model, 5)


def test_a_level_is_the_models_own_prediction_further_on(stand: Any, recipe: Recipe) -> None:
    draft, text, _ = stand.head(recipe)
    batch = collate([text[0], text[1]], places_of(draft))
    every = torch.ones_like(batch.tokens, dtype=torch.bool)
    with torch.no_grad():
        rows = draft.model(text[1].tokens[None]).logits[0]
        for level, features in enumerate(roll_out(draft, batch, 3)):
            logits = level_logits(draft, batch, features[every], level, every)
            found = logits.view(*batch.tokens.shape, -1)[1, : len(text[1]) - level]
            torch.testing.assert_close(found, rows[level:])


def test_it_learns_its_targets_law_and_goes_on_bit_for_bit(
    stand: Any, recipe: Recipe, tmp_path: Path
) -> None:
    text, held_out = stand.shards(stand.head(recipe)[0].hidden_layers)

    def distance(model: Any) -> float:
        tokens = text[0].tokens[None]
        with torch.no_grad():
            mine, wanted = (m(tokens).logits.softmax(-1) for m in (model, stand.model))
        return float((mine - wanted).abs().sum(-1).mean())

    def trainer(folder: str) -> Trainer:
        draft = IndependentDraft(shrink(stand.model, 2))
        return Trainer(draft, text, held_out, recipe, steps=24, folder=tmp_path / folder)

    whole = trainer("whole")
    before = distance(whole.head.model)
    whole.run()
    assert distance(whole.head.model) < 0.8 * before

    cut = trainer("cut")
    cut._folder.mkdir()
    while cut.step < 10:
        cut.take_step()
    cut._save()
    again = trainer("cut")
    assert again.step == 10
    again.run()
    assert all(map(torch.equal, whole.head.parameters(), again.head.parameters()))


def test_what_is_written_drafts_and_only_the_layers_have_changed(
    stand: Any, recipe: Recipe, tmp_path: Path
) -> None:
    draft, text, held_out = stand.head(recipe)
    Trainer(draft, text, held_out, recipe, steps=8, folder=tmp_path).run()
    assert {path.name for path in (tmp_path / "head").iterdir()} >= {
        "config.json", "model.safetensors", "training.json",
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "head").eval()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(stand.model.get_parameter(name), model.get_parameter(name))
    greedy = mv.SamplingParams(temperature=0.0)
    prompt = stand.prompts[0]
    plain = mv.Decoder(stand.model, None, greedy).generate(prompt, max_new_tokens=12)
    drafter = mv.drafters.Model(model, num_tokens=3)
    drafted = mv.Decoder(stand.model, drafter, greedy).generate(prompt, max_new_tokens=12)
    assert drafted.tokens == plain.tokens
    assert drafted.stats.drafted > 0


def test_what_only_heads_have_is_refused(stand: Any, recipe: Recipe, tmp_path: Path) -> None:
    draft, _, _ = stand.head(recipe)
    with pytest.raises(ParamsError, match="is for heads"):
        start_from(draft, tmp_path)
    with pytest.raises(ParamsError, match="does not take the place"):
        check_features(recipe.replace(feature_weight=1.0), draft.spec)
