"""`export`: a head in the layout that a serving engine reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from mtp_verify.checkpoints.extend import extend, write_folder
from mtp_verify.checkpoints.folder import Checkpoint
from mtp_verify.checkpoints.tensors import write_tensors
from mtp_verify.errors import ParamsError
from mtp_verify.heads.convert import to_checkpoint
from mtp_verify.heads.families import FAMILIES, OTHER_LAYOUTS
from mtp_verify.heads.layouts import Found, published_name
from mtp_verify.heads.native import save
from mtp_verify.models.hidden import BEFORE_NORM

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mtp_verify.heads.base import Head
    from mtp_verify.heads.spec import HeadSpec, Layout, Sizes

__all__ = ["LAYOUTS", "export"]

# Layout -> families that it can hold; None: every family that stands inside a target's checkpoint.
LAYOUTS: dict[str, tuple[str, ...] | None] = {
    "native": tuple(FAMILIES),
    "eagle": ("eagle", "eagle3"),
    "speculators": ("eagle3",),
    "medusa": ("medusa",),
    "in_checkpoint": None,
}


def export(
    head: Head,
    path: str | Path,
    layout: str = "native",
    *,
    base: str | Path | None = None,
    target: Any | None = None,
) -> None:
    """Write a head for a serving engine; `load` reads every layout back bit for bit.

    Args:
        head: to be written.
        path: a new folder; it appears in one rename, complete.
        layout: "native" (see `save`); "eagle", an EAGLE or EAGLE-3 repository as vLLM and SGLang
            read it; "speculators" (EAGLE-3), as vLLM reads it; "medusa", as vLLM reads it;
            "in_checkpoint", a copy of the target's checkpoint with the modules inside, in the names
            of the head's family. A MiMo module goes into a Llama or Qwen2 checkpoint so that vLLM
            serves the whole as MiMo.
        base: the folder of the target's checkpoint, for "in_checkpoint", "speculators", and
            EAGLE-3 heads whose layers are counted from the end.
        target: the target, where the head is made of its own kind of layer; with "native" its
            fingerprint is kept.

    Raises:
        ParamsError: the layout cannot hold such a head; says what stands against it.

    Example:
        >>> mv.heads.export(head, "served", "in_checkpoint", base="target")  # doctest: +SKIP
    """
    spec = head.spec
    if layout not in LAYOUTS:
        _refuse(spec, f"layout {layout!r} is not known; known are: {', '.join(LAYOUTS)}")
    families = LAYOUTS[layout]
    inside = families is None
    if inside and not (spec.layout.prefix or spec.family == "ernie4_5_moe"):
        _refuse(spec, "such heads have a repository of their own, not a place in a checkpoint")
    if families is not None and spec.family not in families:
        _refuse(spec, f"layout {layout!r} holds: {', '.join(families)}")
    if base is None and (inside or layout == "speculators"):
        _refuse(spec, f"layout {layout!r} needs the target's checkpoint; give base=")
    if layout == "native":
        save(head, path, target=target, record=head.record)
    elif inside:
        _inside(head, path, Checkpoint(base or ""), target)
    else:
        config, tensors = _repository(head, layout, base)

        def fill(folder: Path) -> None:
            (folder / "config.json").write_text(json.dumps(config, indent=2))
            write_tensors(folder / "model.safetensors", tensors)

        write_folder(path, fill)


def _repository(
    head: Head, layout: str, base: str | Path | None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and tensors of a head in a repository of its own."""
    spec = head.spec
    family = FAMILIES[spec.family]
    if layout == "medusa":
        return _medusa(head)
    sizes = spec.known_sizes
    config = _block_config(sizes, spec.num_layers)
    if spec.family == "eagle":
        if spec.draft_vocab_size is not None or spec.output_norm or spec.fusion != "eh":
            _refuse(spec, "the layout has no draft vocabulary and no output norm")
        config |= {"architectures": ["LlamaForCausalLM"]}
        return config, _named(head, family.layout)
    if spec.num_layers > 1 and layout == "eagle":
        _refuse(spec, 'the layout has one block; use layout="speculators"')
    own: Layout = OTHER_LAYOUTS["eagle3"]["speculators"] if layout == "speculators" else (
        family.layout
    )  # fmt: skip
    tensors = _named(head, own)
    size = sizes.vocab_size if head.vocab is None else len(head.vocab)
    if head.vocab is not None:
        vocab = head.vocab.cpu()
        tensors["d2t"] = vocab - torch.arange(size)
        tensors["t2d"] = torch.zeros(sizes.vocab_size, dtype=torch.bool).scatter(0, vocab, True)  # noqa: FBT003
    layers = _aux_layers(spec, base)
    options: dict[str, Any] = {
        "draft_vocab_size": size,
        # vLLM takes yes for a missing answer here, speculators no.
        "norm_before_residual": spec.norm_before_residual,
        "norm_output": spec.recycle == "post",
        "norm_before_fc": spec.feature_norm == "all",
        "fc_norm": spec.feature_norm == "each",
        "target_hidden_size": None,
        "eagle_aux_hidden_state_layer_ids": layers,
    }
    if layout == "speculators":
        verifier = Checkpoint(base or "")
        return {
            "architectures": ["Eagle3Speculator"],
            "speculators_model_type": "eagle3",
            "speculators_version": "0.9.0",
            **options,
            "transformer_layer_config": config,
            "speculators_config": _proposal(verifier),
        }, tensors
    del options["target_hidden_size"]
    # SGLang counts by what leaves a layer.
    counted = {"eagle_aux_hidden_state_layer_ids": [layer - 1 for layer in layers]}
    return {
        **config,
        "architectures": ["LlamaForCausalLMEagle3"],
        **options,
        "eagle_config": {**counted, "use_aux_hidden_state": True},
    }, tensors


