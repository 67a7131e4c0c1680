"""Families of modules inside a target's checkpoint, all of them causal.

Feeds and recycles are those of vLLM 0.32 where engines differ; `disputed` names the fields that
SGLang 0.5 or transformers 5.23 reads otherwise. Names are those of the released checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtp_verify.errors import UnsupportedModelError
from mtp_verify.heads.blocks.half import HalfBlock
from mtp_verify.heads.blocks.llama import LlamaBlock
from mtp_verify.heads.blocks.sublayers import SublayersBlock
from mtp_verify.heads.blocks.target import TargetBlock
from mtp_verify.heads.spec import Family, HeadSpec, Layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from mtp_verify.checkpoints.folder import Checkpoint
    from mtp_verify.heads.blocks.base import HeadBlock
    from mtp_verify.heads.io.recognise import Source

__all__ = ["MODULES"]

_NEXTN = ("num_nextn_predict_layers", "num_mtp_layers")

# DeepSeek's names, which most families took over.
_DEEPSEEK = {
    "embed_norm": "enorm",
    "hidden_norm": "hnorm",
    "fusion": "eh_proj",
    "output_norm": "shared_head.norm",
    "output": "shared_head.head",
    "embedding": "embed_tokens",
    "block": "",
}
_FINAL = {**_DEEPSEEK, "output_norm": "final_layernorm"}
# Modules share all parts but the block.
_QWEN = {
    "embed_norm": "pre_fc_norm_embedding",
    "hidden_norm": "pre_fc_norm_hidden",
    "fusion": "fc",
    "output_norm": "norm",
    "block": "layers.{i}.",
}

_NO_CLASS = "transformers has no class of its target, so that it was compared with nothing"
_ONE_STREAM = (
    "its block has one hidden state where the target's layers have several streams of "
    "hyper-connections, and transformers has no class of such a block"
)
_SERVED = ("vllm", "sglang")
_EVERYWHERE = ("transformers", *_SERVED)


def _as_mimo(config: dict[str, Any], base: Checkpoint) -> dict[str, torch.Tensor]:
    """Make a Llama or Qwen2 checkpoint one that vLLM serves as MiMo: its name, and zero biases."""
    if config.get("model_type") not in ("llama", "qwen2"):
        return {}
    config |= {"architectures": ["MiMoForCausalLM"], "model_type": "qwen2"}
    biases: dict[str, torch.Tensor] = {}
    for part in ("q_proj", "k_proj", "v_proj"):
        for layer in range(base.num_layers):
            name = f"model.layers.{layer}.self_attn.{part}"
            if f"{name}.weight" in base.tensors:
                weight = base.read(f"{name}.weight")
                zeros = torch.zeros(weight.shape[0], dtype=weight.dtype)
                # The module's own, unless the head has one, which then takes this one's place.
                biases[f"model.mtp_layers.0.self_attn.{part}.bias"] = zeros
                if f"{name}.bias" not in base.tensors:
                    biases[f"{name}.bias"] = zeros
    return biases


def _refuse_full_attention(source: Source) -> dict[str, Any]:
    """Refuse full attention with rotary positions, which transformers' EXAONE does not have."""
    kinds = source.config.get("mtp_layer_types")
    if isinstance(kinds, list) and "full_attention" in kinds:
        why = "a module of full attention has rotary positions, which the target's such layers lack"
        message = f"mtp_layer_types: found {kinds}: {why}"
        raise UnsupportedModelError(message, slug="unsupported_head")
    return {}


def _mtp(
    name: str,
    model_types: tuple[str, ...] = (),
    prefix: str = "model.layers.{layer}.",
    names: dict[str, str] | None = None,
    *,
    count_keys: tuple[str, ...] = _NEXTN,
    renames: dict[str, str] | None = None,
    block: type[HeadBlock] | None = TargetBlock,
    engines: tuple[str, ...] = _SERVED,
    adapt_target: Callable[..., Any] | None = None,
    read_fields: Callable[[Source], dict[str, Any]] | None = None,
    **fields: Any,
) -> Family:
    """Return a record; a family whose blocks cannot be run here has an `obstacle` instead."""
    types, names, renames = model_types or (name,), names or _DEEPSEEK, renames or {}
    layout = Layout(prefix, names, renames, count_keys, types)
    if "obstacle" in fields:
        block = None
    spec = HeadSpec(name, block=block.kind if block else "foreign", layout=layout, **fields)
    return Family(spec, block, engines, read_fields=read_fields, adapt_target=adapt_target)


_RECYCLE = ("recycle",)

