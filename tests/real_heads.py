"""Targets of transformers' real classes with modules for multi-token prediction inside.

A module's block is one more layer of its target, so the block is taken from a target of one layer
that transformers builds, and its tensors get the names of the release. The logits that such a
module has are then those of transformers' own forward of that layer over the fused inputs: nothing
of `mtp_verify` takes part. What enters, in which order, and what a level hands on is written here
anew, from vLLM 0.32 and the published definitions.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from tests.zoo import VOCAB, tiny_sizes

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CASES", "Case", "Module", "Real", "write_real"]

_WIDTH = 32
_BESIDE = ("vision", "model.vis", "model.audio", "audio")
_PICTURES = {
    **dict.fromkeys(("depth", "num_hidden_layers", "num_layers"), 1),
    **dict.fromkeys(("hidden_size", "intermediate_size", "embed_dim"), 16),
    **dict.fromkeys(("num_heads", "num_attention_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("patch_size", "temporal_patch_size", "spatial_merge_size"), 2),
    "image_size": 4, "num_position_embeddings": 4, "out_hidden_size": _WIDTH, "head_dim": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One released form.

    Attributes:
        kind: `model_type` of the target.
        family: as which its modules are to be recognised.
        parts: embedding norm, hidden norm, fusion, output norm in the checkpoint ("" for none);
            `{i}` is the module's number and `{layer}` that which follows the target's layers.
        block: what the names of the block's tensors start with.
        fields: of the target's configuration.
        module: of the configuration of a target whose one layer is the block.
        renames: beginnings of names in a layer of the target -> in the module, where they differ.
        half: the module is the first half of a double layer, and `renames` name all of that.
        modules: how many; each has a block of its own.
        embedding, output: the names of a module's own embedding and output head, or "".
        feed, recycle, order: what goes in, what is handed on, what stands first in the fusion.
        target_norm: the target's final norm stands before its output head.
        text_alone: the class is that of the language model, without pictures.
    """

    kind: str
    family: str
    parts: tuple[str, str, str, str]
    block: str
    fields: dict[str, Any] = field(default_factory=dict)
    module: dict[str, Any] = field(default_factory=dict)
    renames: dict[str, str] = field(default_factory=dict)
    half: bool = False
    modules: int = 1
    embedding: str = ""
    output: str = ""
    feed: str = "post"
    recycle: str = "post"
    order: str = "eh"
    target_norm: bool = False
    text_alone: bool = False

    @property
    def class_name(self) -> str:
        """The target's class in transformers."""
        whole = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(self.kind)
        text = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(self.kind)
        names = (text, whole) if self.text_alone else (whole, text)
        return str(next(name for name in names if name))


def _named(start: str, names: str) -> tuple[str, str, str, str]:
    one, two, three, four = (start + name for name in names.split())
    return one, two, three, four


_DEEPSEEK = "enorm hnorm eh_proj shared_head.norm"
_FINAL = "enorm hnorm eh_proj final_layernorm"
_QWEN = _named("mtp.", "pre_fc_norm_embedding pre_fc_norm_hidden fc norm")
_LAST = "model.layers.{layer}."
_SPARSE = {"first_k_dense_replace": 0}
_FULL = {"layer_types": ["full_attention"]}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"] * 2}
_MLA = {"num_key_value_heads": 4}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_MROPE = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
}
_INDEX = {"index_topk": 4, "index_n_heads": 16, "index_head_dim": 8}
_DOTS = {
    "layer_types": ["sliding_attention", "indexed_attention"] * 2, "head_dim": 16,
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16, "swa_head_dim": 16, "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8,
    "shared_experts_intermediate_size": 16,
}  # fmt: skip
_DOT = {"layer_types": ["sliding_attention"], "mlp_layer_types": ["sparse"]}
_LIMITS = ("swiglu_limits", "swiglu_limits_shared")
_DENSE = {"mlp_layer_types": ["dense"]}


def _mlp(kind: str) -> dict[str, Any]:
    return {"mlp_layer_types": [kind]}


def _nextn(kind: str, family: str = "", names: str = _DEEPSEEK, **more: Any) -> Case:
    return Case(kind, family or kind, _named(_LAST, names), _LAST, **more)


