"""Tiny random models that are no plain language models: images, encoders, states, compilers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

if TYPE_CHECKING:
    from collections.abc import Callable

VOCAB = 32
IMAGE = 29  # the token that stands for a patch of an image; 30 and 31 begin and end videos

_NO_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3,
    "max_position_embeddings": 128, **_NO_TOKENS,
}  # fmt: skip
_SIGHT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip
# One set of positions for each of time, height and width.
_AXES = {**_TEXT, "rope_parameters": {
    "rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4,
}}  # fmt: skip
_PATCHES: dict[str, Any] = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "patch_size": 4,
    "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
_MARKS = {
    "image_token_id": IMAGE, "video_token_id": 28, "vision_start_token_id": 30,
    "vision_end_token_id": 31,
}  # fmt: skip


def _gemma3() -> Any:
    text = transformers.Gemma3TextConfig(
        **_TEXT, sliding_window=7, layer_types=["sliding_attention", "full_attention"]
    )
    config = transformers.Gemma3Config(
        text_config=text, vision_config=transformers.SiglipVisionConfig(**_SIGHT),
        image_token_index=IMAGE, boi_token_index=30, eoi_token_index=31, mm_tokens_per_image=4,
    )  # fmt: skip
    return transformers.Gemma3ForConditionalGeneration(config)


def _llava() -> Any:
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**_TEXT), image_token_index=IMAGE,
        vision_config=transformers.CLIPVisionConfig(**_SIGHT),
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config)


def _mistral3() -> Any:
    sight = transformers.PixtralVisionConfig(**_SIGHT)
    config = transformers.Mistral3Config(
        text_config=transformers.MistralConfig(**_TEXT, sliding_window=None), vision_config=sight,
        image_token_index=IMAGE, spatial_merge_size=1,
    )  # fmt: skip
    return transformers.Mistral3ForConditionalGeneration(config)


def _qwen2_5_vl() -> Any:
    sight = {**_PATCHES, "out_hidden_size": 32, "fullatt_block_indexes": [0], "window_size": 16}
    config = transformers.Qwen2_5_VLConfig(text_config=_AXES, vision_config=sight, **_MARKS)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _qwen3_vl() -> Any:
    sight = {
        **_PATCHES, "out_hidden_size": 32, "deepstack_visual_indexes": [0],
        "num_position_embeddings": 16,
    }  # fmt: skip
    config = transformers.Qwen3VLConfig(text_config=_AXES, vision_config=sight, **_MARKS)
    return transformers.Qwen3VLForConditionalGeneration(config)


def _smolvlm() -> Any:
    config = transformers.SmolVLMConfig(
        text_config=transformers.LlamaConfig(**_TEXT), vision_config=_SIGHT, image_token_id=IMAGE
    )
    return transformers.SmolVLMForConditionalGeneration(config)


def _blip2() -> Any:
    former = {
        "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32, "encoder_hidden_size": 32,
    }  # fmt: skip
    text = {
        "model_type": "opt", "vocab_size": VOCAB, "hidden_size": 32, "ffn_dim": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "word_embed_proj_dim": 32,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
    }  # fmt: skip
    config = transformers.Blip2Config(
        vision_config=_SIGHT, qformer_config=former, text_config=text, num_query_tokens=2,
        image_token_index=IMAGE,
    )  # fmt: skip
    return transformers.Blip2ForConditionalGeneration(config)


_ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 2}
_TWO_STACKS: dict[str, Any] = {
    "vocab_size": VOCAB, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16, **_ENDS,
}  # fmt: skip


def _t5() -> Any:
    config = transformers.T5Config(
        vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, **_ENDS
    )
    return transformers.T5ForConditionalGeneration(config)


def _bart() -> Any:
    config = transformers.BartConfig(**_TWO_STACKS, forced_eos_token_id=None)
    return transformers.BartForConditionalGeneration(config)


def _whisper() -> Any:
    config = transformers.WhisperConfig(
        **_TWO_STACKS, num_mel_bins=8, max_source_positions=20, suppress_tokens=None,
        begin_suppress_tokens=None,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


def _rwkv() -> Any:
    config = transformers.RwkvConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, attention_hidden_size=16,
        intermediate_size=16, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return transformers.RwkvForCausalLM(config)


def _mamba() -> Any:
    config = transformers.MambaConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4, pad_token_id=0,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return transformers.MambaForCausalLM(config)


def _jamba() -> Any:
    config = transformers.JambaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1,
        expert_layer_period=2, expert_layer_offset=1, num_experts=2, mamba_d_state=4,
        mamba_dt_rank=4, use_mamba_kernels=False, pad_token_id=0,
    )  # fmt: skip
    return transformers.JambaForCausalLM(config)


# Models of images and text whose text alone is decoded as that of any other.
WITH_IMAGES: dict[str, Callable[[], Any]] = {
    "gemma3": _gemma3,
    "llava": _llava,
    "mistral3": _mistral3,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "smolvlm": _smolvlm,
}
# Models that cannot work, and what is said of each.
ENCODER_DECODERS: dict[str, Callable[[], Any]] = {"bart": _bart, "t5": _t5, "whisper": _whisper}
RECURRENT: dict[str, Callable[[], Any]] = {"jamba": _jamba, "mamba": _mamba, "rwkv": _rwkv}
_ALL = {**WITH_IMAGES, **ENCODER_DECODERS, **RECURRENT, "blip2": _blip2}


def other_model(kind: str, seed: int = 0) -> Any:
    """Return a random model; skip what this version of transformers does not have."""
    torch.manual_seed(seed)
    try:
        model = _ALL[kind]()
    except AttributeError as error:
        pytest.skip(f"this version of transformers has no {kind}: {error}")
    return model.eval()


COMPILED = ("torch.compile(model)", "model.forward", "model.compile()")


def compiled(form: str, model: Any, backend: Any = "eager") -> Any:
    """Give a model to the compiler in one of three ways; by "eager", nothing becomes code."""
    if form == "torch.compile(model)":
        return torch.compile(model, backend=backend)
    if form == "model.forward":
        model.forward = torch.compile(model.forward, backend=backend)
    else:
        model.compile(backend=backend)
    return model
