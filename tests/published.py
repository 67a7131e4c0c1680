"""Tiny checkpoints in published layouts, with names written out as the releases have them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from mtp_verify.heads import CausalHead, Sizes, family
from tests.heads import SIZES, randomised, tiny_head
from tests.models import VOCAB, tiny_model

if TYPE_CHECKING:
    from pathlib import Path

_DEEPSEEK = ("enorm", "hnorm", "eh_proj", "shared_head.norm")
_FINAL = ("enorm", "hnorm", "eh_proj", "final_layernorm")
_QWEN = (
    "mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.fc", "mtp.norm",
)  # fmt: skip


def _layer(prefix: str, parts: tuple[str, ...], block: str = "") -> dict[str, str]:
    names = dict(
        zip(("embed_norm", "hidden_norm", "fusion", "norm"), (prefix + p for p in parts),
            strict=True)
    )  # fmt: skip
    return {**names, "block": prefix + block}


# Names of the parts of one module behind a target of two layers: family -> ours -> theirs.
IN_CHECKPOINT: dict[str, dict[str, str]] = {
    "deepseek_v3": _layer("model.layers.2.", _DEEPSEEK),
    "glm4_moe": _layer("model.layers.2.", _DEEPSEEK),
    "glm4_moe_lite": _layer("model.layers.2.", _DEEPSEEK),
    "glm_ocr": _layer("model.language_model.layers.2.", _DEEPSEEK),
    "glm_moe_dsa": _layer("model.layers.2.", _DEEPSEEK),
    "dots3_note": _layer("model.layers.2.", _DEEPSEEK),
    "hunyuan_v3": _layer("model.layers.2.", _FINAL),
    "bailing": _layer("model.layers.2.", _FINAL),
    "mimo": _layer(
        "model.mtp_layers.0.",
        ("token_layernorm", "hidden_layernorm", "input_proj", "final_layernorm"),
    ),
    "mimo_v2": _layer("model.mtp.layers.0.", _FINAL),
    "qwen3_next": {**_layer("", _QWEN), "block": "mtp.layers.0."},
    "qwen3_5": {**_layer("", _QWEN), "block": "mtp.layers.0."},
    "exaone_moe": {**_layer("", _QWEN), "block": "mtp.layers.0."},
    "mellum": {**_layer("", _QWEN), "block": "mtp.layers.0."},
    "ernie4_5_moe": {
        "embed_norm": "model.mtp_emb_norm.0", "hidden_norm": "model.mtp_hidden_norm.0",
        "fusion": "model.mtp_linear_proj.0", "block": "model.mtp_block.0.",
    },
    "step3p5": {
        **_layer("model.layers.2.", _DEEPSEEK),
        "norm": "model.layers.2.transformer.shared_head.norm",
        "output": "model.layers.2.transformer.shared_head.output",
    },
}  # fmt: skip
MODEL_TYPES = {"bailing": "bailing_hybrid", "hunyuan_v3": "hy_v3"}


def in_checkpoint_head(name: str, model: Any, **changes: Any) -> Any:
    """Return a random head of a family that stands inside its target's checkpoint."""
    spec = family(name).replace(sizes=Sizes.of(model.config), **changes)
    return randomised(CausalHead(spec, model)).eval()


def in_checkpoint_tensors(name: str, head: Any) -> dict[str, torch.Tensor]:
    """Return the head's tensors under their published names."""
    parts = IN_CHECKPOINT[name]
    tensors = {}
    for ours, tensor in head.state_dict().items():
        level, part, rest = ours.split(".", 3)[1:] if ours.count(".") > 2 else ours.split(".")[1:]
        assert level == "0"
        if part == "layers":
            rest = ours.split(".", 4)[4].removeprefix("layer.")
            if name == "mimo_v2":
                rest = rest.replace("post_attention_layernorm", "pre_mlp_layernorm")
            tensors[parts["block"] + rest] = tensor.clone()
        else:
            tensors[f"{parts[part]}.{rest}"] = tensor.clone()
    return tensors


def write_in_checkpoint(name: str, folder: Path, **changes: Any) -> tuple[Any, Any]:
    """Write a target with a head of the family inside; return both."""
    model = tiny_model("llama")
    head = in_checkpoint_head(name, model, **changes)
    tensors = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    tensors |= in_checkpoint_tensors(name, head)
    config = model.config.to_dict() | {"model_type": MODEL_TYPES.get(name, name)}
    for key in head.spec.layout.count_keys[:1]:
        config[key] = 1
    write(folder, config, tensors)
    return model, head


