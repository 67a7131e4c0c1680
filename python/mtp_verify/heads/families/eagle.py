"""EAGLE and EAGLE-3: causal heads in repositories of their own.

References:
    EAGLE, arXiv 2401.15077; EAGLE-3, arXiv 2503.01840.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtp_verify.checkpoints.tensors import bad_checkpoint
from mtp_verify.errors import ParamsError
from mtp_verify.heads.blocks.llama import LlamaBlock
from mtp_verify.heads.spec import Family, HeadSpec, Layout, Repository, refuse_export
from mtp_verify.models.hidden import BEFORE_NORM

if TYPE_CHECKING:
    from mtp_verify.checkpoints.folder import Checkpoint
    from mtp_verify.heads.base import Head
    from mtp_verify.heads.io.recognise import Source
    from mtp_verify.heads.spec import Described

__all__ = ["EAGLE", "EAGLE3", "SPECULATORS", "aux_layers", "block_config", "eagle3_fields"]

_EAGLE3_NAMES = {
    "features": "fc", "feature_norm_all": "input_norm", "feature_norm_each": "fc_norm.{j}",
    "output_norm": "norm", "output": "lm_head", "embedding": "embed_tokens",
}  # fmt: skip


def _eagle_fields(source: Source) -> dict[str, Any]:
    """Return which norms there are: EAGLE has none, some of its successors have all."""
    norms = {
        "embed_norm": "embed_norm",
        "hidden_norm": "hidden_norm",
        "input_norm": "layers.0.input_layernorm",
    }
    return {field: source.has(f"levels.0.{part}.weight") for field, part in norms.items()}


def _eagle_config(head: Head, base: Checkpoint | None) -> Described:
    del base
    spec = head.spec
    if spec.draft_vocab_size is not None or spec.output_norm or spec.fusion != "eh":
        refuse_export(spec, "the layout has no draft vocabulary and no output norm")
    return {**block_config(spec), "architectures": ["LlamaForCausalLM"]}, {}


def _eagle3_layers(depth: int) -> tuple[int, ...]:
    return (2, depth // 2, depth - 3)


def eagle3_fields(source: Source) -> dict[str, Any]:
    """Read the options of SpecForge's, vLLM's and speculators' configurations."""
    config, nested = source.config, source.config.get("eagle_config")
    layers = config.get("eagle_aux_hidden_state_layer_ids")
    shift = 0
    if layers is None and isinstance(nested, dict):
        # SGLang counts by what leaves a layer, vLLM and transformers by what enters it.
        layers, shift = nested.get("eagle_aux_hidden_state_layer_ids"), 1
    if layers is None:
        if source.target is None:
            what = "which hidden states the head reads depends on the target's depth"
            message = f"{source.folder}: {what}; give the target: mv.heads.load(path, target=model)"
            raise ParamsError(message, slug="head_needs_target")
        text = source.target.config.get_text_config(decoder=True)
        layers, shift = list(_eagle3_layers(text.num_hidden_layers)), 0
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        what = f"eagle_aux_hidden_state_layer_ids: found {layers}, wanted a list of ints"
        bad_checkpoint(source.folder / "config.json", what)
    before = config.get("norm_before_residual")
    fields: dict[str, Any] = {
        "aux_layers": tuple(layer + shift for layer in layers),
        "feature_norm": "each" if "fc_norm.0.weight" in source.names
        else "all" if "input_norm.weight" in source.names
        else "none",
        "norm_before_residual": bool(before),
        "recycle": "post" if config.get("norm_output") else "pre",
    }  # fmt: skip
    if before is None and "speculators_model_type" in config:
        # vLLM takes yes for a missing answer, speculators no.
        fields["disputed"] = ("norm_before_residual",)
    output = source.shape("levels.0.output.weight")
    if output is not None and "d2t" in source.names:
        fields["draft_vocab_size"] = output[:1][0]
    return fields


def _eagle3_options(head: Head, base: Checkpoint | None) -> Described:
    """Return the options of EAGLE-3 that both layouts have, and the draft vocabulary's tensors."""
    spec, sizes = head.spec, head.spec.known_sizes
    size, tensors = sizes.vocab_size, {}
    if head.vocab is not None:
        size, vocab = len(head.vocab), head.vocab.cpu()
        drafted = torch.zeros(sizes.vocab_size, dtype=torch.bool)
        drafted[vocab] = True
        tensors = {"d2t": vocab - torch.arange(size), "t2d": drafted}
    options = {
        "draft_vocab_size": size,
        "norm_before_residual": spec.norm_before_residual,
        "norm_output": spec.recycle == "post",
        "norm_before_fc": spec.feature_norm == "all",
        "fc_norm": spec.feature_norm == "each",
        "eagle_aux_hidden_state_layer_ids": aux_layers(spec, base),
    }
    return options, tensors


