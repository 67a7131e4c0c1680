"""Models of images, with encoders or with states: run, or refused in the user's words."""

from __future__ import annotations

import functools

import pytest
import torch

import mtp_verify as mv
from tests.models import prompt
from tests.other_models import ENCODER_DECODERS, IMAGE, RECURRENT, WITH_IMAGES, other_model

GREEDY = mv.SamplingParams(temperature=0.0)
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers comments on random models


def settings(ids, **options):
    return {
        "attention_mask": torch.ones_like(ids), "max_new_tokens": 10, "do_sample": False,
        "pad_token_id": 0, **options,
    }  # fmt: skip


def ngram():
    return mv.drafters.NGram(min_ngram=1)


def text():
    return prompt(10).clamp(max=27)


@pytest.mark.parametrize("kind", WITH_IMAGES)
def test_text_alone_is_that_of_generate(kind):
    model, ids = other_model(kind), text()
    plain = model.generate(ids, **settings(ids))
    assert model.generate(ids, **settings(ids), custom_generate=mv.hf.speculative(ngram())).equal(
        plain
    )
    assert mv.hf.generate(model, ids, drafter=ngram(), **settings(ids)).equal(plain)
    decoder = mv.Decoder(model, ngram(), GREEDY)
    assert decoder.generate(ids, max_new_tokens=10).sequences.equal(plain)
    # Padded on the left; a processor's token types say that all is text.
    ids = ids.repeat(2, 1)
    ids[1, :4] = 0
    options = settings(ids, attention_mask=(ids != 0).long())
    if kind.startswith(("gemma", "qwen")):
        name = "token_type_ids" if kind == "gemma3" else "mm_token_type_ids"
        options[name] = torch.zeros_like(ids)
    plain = model.generate(ids, **options)
    assert model.generate(ids, **options, custom_generate=mv.hf.speculative(ngram())).equal(plain)


@pytest.mark.parametrize("kind", ["gemma3", "llava", "qwen2_5_vl"])
def test_images_are_refused_by_the_names_that_they_were_given_by(kind):
    model, ids = other_model(kind), text()
    ids[0, 1:5] = IMAGE
    images = {"pixel_values": torch.zeros(1, 3, 8, 8)}
    if kind == "qwen2_5_vl":
        ids[0, 1:4] = torch.tensor([30, IMAGE, 31])
        ids[0, 4] = 3
        images = {
            "pixel_values": torch.zeros(4, 96), "image_grid_thw": torch.tensor([[1, 2, 2]]),
            "mm_token_type_ids": (ids == IMAGE).long(),
        }  # fmt: skip
    model.generate(ids, **settings(ids), **images)
    inner = mv.hf.speculative(None)

    def wrapped(*args, **options):
        return inner(*args, **options)

    for call in (
        functools.partial(model.generate, custom_generate=mv.hf.speculative(None)),
        functools.partial(mv.hf.generate, model),
    ):
        with pytest.raises(mv.errors.ParamsError, match="cannot be combined") as raised:
            call(ids, **settings(ids), **images)
        assert all(name in str(raised.value) for name in images)
        assert "mm_encoder_outputs" not in str(raised.value)
    with pytest.raises(mv.errors.ParamsError, match=r"images or videos|pixel_values"):
        model.generate(ids, **settings(ids), **images, custom_generate=wrapped)


def test_what_another_generate_has_made_is_said_to_be_its():
    model = other_model("blip2")
    ids = torch.tensor([[IMAGE, IMAGE, 4, 5]])
    options = {"pixel_values": torch.zeros(1, 3, 8, 8), "input_ids": ids, **settings(ids)}
    model.generate(**options)
    told = r"inputs_embeds \(made by Blip2ForConditionalGeneration.generate\)"
    with pytest.raises(mv.errors.ParamsError, match=told):
        model.generate(**options, custom_generate=mv.hf.speculative(None))
    with pytest.raises(mv.errors.ParamsError, match=told):
        mv.hf.generate(model, **options)


@pytest.mark.parametrize("kind", [*ENCODER_DECODERS, *RECURRENT])
def test_other_kinds_are_refused_by_what_they_are(kind):
    model, ids = other_model(kind), text()
    given = torch.zeros(1, 8, 40) if kind == "whisper" else ids
    options = {"max_new_tokens": 4, "do_sample": False}
    name = type(model).__name__
    told = f"{name} is an encoder-decoder model"
    if kind in RECURRENT:
        told = f"{name} cannot decode .* a recurrent model, whose state cannot be rolled back"
    with pytest.raises(mv.errors.UnsupportedModelError, match=told):
        model.generate(given, **options, custom_generate=mv.hf.speculative(ngram()))
    with pytest.raises(mv.errors.UnsupportedModelError, match=told):
        mv.hf.generate(model, given, drafter=ngram(), **options)
    with pytest.raises(mv.errors.UnsupportedModelError, match=told):
        mv.Decoder(model)