def write(folder: Path, config: dict[str, Any], *shards: dict[str, torch.Tensor]) -> None:
    """Write a checkpoint; several shards get an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, default=str))
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors")
        return
    where = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / name)
        where |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def llama_config(**more: Any) -> dict[str, Any]:
    """Return the configuration of a repository with a head of Llama blocks."""
    return {
        "model_type": "llama", "hidden_size": 32, "vocab_size": VOCAB, "intermediate_size": 48,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-6,
        "num_hidden_layers": 1, "rope_theta": 10_000.0, "max_position_embeddings": 2048, **more,
    }  # fmt: skip


def write_eagle(folder: Path, model: Any) -> Any:
    """Write an EAGLE repository; return the head."""
    head = tiny_head("eagle", model)
    tensors = {
        name.replace("levels.0.fusion", "fc").replace("levels.0.", ""): tensor.clone()
        for name, tensor in head.state_dict().items()
    }
    tensors["embed_tokens.weight"] = model.get_input_embeddings().weight.detach().clone()
    write(folder, llama_config(architectures=["LlamaForCausalLM"]), tensors)
    return head


def eagle3_tensors(head: Any, block: str) -> dict[str, torch.Tensor]:
    """Return the tensors of an EAGLE-3 head; `block` is "midlayer" or "layers.0"."""
    tensors = {}
    for name, tensor in head.state_dict().items():
        new = name.replace("levels.0.layers.0.", f"{block}.")
        new = new.replace("levels.0.embed_norm", f"{block}.input_layernorm")
        new = new.replace("levels.0.hidden_norm", f"{block}.hidden_norm")
        new = new.replace("levels.0.output", "lm_head").replace("levels.0.norm", "norm")
        new = new.replace("features.", "fc.")
        new = new.replace("feature_norms.", "fc_norm." if head.spec.feature_norm == "each" else "?")
        tensors[new.replace("?0", "input_norm")] = tensor.clone()
    vocab = head.vocab
    tensors["d2t"] = vocab - torch.arange(len(vocab))
    tensors["t2d"] = torch.zeros(VOCAB, dtype=torch.bool).scatter(0, vocab, True)
    return tensors


def write_eagle3(folder: Path, model: Any) -> Any:
    """Write an EAGLE-3 repository as SpecForge does; return the head."""
    head = tiny_head("eagle3", model, aux_layers=(1, 2))
    config = llama_config(
        architectures=["LlamaForCausalLMEagle3"], draft_vocab_size=20,
        eagle_config={"eagle_aux_hidden_state_layer_ids": [0, 1], "use_aux_hidden_state": True},
    )  # fmt: skip
    write(folder, config, eagle3_tensors(head, "midlayer"))
    return head


def write_speculators(folder: Path, model: Any, **changes: Any) -> Any:
    """Write an EAGLE-3 repository as `speculators` does; return the head."""
    head = tiny_head("eagle3", model, aux_layers=(0, 1, 2), **changes)
    spec = head.spec
    config = {
        "speculators_model_type": "eagle3", "architectures": ["Eagle3Speculator"],
        "draft_vocab_size": 20, "norm_before_residual": spec.norm_before_residual,
        "norm_output": spec.recycle == "post", "fc_norm": spec.feature_norm == "each",
        "norm_before_fc": spec.feature_norm == "all", "target_hidden_size": None,
        "eagle_aux_hidden_state_layer_ids": [0, 1, 2], "transformer_layer_config": llama_config(),
    }  # fmt: skip
    write(folder, config, eagle3_tensors(head, "layers.0"))
    return head


def write_medusa(folder: Path, model: Any, num_layers: int = 1) -> Any:
    """Write a Medusa repository as FasterDecoding's, in safetensors; return the head."""
    head = tiny_head("medusa", model, num_modules=3, num_layers=num_layers)
    tensors = {}
    for name, tensor in head.state_dict().items():
        _, level, rest = name.split(".", 2)
        rest = rest.replace("layers.", "").replace("output", str(num_layers))
        tensors[f"{level}.{rest}"] = tensor.clone()
    config = {"medusa_num_heads": 3, "medusa_num_layers": num_layers}
    write(folder, config, tensors)
    return head


def write_vllm_medusa(folder: Path, model: Any) -> Any:
    """Write a Medusa repository as vLLM has them, without biases; return the head."""
    head = tiny_head("medusa", model, num_modules=2, num_layers=2, draft_vocab_size=12)
    tensors = {"token_map": head.vocab.clone()}
    for name, tensor in head.state_dict().items():
        _, level, rest = name.split(".", 2)
        if rest.endswith("bias"):
            tensor.zero_()
        elif rest.startswith("layers"):
            tensors[f"blocks.{level}.{rest.replace('.linear', '')}"] = tensor.clone()
        else:
            tensors[f"lm_heads.{level}.weight"] = tensor.clone()
    config = {
        "architectures": ["MedusaModel"], "model_type": "medusa", "hidden_size": 32,
        "vocab_size": VOCAB, "num_heads": 2, "num_hidden_layers": 2, "truncated_vocab_size": 12,
    }  # fmt: skip
    write(folder, config, tensors)
    return head


REPOSITORIES = {
    "eagle": write_eagle,
    "eagle3": write_eagle3,
    "speculators": write_speculators,
    "medusa": write_medusa,
    "vllm-medusa": write_vllm_medusa,
}
assert SIZES.hidden_size == 32