def _eagle3_config(head: Head, base: Checkpoint | None) -> Described:
    if head.spec.num_layers > 1:
        refuse_export(head.spec, 'the layout has one block; use layout="speculators"')
    options, tensors = _eagle3_options(head, base)
    layers = options["eagle_aux_hidden_state_layer_ids"]
    # SGLang counts by what leaves a layer.
    nested = {"eagle_aux_hidden_state_layer_ids": [layer - 1 for layer in layers]}
    config = {**block_config(head.spec), "architectures": ["LlamaForCausalLMEagle3"], **options}
    return {**config, "eagle_config": {**nested, "use_aux_hidden_state": True}}, tensors


def _speculators_config(head: Head, base: Checkpoint | None) -> Described:
    if base is None:
        refuse_export(head.spec, 'layout "speculators" needs the target\'s checkpoint; give base=')
    options, tensors = _eagle3_options(head, base)
    # More than one `verifier_accept_k` would accept tokens that are not the target's choice.
    proposal = {
        "proposal_type": "greedy",
        "speculative_tokens": 3,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    architectures = base.config.get("architectures") or []
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.9.0",
        **options,
        "target_hidden_size": None,
        "transformer_layer_config": block_config(head.spec),
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [proposal],
            "verifier": {
                "name_or_path": str(base.folder.resolve()),
                "architectures": architectures,
            },
        },
    }, tensors


def aux_layers(spec: HeadSpec, base: Checkpoint | None) -> list[int]:
    """Return the layers that the head reads, counted from the first one as engines do."""
    layers, end = list(spec.aux_layers), BEFORE_NORM
    if base is not None:
        end = base.num_layers
        layers = [layer if layer >= 0 else end + 1 + layer for layer in layers]
    if any(not 0 <= layer < end for layer in layers):
        refuse_export(
            spec,
            f"it reads hidden states {spec.aux_layers}; engines give what enters a layer, counted "
            "from the first (base= tells how many there are), and not what the final norm gives",
        )
    return layers


def block_config(spec: HeadSpec) -> dict[str, Any]:
    """Return the configuration of a Llama (or Qwen3, which normalises queries and keys)."""
    sizes = spec.known_sizes
    rope = dict(sizes.rope)
    theta, factor = rope.pop("rope_theta"), rope.pop("partial_rotary_factor", None)
    config: dict[str, Any] = {
        "model_type": "qwen3" if sizes.qk_norm else "llama",
        "tie_word_embeddings": False,
        "hidden_size": sizes.hidden_size,
        "vocab_size": sizes.vocab_size,
        "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": spec.num_layers,
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
    }
    if factor is not None:
        config["partial_rotary_factor"] = factor
    if sizes.window is not None:
        config |= {"sliding_window": sizes.window, "use_sliding_window": True}
        config["layer_types"] = ["sliding_attention"] * spec.num_layers
    return config


_EAGLE = HeadSpec(
    "eagle", embed_norm=False, hidden_norm=False, input_norm=False, output_norm=False,
    layout=Layout(
        names={"fusion": "fc", "embed_norm": "embedding_layernorm",
               "hidden_norm": "hidden_states_layernorm", "embedding": "embed_tokens",
               "output": "lm_head", "block": "layers.{l}."},
    ),
)  # fmt: skip
_ENGINES = ("vllm", "sglang")
_REPOSITORIES = {"eagle": Repository(_EAGLE.layout, _eagle_config)}
EAGLE = Family(_EAGLE, LlamaBlock, _ENGINES, _REPOSITORIES, _eagle_fields)

_EAGLE3 = HeadSpec(
    "eagle3", feed="aux", recycle="pre", fusion="attention", output_head="own",
    layout=Layout(
        names={"embed_norm": "midlayer.input_layernorm", "hidden_norm": "midlayer.hidden_norm",
               "block": "midlayer.", **_EAGLE3_NAMES},
    ),
)  # fmt: skip
SPECULATORS = Layout(
    names={"embed_norm": "layers.0.input_layernorm", "hidden_norm": "layers.0.hidden_norm",
           "block": "layers.{l}.", **_EAGLE3_NAMES},
)  # fmt: skip
_REPOSITORIES3 = {
    "eagle": Repository(_EAGLE3.layout, _eagle3_config),
    "speculators": Repository(SPECULATORS, _speculators_config),
}
EAGLE3 = Family(_EAGLE3, LlamaBlock, _ENGINES, _REPOSITORIES3, eagle3_fields, _eagle3_layers)