CASES: dict[str, Case] = {
    case.kind: case
    for case in (
        _nextn("deepseek_v3", fields=_MLA, module=_SPARSE),
        _nextn("deepseek_v32", "deepseek_v3", fields={**_MLA, **_INDEX}, module=_mlp("sparse")),
        _nextn("glm4_moe", module=_SPARSE, recycle="pre"),
        _nextn("glm4_moe_lite", fields=_MLA, module=_mlp("sparse"), recycle="pre"),
        _nextn("glm_moe_dsa", fields={**_MLA, **_INDEX}, module=_mlp("sparse")),
        Case(
            "glm_ocr", "glm_ocr", _named("model.language_model.layers.{layer}.", _DEEPSEEK),
            "model.language_model.layers.{layer}.", fields=_MROPE, recycle="pre",
        ),
        _nextn("hy_v3", "hunyuan_v3", _FINAL, module=_mlp("sparse")),
        _nextn("bailing_hybrid", "bailing", _FINAL, fields={**_MLA, **_LINEAR},
               module={**_FULL, **_mlp("sparse")}),
        _nextn("dots3_note", fields={**_MLA, **_INDEX, **_DOTS}, module=_DOT, text_alone=True),
        Case("qwen2", "mimo",
             _named("model.mtp_layers.{i}.",
                    "token_layernorm hidden_layernorm input_proj final_layernorm"),
             "model.mtp_layers.{i}.", feed="pre", order="he"),
        Case("step3p7", "step3p5",
             _named(_LAST, "enorm hnorm eh_proj transformer.shared_head.norm"), _LAST,
             {"layer_types": [*_SLIDING["layer_types"], *["sliding_attention"] * 2],
              "pad_token_id": 0, "moe_layers_enum": "1,2,3", "num_nextn_predict_layers": 2,
              "num_sliding_attention_heads": 2, "share_expert_dim": 16,
              **{name: [0.0, 0.0, 0.5, 0.5, 0.0, 0.0] for name in _LIMITS}},
             {"layer_types": ["sliding_attention"], **_DENSE, "moe_layers_enum": "",
              "num_nextn_predict_layers": 0, **dict.fromkeys(_LIMITS)},
             modules=2, output=_LAST + "transformer.shared_head.output",
             feed="pre", recycle="pre"),
        Case("longcat_flash", "longcat_flash",
             _named("model.mtp.", "layers.0.enorm.m layers.0.hnorm.m layers.0.eh_proj norm"),
             "model.mtp.layers.0.",
             {**_MLA, "zero_expert_num": 0, "expert_ffn_hidden_size": 16, "ffn_hidden_size": 32,
              "moe_topk": 2, "num_layers": 2},
             {"num_layers": 1, "num_hidden_layers": 2},
             {"self_attn.0": "self_attn", "input_layernorm.0": "input_layernorm",
              "post_attention_layernorm.0": "post_attention_layernorm",
              "mlps.0": "transformer_layer.mlp"},
             half=True, embedding="model.mtp.embed_tokens"),
        Case("nemotron_h", "nemotron_h",
             _named("mtp.layers.", "0.enorm 0.hnorm 0.eh_proj 1.final_layernorm"), "mtp.layers.",
             {"layers_block_type": ["mamba", "attention", "mamba", "moe"], "mamba_num_heads": 8,
              "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 16,
              "moe_shared_expert_intermediate_size": 16, "num_nextn_predict_layers": 1},
             {"layers_block_type": ["attention", "moe"]}),
        Case("qwen3_next", "qwen3_next", _QWEN, "mtp.layers.0.", _LINEAR, _FULL),
        Case("qwen3_5", "qwen3_5", _QWEN, "mtp.layers.0.", _LINEAR, _FULL),
        Case("qwen3_5_text", "qwen3_5", _QWEN, "mtp.layers.0.", _LINEAR, _FULL),
        Case("qwen3_5_moe", "qwen3_5", _QWEN, "mtp.layers.0.", _LINEAR, _FULL),
        Case("qwen3_5_moe_text", "qwen3_5", _QWEN, "mtp.layers.0.", _LINEAR, _FULL),
        Case("exaone_moe", "exaone_moe", _QWEN, "mtp.layers.0.",
             {**_SLIDING, "mlp_layer_types": ["dense", *["sparse"] * 3]},
             {"layer_types": ["sliding_attention"], **_DENSE}),
        Case("exaone4_5", "exaone_moe", _QWEN, "mtp.layers.0.", _SLIDING,
             {"layer_types": ["sliding_attention"]}),
        Case("mellum", "mellum", _QWEN, "mtp.layers.0.",
             {**_SLIDING, "num_mtp_layers": 1},
             {"layer_types": ["sliding_attention"], **_mlp("sparse")}),
        Case("mimo_v2_flash", "mimo_v2", _named("model.mtp.layers.{i}.", _FINAL),
             "model.mtp.layers.{i}.",
             {**_SLIDING, "mlp_layer_types": ["dense", *["sparse"] * 3]},
             {"layer_types": ["sliding_attention"], **_DENSE},
             renames={"post_attention_layernorm": "pre_mlp_layernorm"}, modules=2),
        Case("ernie4_5_moe", "ernie4_5_moe",
             ("model.mtp_emb_norm.0", "model.mtp_hidden_norm.0", "model.mtp_linear_proj.0", ""),
             "model.mtp_block.0.", {"moe_layer_start_index": 1},
             {"moe_layer_start_index": 1}, feed="pre", recycle="pre", target_norm=True),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Module:
    """One module: what its tensors are, and a target of one layer, which is its block."""

    embed_norm: torch.Tensor
    hidden_norm: torch.Tensor
    fusion: torch.Tensor
    donor: Any
    embedding: torch.Tensor | None
    output: torch.Tensor | None


@dataclass(frozen=True)
class Real:
    """A target with its modules in a checkpoint, and what they are made of."""

    case: Case
    folder: Path
    model: Any  # the target, as transformers loads it
    modules: tuple[Module, ...]

    @property
    def pattern(self) -> str:
        """What the names of the modules' tensors match; transformers must know it to read them."""
        return r"^mtp\." if self.case.block.startswith("mtp.") else r"^model\.layers\.[45]\."

    @torch.no_grad()
    def levels(self, ids: torch.Tensor, drafted: int) -> torch.Tensor:
        """Return logits (2, V) of the levels 1 and 2 after a text (n,), by forwards of the whole.

        Level 1 is that of the true pairs, level 2 of `drafted` below it.
        """
        after, before = _around_norm(self.model, input_ids=ids[None])
        hidden = (after if self.case.feed == "post" else before)[:, :-1]
        tokens, word = ids[None, 1:], torch.tensor([[drafted]])
        first, handed = self._run(0, hidden, tokens)
        tokens = torch.cat((tokens, word), dim=1)
        if self.case.modules > 1:
            # A module of its own reads all that the first one gave, with the tokens one later.
            second, _ = self._run(1, handed, tokens[:, 1:])
        else:
            second, _ = self._run(0, torch.cat((hidden, handed[:, -1:]), dim=1), tokens)
        return torch.stack((first, second))

    def _run(
        self, index: int, hidden: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (V,) after the last pair, and what all of them hand on."""
        case, module, model = self.case, self.modules[index], self.model
        norm = _norm(module.donor)
        norm = type(norm)(_WIDTH, getattr(norm, "variance_epsilon", None) or norm.eps)
        pair = []
        embeds = model.get_input_embeddings()(tokens)
        if module.embedding is not None:
            embeds = nn.functional.embedding(tokens, module.embedding)
        for weight, x in ((module.embed_norm, embeds), (module.hidden_norm, hidden)):
            norm.weight.data = weight
            pair.append(norm(x))
        if case.order == "he":
            pair.reverse()
        fused = nn.functional.linear(torch.cat(pair, dim=-1), module.fusion)
        after, before = _around_norm(module.donor, inputs_embeds=fused)
        output = after if case.parts[3] else before
        if case.target_norm:
            output = _norm(model)(output)
        weight = model.get_output_embeddings().weight if module.output is None else module.output
        logits = nn.functional.linear(output[0, -1], weight)
        return logits, output if case.recycle == "post" else before


def _norm(model: Any) -> nn.Module:
    """Return a target's final norm."""
    decoder = model.get_decoder()
    norm: nn.Module = decoder.norm_f if hasattr(decoder, "norm_f") else decoder.norm
    return norm


def _around_norm(model: Any, **inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a target's hidden states behind its final norm, and those before it."""
    decoder, before = model.get_decoder(), []
    hook = _norm(model).register_forward_pre_hook(lambda _, entered: before.append(entered[0]))
    after = decoder(**inputs, use_cache=False).last_hidden_state
    hook.remove()
    return after, before[0]


def write_real(name: str, folder: Path, **changes: Any) -> Real:
    """Write a target of a case (with other fields) with modules inside, all weights random."""
    case = dataclasses.replace(CASES[name], **changes)
    torch.manual_seed(3)
    target = _build(case, {})
    target.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    modules = []
    for index in range(case.modules):
        module, own = _make_module(case, folder / f"donor-{index}")
        modules.append(module)
        tensors |= {
            name.replace("{i}", str(index)).replace("{layer}", str(4 + index)): tensor
            for name, tensor in own.items()
        }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return Real(case, folder, type(target).from_pretrained(folder).eval(), tuple(modules))


def _make_module(case: Case, folder: Path) -> tuple[Module, dict[str, torch.Tensor]]:
    donor = _build(case, {"num_hidden_layers": 1} | case.module)
    if case.half:
        _silence_all_but_the_first_half(donor.get_decoder().layers[0])
    donor.save_pretrained(folder)
    within = "" if case.block.endswith("layers.") else r"0\."
    layers = re.compile(rf"^(?:.*\.)?layers\.{within}(?P<name>.*)")
    tensors = {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        if key.startswith(_BESIDE) or not (match := layers.match(key)):
            continue
        name = match["name"]
        start = next((start for start in case.renames if name.startswith(f"{start}.")), "")
        if start or not case.half:
            tensors[case.block + case.renames.get(start, "") + name.removeprefix(start)] = tensor
    weights = [
        torch.randn(_WIDTH) * 0.3 + 1.0,
        torch.randn(_WIDTH) * 0.3 + 1.0,
        torch.randn(_WIDTH, 2 * _WIDTH) * 0.3,
        _norm(donor).weight.detach().clone(),
    ]
    tensors |= {
        f"{label}.weight": weight.clone()
        for label, weight in zip(case.parts, weights, strict=True)
        if label
    }
    output = torch.randn(VOCAB, _WIDTH) * 0.3 if case.output else None
    if output is not None:
        tensors[f"{case.output}.weight"] = output.clone()
    embedding = torch.randn(VOCAB, _WIDTH) if case.embedding else None
    if embedding is not None:
        tensors[f"{case.embedding}.weight"] = embedding.clone()
    return Module(*weights[:3], donor, embedding, output), tensors


@torch.no_grad()
def _silence_all_but_the_first_half(layer: Any) -> None:
    for part in (layer.self_attn[1].o_proj, layer.mlps[1].down_proj):
        part.weight.zero_()
    layer.mlp.experts.down_proj.zero_()


def _build(case: Case, changes: dict[str, Any]) -> Any:
    made = CONFIG_MAPPING[case.kind]
    others = dict(getattr(made, "sub_configs", {}))
    if others.pop("text_config", None) is None or case.text_alone:
        made = type(made().text_config) if case.text_alone else made
        config = made(**tiny_sizes(made) | case.fields | changes)
    else:
        text = type(made().text_config)
        fields = tiny_sizes(text) | {"model_type": text.model_type} | case.fields | changes
        config = made(text_config=fields, **{part: _small(kind) for part, kind in others.items()})
    text = config.get_text_config()
    # Far from every default: it must be read where it stands.
    setattr(text, "rms_norm_eps" if hasattr(text, "rms_norm_eps") else "layer_norm_epsilon", 0.05)
    model = getattr(transformers, case.class_name)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and parameter.dim() == 1:
                parameter.normal_(1.0, 0.2)
    return model


def _small(made: type) -> dict[str, Any]:
    known = {one.name for one in dataclasses.fields(made)}
    return {key: value for key, value in _PICTURES.items() if key in known}