MODULES = (
    _mtp("deepseek_v3", ("deepseek_v3", "deepseek_v32"), zero_first=True,
         disputed=("zero_first",), engines=_EVERYWHERE),
    _mtp("glm4_moe", ("glm4_moe",), recycle="pre", disputed=_RECYCLE,
         engines=_EVERYWHERE),
    _mtp("glm4_moe_lite", recycle="pre", disputed=_RECYCLE),
    _mtp("glm_ocr", prefix="model.language_model.layers.{layer}.", recycle="pre",
         disputed=_RECYCLE),
    _mtp("glm_moe_dsa"),
    _mtp("glm5_next", ("glm5_next", "glm5_next_text"), obstacle=_ONE_STREAM),
    _mtp("openpangu", ("pangu_ultra_moe",), obstacle=_NO_CLASS),
    _mtp("kimi_k3", prefix="language_model.model.layers.{layer}.", recycle="pre",
         disputed=_RECYCLE, obstacle=_NO_CLASS),
    _mtp("dots3_note", ("dots3_note", "dots3_note_text"), layer_attention="sliding_attention",
         layer_mlp="sparse", names={**_DEEPSEEK, "embedding": "/model.mtp.embed_tokens"}),
    _mtp("hunyuan_v3", ("hy_v3",), names=_FINAL),
    _mtp("hunyuan_v4", ("hy_v4",), prefix="model.mtp_layers.{i}.", names=_FINAL,
         obstacle=_ONE_STREAM),
    _mtp("bailing", ("bailing_hybrid", "bailing_moe", "bailing_moe_v2"), names=_FINAL,
         engines=_EVERYWHERE),
    _mtp("mimo", prefix="model.mtp_layers.{i}.", fusion="he", feed="pre", block=LlamaBlock,
         zero_first=True, disputed=("feed", "zero_first"), adapt_target=_as_mimo,
         names={"embed_norm": "token_layernorm", "hidden_norm": "hidden_layernorm",
                "fusion": "input_proj", "output_norm": "final_layernorm", "block": ""}),
    _mtp("mimo_v2", ("mimo_v2", "mimo_v2_flash"), prefix="model.mtp.layers.{i}.", count_keys=(),
         names=_FINAL, renames={"post_attention_layernorm": "pre_mlp_layernorm"},
         layer_attention="sliding_attention", layer_mlp="dense"),
    _mtp("qwen3_next", prefix="mtp.", names=_QWEN, norm_kind="rms1p"),
    _mtp("qwen3_5", ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "intern_s2"),
         prefix="mtp.", names=_QWEN, norm_kind="rms1p",
         count_keys=("mtp_num_hidden_layers", *_NEXTN)),
    _mtp("exaone_moe", ("exaone_moe", "exaone4_5"), prefix="mtp.", names=_QWEN,
         layer_like="first", layer_mlp="dense", read_fields=_refuse_full_attention),
    _mtp("mellum", prefix="mtp.", names=_QWEN, engines=("transformers",)),
    # As the model is defined; vLLM feeds it "post", and knows no norm behind it.
    _mtp("ernie4_5_moe", prefix="model.mtp_", layer_like="first", feed="pre", recycle="pre",
         output_norm=False, target_norm=True, disputed=("feed", "target_norm"),
         names={"embed_norm": "emb_norm.{i}", "hidden_norm": "hidden_norm.{i}",
                "fusion": "linear_proj.{i}", "block": "block.{i}."}),
    _mtp("longcat_flash", prefix="model.mtp.", block=HalfBlock, own_embedding=True, count_keys=(),
         names={"embed_norm": "layers.0.enorm.m", "hidden_norm": "layers.0.hnorm.m",
                "fusion": "layers.0.eh_proj", "output_norm": "norm", "embedding": "embed_tokens",
                "block": "layers.0."},
         renames={"mlp": "transformer_layer.mlp"}),
    _mtp("step3p5", ("step3p5", "step3p7"), feed="pre", recycle="pre", norm_kind="rms1p",
         output_head="own", disputed=_RECYCLE,
         names={**_DEEPSEEK, "output_norm": "transformer.shared_head.norm",
                "output": "transformer.shared_head.output"},
         engines=_EVERYWHERE),
    _mtp("minimax_m3", ("minimax_m3", "minimax_m3_vl"), recycle="pre", norm_kind="rms1p",
         prefix="model.mtp.layers.{i}.", count_keys=("num_mtp_modules", *_NEXTN),
         names={**_FINAL, "block": "transformer_layer."},
         obstacle="its attention picks keys by their place in the cache, where a tree has several "
                  "at one position"),
    _mtp("nemotron_h", prefix="mtp.", block=SublayersBlock, engines=_EVERYWHERE,
         names={"embed_norm": "layers.0.enorm", "hidden_norm": "layers.0.hnorm",
                "fusion": "layers.0.eh_proj", "output_norm": "layers.1.final_layernorm",
                "block": "layers."}),
    _mtp("inkling", ("inkling", "inkling2"), prefix="model.mtp.layers.{i}.", fusion="he",
         names={"embed_norm": "embed_norm", "hidden_norm": "hidden_norm", "fusion": "input_proj",
                "output_norm": "/model.mtp.chain_norm", "block": "transformer_block."},
         obstacle="its blocks have short convolutions, whose one state branches cannot share",
         engines=_EVERYWHERE),
    _mtp("deepseek_v4", prefix="mtp.{i}.", feed="streams", fusion="sum",
         names={**_DEEPSEEK, "embed_proj": "e_proj", "hidden_proj": "h_proj"},
         obstacle="its hidden state is several streams of hyper-connections"),
    _mtp("qwen4_exp", prefix="mtp.", feed="streams", fusion="sum",
         names={**_QWEN, "embed_proj": "fc_embedding", "hidden_proj": "fc_hidden"},
         count_keys=("mtp_num_hidden_layers", *_NEXTN),
         obstacle="its hidden state is several streams of hyper-connections"),
    _mtp("gemma4_assistant", prefix="", fusion="eh", embed_norm=False, hidden_norm=False,
         names={"fusion": "pre_projection", "output_norm": "norm", "recycle": "post_projection",
                "block": "layers.{l}."},
         obstacle="it reads the target's own keys and values", engines=()),
)  # fmt: skip
