"""Which models can be targets, and what the others are told."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.errors import UnsupportedModelError
from mtp_verify.models.target import TransformersTarget, as_target
from mtp_verify.testing import TableTarget
from tests.models import TreeDrafter, prompt, tiny_model


def test_table_target_passes_through():
    table = TableTarget(lambda path: [0.0, 0.0], 2)
    assert as_target(table) is table


def test_something_else_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"found str, .* it has no new_cache\(\)"):
        as_target("gpt2")


def test_encoder_decoder_is_refused():
    config = T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        TransformersTarget(T5ForConditionalGeneration(config).eval())


def test_recurrent_model_is_refused():
    config = MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, state_size=4)
    with pytest.raises(UnsupportedModelError, match="cannot decode speculatively"):
        TransformersTarget(MambaForCausalLM(config).eval())


def test_training_mode_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"call model\.eval\(\)"):
        TransformersTarget(tiny_model("llama").train())


def test_flex_attention_on_the_cpu_is_refused():
    model = tiny_model("llama")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(UnsupportedModelError, match="flex_attention"):
        TransformersTarget(model)


def test_headless_model_is_refused():
    with pytest.raises(UnsupportedModelError, match="AutoModelForCausalLM"):
        TransformersTarget(tiny_model("llama").model)


def test_trees_are_refused_where_positions_cannot_be_given():
    config = BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2)
    torch.manual_seed(0)
    model = BloomForCausalLM(config).eval()
    with pytest.raises(UnsupportedModelError, match=r"TreeDrafter drafts trees, .*position_ids"):
        Decoder(model, TreeDrafter([-1, 0, 0]))
    greedy = mv.SamplingParams(temperature=0.0)
    assert len(Decoder(model, None, greedy).generate([[1, 2]], max_new_tokens=3).tokens[0]) <= 3


def test_trees_are_refused_under_flash_attention():
    model = tiny_model("llama")
    target = TransformersTarget(model)
    target._config._attn_implementation = "flash_attention_2"
    assert "sdpa" in target._find_tree_obstacle(is_recurrent=False)


def test_hidden_states_are_returned_on_request():
    model = tiny_model("llama")
    target = TransformersTarget(model)
    with torch.inference_mode():
        _, hidden = target.forward(
            prompt(5), None, None, target.new_cache(), hidden_layers=(0, 2), num_logits=2
        )
        expected = model(prompt(5), output_hidden_states=True).hidden_states
    assert [h.shape for h in hidden] == [(5, 32), (5, 32)]
    torch.testing.assert_close(hidden[1], expected[2][0])
