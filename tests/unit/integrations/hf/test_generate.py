"""`mv.hf.generate`: what `generate` takes, honoured or refused by name."""

from __future__ import annotations

import string

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    TextIteratorStreamer,
)

import mtp_verify as mv
from mtp_verify.decoder.generation import Stats
from mtp_verify.testing import exact_law, model_rows
from mtp_verify.testing.asserts import assert_sampler_has_law
from tests.models import VOCAB, prompt, tiny_model


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def tokenizer():
    letters = string.ascii_letters[:VOCAB]
    words = Tokenizer(models.BPE({letter: token for token, letter in enumerate(letters)}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def settings(**options):
    return {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, **options}


def drafter(model):
    return mv.drafters.Model(model, num_tokens=3)


def test_inputs_are_a_tensor_or_what_a_tokenizer_returns(llama):
    ids = prompt()
    mask = torch.ones_like(ids)
    plain = llama.generate(ids, attention_mask=mask, **settings())
    stats = Stats()
    drafts = {"drafter": drafter(llama), "stats": stats}
    assert mv.hf.generate(llama, ids, attention_mask=mask, **drafts, **settings()).equal(plain)
    inputs = {"input_ids": ids, "attention_mask": mask}
    assert mv.hf.generate(llama, inputs, **drafts, **settings()).equal(plain)
    assert mv.hf.generate(llama, **inputs, **drafts, **settings()).equal(plain)
    assert stats.accepted > 0


@pytest.mark.parametrize("place", ["argument", "config"])
def test_stop_strings_are_read_by_the_tokenizer(llama, tokenizer, place):
    free = llama.generate(prompt(), **settings())[0].tolist()
    strings = [tokenizer.decode(free[13:15])]
    plain = llama.generate(prompt(), **settings(), stop_strings=strings, tokenizer=tokenizer)
    assert plain.shape[1] == 15
    options = settings(stop_strings=strings)
    if place == "config":
        options = {"generation_config": GenerationConfig(**options)}
    drafts = {"drafter": drafter(llama)}
    assert mv.hf.generate(llama, prompt(), tokenizer=tokenizer, **drafts, **options).equal(plain)
    with pytest.raises(mv.errors.ParamsError, match="stop_strings: found no tokenizer"):
        mv.hf.generate(llama, prompt(), **drafts, **options)


@pytest.mark.parametrize("name", ["stop_strings", "prompt_lookup_num_tokens"])
def test_what_the_model_itself_brings_along_is_refused_by_name(llama, name, monkeypatch):
    monkeypatch.setattr(llama, "generation_config", GenerationConfig(**{name: 3}))
    with pytest.raises(mv.errors.ParamsError, match=f"model.generation_config.{name} = None"):
        mv.hf.generate(llama, prompt(), **settings())


def test_a_config_of_the_caller_is_left_as_it_was(llama, tokenizer):
    config = GenerationConfig(**settings(stop_strings=["q"], prompt_lookup_num_tokens=3))
    before = config.to_dict()
    mv.hf.generate(llama, prompt(), generation_config=config, tokenizer=tokenizer)
    assert config.to_dict() == before


def test_a_streamer_gets_the_text_and_ends(llama, tokenizer):
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=20)
    found = mv.hf.generate(
        llama, prompt(), drafter=mv.drafters.NGram(), streamer=streamer, **settings()
    )
    text = tokenizer.decode(found[0, prompt().shape[1] :])
    assert "".join(streamer).replace(" ", "") == text.replace(" ", "")


class At(StoppingCriteria):
    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **_options):
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


def test_criteria_stand_beside_stop_strings(llama, tokenizer):
    free = llama.generate(prompt(), **settings())[0].tolist()
    absent = tokenizer.decode(min(set(range(VOCAB)) - set(free)))
    found = mv.hf.generate(
        llama, prompt(), drafter=drafter(llama), stopping_criteria=[At(14)], stop_strings=absent,
        tokenizer=tokenizer, **settings(),
    )  # fmt: skip
    assert found.shape[1] == 14


def test_prompt_lookup_drafts_by_copying(llama):
    ids = prompt().repeat(1, 3)
    plain = llama.generate(ids, **settings())
    stats = Stats()
    found = mv.hf.generate(llama, ids, stats=stats, prompt_lookup_num_tokens=4, **settings())
    assert found.equal(plain)
    assert stats.drafted > 0


def test_an_assistant_drafts_as_its_config_says(llama):
    assistant = tiny_model("llama", seed=5)
    assistant.generation_config.num_assistant_tokens = 2
    assistant.generation_config.assistant_confidence_threshold = 0.0
    stats = Stats()
    found = mv.hf.generate(llama, prompt(), assistant_model=assistant, stats=stats, **settings())
    assert found.equal(llama.generate(prompt(), **settings()))
    assert 0 < stats.drafted <= 2 * stats.steps


def test_a_sampled_assistant_keeps_the_law(llama):
    """The first two tokens of 900 texts: a total variation of 0.25 is found."""
    assistant = tiny_model("llama", seed=5)
    assistant.generation_config.num_assistant_tokens = 2
    assistant.generation_config.assistant_confidence_threshold = 0.0
    params = mv.SamplingParams(temperature=0.5, top_k=3)
    ids = prompt()

    def sample(start, count):
        if not count:
            return torch.empty(0, 2, dtype=torch.int64).numpy()
        found = mv.hf.generate(
            llama, ids.repeat(count, 1), assistant_model=assistant, seed=start, do_sample=True,
            temperature=0.5, top_k=3, max_new_tokens=4, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
        return found[:, ids.shape[1] : ids.shape[1] + 2].numpy()

    law = exact_law(model_rows(llama), ids[0].tolist(), 2, params)
    assert_sampler_has_law(sample, law, min_tv=0.25)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"custom_generate": lambda: None}, "custom_generate"),
        ({"use_mtp": True}, "use_mtp"),
        ({"synced_gpus": True}, "synced_gpus"),
        ({"assistant_tokenizer": object()}, "assistant_tokenizer"),
        ({"num_beams": 4}, "num_beams"),
        ({"prompt_lookup_num_tokens": 3, "drafter": mv.drafters.NGram()}, "drafter and prompt_"),
    ],
)
def test_what_cannot_be_is_refused_by_name(llama, options, match):
    with pytest.raises(mv.errors.ParamsError, match=match):
        mv.hf.generate(llama, prompt(), **settings(), **options)


def test_a_pool_is_no_cache_of_generate(llama):
    ids = prompt().repeat(2, 1)
    plain = llama.generate(ids, **settings())
    found = mv.hf.generate(llama, ids, drafter=drafter(llama), cache="paged", **settings())
    assert found.equal(plain)