def _medusa(head: Head) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    spec, sizes = head.spec, head.spec.known_sizes
    tensors = _named(head, OTHER_LAYOUTS["medusa"]["vllm"])
    config: dict[str, Any] = {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "hidden_size": sizes.hidden_size,
        "vocab_size": sizes.vocab_size,
        "num_heads": spec.num_modules,
        "num_hidden_layers": spec.num_layers,
        # Without this vLLM drops the biases, and says nothing.
        "medusa_fc_bias": True,
        "truncated_vocab_size": spec.draft_vocab_size or sizes.vocab_size,
    }
    if head.vocab is not None:
        tensors["token_map"] = head.vocab
    if spec.output_head == "shared":
        config["original_lm_head"] = True
        rows = head.shared.output_weight.detach()
        tensors["lm_head.weight"] = rows if head.vocab is None else rows[head.vocab]
    return config, tensors


def _inside(head: Head, path: str | Path, base: Checkpoint, target: Any | None) -> None:
    spec = head.spec
    if head.vocab is not None:
        # The engines' modules draft from all tokens, with the target's own output head.
        if spec.output_head == "own":
            _refuse(spec, "an own output head over a draft vocabulary has no place in a checkpoint")
        spec = spec.replace(draft_vocab_size=None, context_tokens=False)
    config = json.loads(json.dumps(base.config))
    text, layers = _text_config(spec, base, config)
    numbers = tuple(range(spec.num_modules))
    if "{layer}" in spec.layout.prefix:
        numbers = tuple(layers + number for number in numbers)
    tensors = _named(head, spec.layout, numbers, target)
    if spec.layout.count_keys:
        text[spec.layout.count_keys[0]] = spec.num_modules
    if spec.family == "mimo" and text.get("model_type") in ("llama", "qwen2"):
        tensors |= _as_mimo(text, base, layers)
    extend(base, tensors, path, config=config)


def _text_config(
    spec: HeadSpec, base: Checkpoint, config: dict[str, Any]
) -> tuple[dict[str, Any], int]:
    """The part of the target's configuration that is about text, and its number of layers."""
    text = config
    for key in ("text_config", "llm_config"):
        if isinstance(config.get(key), dict):
            text = config[key]
            break
    layers = text.get("num_hidden_layers")
    if type(layers) is not int:
        _refuse(spec, f"{base.folder} does not say how many layers it has")
    return text, layers


def _aux_layers(spec: HeadSpec, base: str | Path | None) -> list[int]:
    """The hidden states that the head reads, counted from the first layer as engines do."""
    layers, end = list(spec.aux_layers), BEFORE_NORM
    if base is not None:
        checkpoint = Checkpoint(base)
        end = _text_config(spec, checkpoint, checkpoint.config)[1]
        layers = [layer if layer >= 0 else end + 1 + layer for layer in layers]
    if any(not 0 <= layer < end for layer in layers):
        _refuse(
            spec,
            f"it reads hidden states {spec.aux_layers}; engines give what enters a layer, counted "
            "from the first (base= tells how many there are), and not what the final norm gives",
        )
    return layers


