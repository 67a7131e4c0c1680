"""Tiny random models of the families that transformers knows as causal language models.

Windows, chunks and switches are a few tokens wide, so that a short text crosses them. A family that
the installed version does not have, or builds otherwise, is skipped by the tests.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from tests.models import ScriptDrafter, TreeDrafter

__all__ = ["FAMILIES", "SWITCH", "VOCAB", "Family", "Found", "decode_all_ways", "tiny",
           "tiny_sizes"]  # fmt: skip

VOCAB, WINDOW, SWITCH, LIMIT = 32, 7, 24, 128

# Each configuration takes those of these that it knows, under whatever names it has for them.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "n_embed", "d_model"), 32),
    **dict.fromkeys(
        ("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 64
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers"), 4
    ),
    **dict.fromkeys(
        (
            "num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads",
            "encoder_attention_heads", "attention_heads",
        ),
        4,
    ),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), LIMIT),
    **dict.fromkeys(("sliding_window", "window_size", "local_attention"), WINDOW),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_head_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("head_dim", "kv_channels", "global_head_dim", "state_size"), 8),
    **dict.fromkeys(("initializer_range", "init_std"), 0.3),
    **dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id"), None),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    "vocab_size": VOCAB, "num_key_value_heads": 2, "num_experts_per_tok": 2, "encoder_layers": 0,
    "attention_chunk_size": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16,
    "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_expand": 1,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "is_decoder": True, "is_encoder_decoder": False,
    "tie_word_embeddings": False, "attention_dropout": 0.0, "use_cache": True,
}  # fmt: skip
_MLA = {"num_key_value_heads": 4}
_PADDED = {"pad_token_id": 0}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"] * 2}
_CONV = {"layer_types": ["conv", "full_attention"] * 2}
_SHARING = {
    "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2,
    "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8,
}  # fmt: skip
_LONGROPE = {
    "original_max_position_embeddings": SWITCH,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0,
        "original_max_position_embeddings": SWITCH, "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.5, 3.0, 6.0, 12.0], "short_mscale": 1.0, "long_mscale": 1.2,
    },
}  # fmt: skip


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, **more}}


@dataclasses.dataclass(frozen=True)
class Family:
    """What a tiny model is made of.

    Attributes:
        kind: `model_type` of its configuration.
        options: of the configuration, beside the usual sizes.
    """

    kind: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


_PLAIN = """
afmoe apertus arcee aria_text beam bert bert-generation big_bird biogpt bitnet bloom cohere cohere2
cohere2_moe cpmant ctrl deepseek_v4 diffllama doge dots1 electra ernie ernie4_5 ernie4_5_moe exaone4
exaone_moe falcon falcon_h1 falcon_mamba flex_olmo flint gemma gemma2 gemma3_text
gemma4_unified_text glm glm4
glm4_moe gpt2 gpt_bigcode gpt_neox gpt_neox_japanese gpt_oss granite granite_swa granitemoe
granitemoe_swa granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4
hyperclovax inkling_text inkling2_text jais2 jetmoe kolibri1 laguna lfm3 llama llama4_text mamba
megatron-bert mellum mimo_v2_flash minimax minimax_m2 minimax_m3_vl_text ministral ministral3
mistral mixtral moshi mpt nanochat nemotron olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt
opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_5_text qwen3_5_moe_text qwen3_moe
qwen3_next recurrent_gemma rembert roformer rwkv seed_oss smollm3 solar_open stablelm starcoder2
trocr vaultgemma whisper xglm xlnet zamba bart bigbird_pegasus blenderbot blenderbot-small marian
mbart mvp pegasus plbart
"""
FAMILIES: dict[str, Family] = {
    **{kind: Family(kind) for kind in _PLAIN.split()},
    **{
        kind: Family(kind, _MLA)
        for kind in (
            "axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu",
        )
    },
    **{
        kind: Family(kind, {**_MLA, "index_topk": 8})
        for kind in ("axk2", "deepseek_v32", "glm_moe_dsa")
    },
    **{
        kind: Family(kind, _PADDED)
        for kind in (
            "camembert", "data2vec-text", "prophetnet", "roberta", "roberta-prelayernorm",
            "xlm-roberta", "xlm-roberta-xl",
        )
    },
    **{kind: Family(kind, _SHARING) for kind in ("gemma3n_text", "gemma4_text")},
    **{kind: Family(kind, {"rotary_dim": 4}) for kind in ("codegen", "gptj")},
    **{kind: Family(kind, _CONV) for kind in ("lfm2", "lfm2_moe")},
    "bailing_hybrid": Family("bailing_hybrid", {**_MLA, **_LINEAR}),
    "bamba": Family("bamba", {"attn_layer_indices": [1, 3]}),
    "cwm": Family("cwm", {"bos_token_id": 1}),
    "dbrx": Family(
        "dbrx",
        {
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
            "ffn_config": {
                "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32,
            },
        },
    ),
    "falcon, alibi": Family("falcon", {"alibi": True}),
    "falcon, grouped": Family("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gpt_neo": Family("gpt_neo", {"attention_types": [[["global", "local"], 2]]}),
    "gpt_neo, global": Family("gpt_neo", {"attention_types": [[["global"], 4]]}),
    "granitemoehybrid": Family("granitemoehybrid", {"layer_types": ["mamba", "attention"] * 2}),
    "jamba": Family(
        "jamba", {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}
    ),
    "kimi_linear": Family(
        "kimi_linear", {**_MLA, **_LINEAR, "linear_head_dim": 8, "linear_num_heads": 4}
    ),
    "llama, dynamic": Family("llama", _rope("dynamic")),
    "llama, longrope": Family("llama", _LONGROPE),
    "llama, yarn": Family("llama", _rope("yarn", original_max_position_embeddings=SWITCH)),
    "longcat_flash": Family(
        "longcat_flash",
        {
            **_MLA, "zero_expert_num": 1, "expert_ffn_hidden_size": 16, "ffn_hidden_size": 32,
            "moe_topk": 2, "num_layers": 2,
        },
    ),
    "mamba2": Family("mamba2", {"num_heads": 8, "expand": 2}),
    "mistral, eager": Family("mistral", {"attn_implementation": "eager"}),
    "modernbert-decoder": Family(
        "modernbert-decoder",
        {
            **_PADDED, "bos_token_id": 1, "eos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "nemotron_h": Family(
        "nemotron_h",
        {
            "layers_block_type": ["mamba", "attention", "mamba", "moe"], "mamba_num_heads": 8,
            "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 16,
            "moe_shared_expert_intermediate_size": 16,
        },
    ),
    "phi3, longrope": Family("phi3", {**_LONGROPE, "sliding_window": None}),
    "phi3, longrope and window": Family("phi3", _LONGROPE),
    "phimoe, longrope": Family("phimoe", {**_LONGROPE, "sliding_window": None}),
    "qwen2, some layers with a window": Family(
        "qwen2", {"use_sliding_window": True, "max_window_layers": 2}
    ),
    "reformer": Family(
        "reformer",
        {
            "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16], "num_attention_heads": 2,
            "attention_head_size": 8,
        },
    ),
    "xmod": Family(
        "xmod", {**_PADDED, "default_language": "en_XX", "languages": ["en_XX"]}
    ),
    "zaya": Family("zaya", {"num_experts_per_tok": 1}),
}  # fmt: skip


def tiny_sizes(made: type) -> dict[str, Any]:
    """Return small sizes under the names that a class of configurations has for them."""
    if dataclasses.is_dataclass(made):
        known = {field.name for field in dataclasses.fields(made)}
    else:
        known = set(inspect.signature(made.__init__).parameters)
    return {key: value for key, value in _SIZES.items() if key in known}


def tiny(name: str, seed: int = 1, **overrides: Any) -> Any:
    """Return a random model of `FAMILIES`, in evaluation mode; skip what cannot be built here."""
    family = FAMILIES[name]
    if family.kind not in CONFIG_MAPPING or family.kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        pytest.skip(f"this version of transformers has no {family.kind}")
    made = CONFIG_MAPPING[family.kind]
    config = made(**{**tiny_sizes(made), **family.options, **overrides})
    torch.manual_seed(seed)
    model_class = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family.kind])
    return model_class(config).eval()


@dataclasses.dataclass(frozen=True)
class Found:
    """Which texts of a model equal those of plain decoding, whatever it is run with.

    Attributes:
        chains, trees, batches: "exact", "wrong", or "" where the decoder refuses them.
        why: what it says of what it refuses.
        plain: whether plain greedy decoding is the library's own generation.
    """

    chains: str = ""
    trees: str = ""
    batches: str = ""
    why: str = ""
    plain: bool | None = None


_NUM_NEW = 24
_GREEDY = mv.SamplingParams(temperature=0.0)
_SAMPLED = mv.SamplingParams(temperature=0.8)
#   0 - 1 - 4 - 7,  0 - 2 - 5,  2 - 6 - 8,  0 - 3
_TREE = (-1, 0, 0, 0, 1, 2, 2, 4, 6)


def decode_all_ways(model: Any, lengths: tuple[int, ...] = (9, 23, 25)) -> Found:
    """Decode plainly, with chains, with trees and in a batch, greedily and seed-exactly.

    Args:
        model: of `tiny`.
        lengths: of prompts. With 24 new tokens they begin before, at and behind `SWITCH`.
    """
    try:
        target = Decoder(model).target
    except mv.errors.UnsupportedModelError as error:
        return Found(why=str(error))
    lengths = tuple(n for n in lengths if n < (target.max_length or n + 1))
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(1, VOCAB, (1, n), generator=generator) for n in lengths]
    chains, trees, is_plain = [], [], []
    for ids in prompts:
        for params in (_GREEDY, _SAMPLED):
            plain = _decode(model, ids, params)
            if params is _GREEDY:
                is_plain.append(plain.tokens[0] == _generated(model, ids, len(plain.tokens[0])))
            text = plain.sequences[0].tolist()
            # Right but for every fifth token, so that drafts are accepted in part.
            noisy = [(t + (place % 5 == 0)) % VOCAB for place, t in enumerate(text)]
            for script in (text, noisy):
                drafted = _decode(model, ids, params, ScriptDrafter(script))
                chains.append(drafted.tokens == plain.tokens)
            if target.tree_obstacle is None:
                drafted = _decode(model, ids, params, TreeDrafter(_TREE, VOCAB, text))
                trees.append(drafted.tokens == plain.tokens)
    batches = [] if target.batch_obstacle else [_is_batch_exact(model, prompts)]
    why = target.tree_obstacle or target.batch_obstacle or ""
    return Found(_said(chains), _said(trees), _said(batches), why, all(is_plain))


def _decode(model: Any, ids: Any, params: mv.SamplingParams, drafter: Any = None) -> Any:
    decoder = Decoder(model, drafter, params, "coupled")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the model's context")
        return decoder.generate(ids, max_new_tokens=_NUM_NEW, seed=7, eos_token_id=())


def _is_batch_exact(model: Any, prompts: list[Any]) -> bool:
    texts = [_decode(model, ids, _SAMPLED) for ids in prompts]
    decoder = Decoder(model, mv.drafters.NGram(), _SAMPLED, "coupled", batching="together")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the model's context")
        batch = decoder.generate(
            [ids[0] for ids in prompts], max_new_tokens=_NUM_NEW, seed=[7] * len(prompts),
            eos_token_id=(),
        )  # fmt: skip
    return batch.tokens == [text.tokens[0] for text in texts]


def _generated(model: Any, ids: Any, count: int) -> list[int]:
    """What the library generates greedily, as many tokens as there were room for."""
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count + 1, do_sample=False,
        pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return made[0, ids.shape[1] :][:count].tolist()


def _said(exact: list[bool]) -> str:
    return ("exact" if all(exact) else "wrong") if exact else ""