def _as_mimo(config: dict[str, Any], base: Checkpoint, layers: int) -> dict[str, torch.Tensor]:
    """What makes a Llama checkpoint one that vLLM serves as MiMo: its name, and zero biases."""
    config["architectures"] = ["MiMoForCausalLM"]
    config["model_type"] = "qwen2"
    biases: dict[str, torch.Tensor] = {}
    for layer in range(layers):
        for part in ("q_proj", "k_proj", "v_proj"):
            name = f"model.layers.{layer}.self_attn.{part}"
            if f"{name}.bias" not in base.tensors and f"{name}.weight" in base.tensors:
                weight = base.read(f"{name}.weight")
                biases[f"{name}.bias"] = torch.zeros(weight.shape[0], dtype=weight.dtype)
    if biases:
        width = "model.mtp_layers.0.self_attn."
        for part in ("q_proj", "k_proj", "v_proj"):
            biases.setdefault(
                f"{width}{part}.bias", biases[f"model.layers.0.self_attn.{part}.bias"]
            )
    return biases


def _named(
    head: Head, layout: Layout, numbers: tuple[int, ...] = (0,), target: Any | None = None
) -> dict[str, torch.Tensor]:
    """The head's tensors under their published names.

    Raises:
        ParamsError: one that has none.
    """
    spec = head.spec
    numbers = numbers if len(numbers) >= spec.num_modules else tuple(range(spec.num_modules))
    found = Found(spec, layout, numbers)
    tensors: dict[str, torch.Tensor] = {}
    state: Mapping[str, torch.Tensor] = head.state_dict()
    blocks: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        if spec.block == "target" and ".layers." in name:
            level = int(name.split(".")[1])
            blocks.setdefault(level, {})[name.split(".layer.", 1)[1]] = tensor
            continue
        _put(spec, tensors, published_name(found, name), name, tensor)
    for level, block in blocks.items():
        if target is None:
            _refuse(spec, "it is made of the target's own kind of layer; give target=")
        for rest, tensor in to_checkpoint(target, block).items():
            name = f"levels.{level}.layers.0.layer.{rest}"
            _put(spec, tensors, published_name(found, name), name, tensor)
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def _put(
    spec: HeadSpec,
    tensors: dict[str, torch.Tensor],
    label: str | None,
    name: str,
    tensor: torch.Tensor,
) -> None:
    if label is None:
        _refuse(spec, f"the layout has no name for {name}")
    if label in tensors and not torch.equal(tensors[label], tensor):
        _refuse(spec, f"the layout has one {label} for all modules, and theirs differ")
    tensors[label] = tensor


def _block_config(sizes: Sizes, num_layers: int) -> dict[str, Any]:
    """The configuration of a Llama (or Qwen3, with norms of queries and keys) of these sizes."""
    rope = dict(sizes.rope)
    theta, factor = rope.pop("rope_theta"), rope.pop("partial_rotary_factor", None)
    config: dict[str, Any] = {
        "model_type": "qwen3" if sizes.qk_norm else "llama",
        "hidden_size": sizes.hidden_size,
        "vocab_size": sizes.vocab_size,
        "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads,
        "head_dim": sizes.head_dim,
        "rms_norm_eps": sizes.norm_eps,
        "hidden_act": sizes.activation,
        "attention_bias": sizes.qkv_bias,
        "mlp_bias": sizes.mlp_bias,
        "rope_theta": theta,
        "rope_scaling": rope or None,
        "max_position_embeddings": sizes.max_positions,
        "tie_word_embeddings": False,
    }
    return config if factor is None else {**config, "partial_rotary_factor": factor}


def _proposal(verifier: Checkpoint) -> dict[str, Any]:
    return {
        "algorithm": "eagle3",
        "default_proposal_method": "greedy",
        "proposal_methods": [
            {
                "proposal_type": "greedy",
                "speculative_tokens": 3,
                # More than one would accept tokens that are not the target's choice.
                "verifier_accept_k": 1,
                "accept_tolerance": 0.0,
            }
        ],
        "verifier": {
            "name_or_path": str(verifier.folder.resolve()),
            "architectures": verifier.config.get("architectures") or [],
        },
    }


def _refuse(spec: HeadSpec, why: str) -> NoReturn:
    msg = f"a {spec.family} head cannot be exported so: {why}"
    raise ParamsError(msg, slug="bad_layout")
