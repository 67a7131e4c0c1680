"""Block heads: DFlash, DSpark, Domino and JetSpec over keys and values; P-EAGLE over pairs.

References:
    DFlash, arXiv 2602.06036 (z-lab/dflash); DSpark, arXiv 2607.05147 (deepseek-ai/DeepSpec);
    Domino, arXiv 2605.29707 (sgl-project/SpecForge); JetSpec, arXiv 2606.18394; P-EAGLE,
    arXiv 2602.01469; the layouts of vllm-project/speculators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtp_verify.checkpoints.tensors import bad_checkpoint
from mtp_verify.heads.blocks.llama import LlamaBlock
from mtp_verify.heads.blocks.slots import SlotBlock
from mtp_verify.heads.families.eagle import SPECULATORS, aux_layers, block_config, eagle3_fields
from mtp_verify.heads.spec import Family, HeadSpec, Layout, Repository, refuse_export
from mtp_verify.models.hidden import BEFORE_NORM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mtp_verify.checkpoints.folder import Checkpoint
    from mtp_verify.heads.base import Head
    from mtp_verify.heads.io.recognise import Source
    from mtp_verify.heads.spec import Described

__all__ = ["BLOCK_HEADS"]

_MOST_SLOTS = 256
_SLOTS = 8  # of P-EAGLE, whose repositories need not say how many it was trained with
_SLIDING = "sliding_attention"
_FLAGS = ("sample_from_anchor", "draft_shift", "shift_label", "causal_head", "causal", "is_causal",
          "sliding_window_non_causal")  # fmt: skip
# What some models do to embeddings and logits, with the value that changes nothing.
_NEUTRAL = {"input_embedding_scale": 1.0, "output_multiplier": 1.0, "final_logit_softcapping": None}


def _options(source: Source) -> dict[str, Any]:
    """Return the configuration with the drafter's own table on top of it."""
    own = source.config.get("dflash_config")
    options = {**source.config, **(own if isinstance(own, dict) else {})}
    for name in _FLAGS:
        if (value := options.get(name)) is not None and type(value) is not bool:
            what = f"{name}: found {str(value)[:50]}, wanted true or false"
            bad_checkpoint(source.folder / "config.json", what)
    return options


def _number(source: Source, name: str, value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        wanted = f"wanted an int from {least} to {most}"
        bad_checkpoint(source.folder / "config.json", f"{name}: found {str(value)[:50]}, {wanted}")
    return value


def _layers(source: Source, options: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the hidden states that go in, by what enters a layer."""
    name, shift = "aux_hidden_state_layer_ids", 0
    if options.get(name) is None:
        # What leaves a layer; -1 is the embedding. Where nothing is said, spread evenly.
        name, shift = "target_layer_ids", 1
    layers = options.get(name)
    if layers is None and (depth := options.get("num_target_layers")) is not None:
        depth = _number(source, "num_target_layers", depth, 1, 1 << 16)
        count, end = source.spec.num_layers, depth - 3
        layers = [depth // 2]
        if count > 1:
            layers = [round(1 + place * (end - 1) / (count - 1)) for place in range(count)]
    if not isinstance(layers, list) or not layers or not all(type(n) is int for n in layers):
        what = f"{name}: found {str(layers)[:100]}, wanted a list of ints"
        bad_checkpoint(source.folder / "config.json", what)
    return tuple(layer + shift for layer in layers)


def _windows(source: Source, options: Mapping[str, Any]) -> tuple[int, ...]:
    """Return by layer the width of its sliding attention, 0 for full; empty if all are full."""
    kinds, count = options.get("layer_types"), source.spec.num_layers
    if kinds is None:
        return ()
    known = isinstance(kinds, list) and all(k in ("full_attention", _SLIDING) for k in kinds)
    if not known or len(kinds) < count:
        wanted = f"wanted a list that begins with {count} of: full_attention, {_SLIDING}"
        what = f"layer_types: found {str(kinds)[:100]}, {wanted}"
        bad_checkpoint(source.folder / "config.json", what)
    if _SLIDING not in kinds[:count]:
        return ()
    width = options.get("swa_window_size") or options.get("sliding_window")
    width = _number(source, "sliding_window", width, 1, (1 << 31) - 1)
    return tuple(width if kind == _SLIDING else 0 for kind in kinds[:count])


def _mask(source: Source, options: Mapping[str, Any]) -> int:
    size = source.config.get("vocab_size")
    most = size - 1 if type(size) is int else 0
    return _number(source, "mask_token_id", options.get("mask_token_id"), 0, most)


def _draft_vocab(source: Source) -> dict[str, Any]:
    output = source.shape("levels.0.output.weight")
    return {"draft_vocab_size": output[0]} if output and "d2t" in source.names else {}


def _fields(source: Source) -> dict[str, Any]:
    """Read what all heads over keys and values have in common."""
    options, spec = _options(source), source.spec
    for name, neutral in _NEUTRAL.items():
        if (value := options.get(name, neutral)) != neutral:
            what = f"{name}: found {str(value)[:50]}, wanted {neutral}: it is not applied here"
            bad_checkpoint(source.folder, what, "unsupported_head")
    fields: dict[str, Any] = {
        "aux_layers": _layers(source, options),
        "block_size": _number(source, "block_size", options.get("block_size"), 2, _MOST_SLOTS),
        "mask_token": _mask(source, options),
        "windows": _windows(source, options),
        **_draft_vocab(source),
    }
    disputed = []
    if (from_root := options.get("sample_from_anchor", options.get("draft_shift"))) is not None:
        fields["offset"] = "next" if from_root else "place"
    elif "speculators_model_type" not in options and spec.family == "dflash":
        disputed.append("offset")
    is_causal = options.get("causal_head", options.get("causal", options.get("is_causal")))
    if is_causal is not None:
        fields["in_block"] = "causal" if is_causal else "full"
    elif options.get("sliding_window_non_causal"):
        fields["in_block"] = "full"
    elif fields["windows"] and "speculators_model_type" not in options:
        disputed.append("in_block")
    if options.get("causal_head") and spec.family == "dflash":
        # The tensors have the same names.
        fields["family"] = "jetspec"
    return {**fields, "disputed": tuple(disputed)}


def _markov_fields(source: Source) -> dict[str, Any]:
    options = _options(source)
    kinds = {"vanilla": "markov", "gated": "gated", "rnn": "rnn"}
    kind = options.get("markov_head_type", "vanilla")
    if not isinstance(kind, str) or kind not in kinds:
        what = f"markov_head_type: found {str(kind)[:50]}, wanted one of: {', '.join(kinds)}"
        bad_checkpoint(source.folder, what, "unsupported_head")
    shape = source.shape("correction.token.weight") or (0, 0)
    return {**_fields(source), "correction": kinds[kind], "rank": shape[-1]}


def _gru_fields(source: Source) -> dict[str, Any]:
    options = _options(source)
    mix = source.shape("correction.mix.weight") or (0, 0)
    state = source.shape("correction.cell.weight_hh_l0") or (0, 0)
    return {
        **_fields(source),
        "offset": "next" if options.get("shift_label") else "place",
        "rank": mix[0],
        "gru_size": state[-1],
        "num_plain": _number(
            source, "pure_draft_prefix_len", options.get("pure_draft_prefix_len", 0), 0, _MOST_SLOTS
        ),
    }


def _pair_fields(source: Source) -> dict[str, Any]:
    """Read P-EAGLE's options: EAGLE-3's, the mask, and how many slots it was trained with."""
    config = source.config
    mask = config.get("mask_token_id", config.get("pard_token"))
    slots: Any = config.get("speculators_config")
    for key in ("proposal_methods", 0, "speculative_tokens"):
        try:
            slots = slots[key]
        except (LookupError, TypeError):
            slots = _SLOTS
            break
    return {
        **eagle3_fields(source),
        "block_size": _number(source, "speculative_tokens", slots, 1, _MOST_SLOTS),
        "mask_token": _mask(source, {"mask_token_id": mask}),
    }


def _describe(head: Head, base: Checkpoint | None) -> Described:
    """Return the configuration that z-lab's code, SpecForge, vLLM and SGLang read."""
    spec = head.spec
    if head.vocab is not None or spec.own_embedding or spec.output_head == "own":
        refuse_export(spec, "the layout has no place for a vocabulary or an output head of its own")
    layers = [layer - 1 for layer in aux_layers(spec, base)]
    own: dict[str, Any] = {"mask_token_id": spec.mask_token, "target_layer_ids": layers}
    if spec.in_block != "sliding":
        own["causal"] = spec.in_block == "causal"
    architecture = "DFlashDraftModel"
    if spec.correction != "none":
        architecture = "DSparkDraftModel"
        names = {"markov": "vanilla", "gated": "gated", "rnn": "rnn"}
        own |= {
            "projector_type": "dspark",
            "markov_rank": spec.rank,
            "markov_head_type": names[spec.correction],
            "enable_confidence_head": False,
            "confidence_head_with_markov": False,
        }
    windows = spec.windows or (0,) * spec.num_layers
    config = {
        **block_config(spec),
        "architectures": [architecture],
        "model_type": "qwen3",
        "block_size": spec.block_size,
        "dflash_config": own,
        "layer_types": [_SLIDING if width else "full_attention" for width in windows],
    }
    if any(windows):
        config |= {"sliding_window": max(windows), "use_sliding_window": True}
    if base is not None:
        config["num_target_layers"] = base.num_layers
    if spec.offset != FAMILY_OFFSETS[spec.family]:
        own["sample_from_anchor"] = spec.offset == "next"
    return config, {}


_NAMES = {"features": "fc", "hidden_norm": "hidden_norm", "output_norm": "norm",
          "block": "layers.{l}.", "embedding": "embed_tokens", "output": "lm_head"}  # fmt: skip
_MARKS = ("fc.weight", "hidden_norm.weight")
_UNREAD = ("confidence_head.", "logit_head.confidence_head.", "verifier_norm.", "verifier_lm_head.")
_MARKOV = {"token": "markov_w1", "output": "markov_w2", "gate": "gate_proj", "joint": "joint_proj"}
_GRU = {"cell": "prefix_gru", "mix": "embed_proj.0", "output": "embed_proj.2"}


def _layout(start: str, parts: Mapping[str, str], *marks: str) -> Layout:
    names = {f"correction.{ours}": start + theirs for ours, theirs in parts.items()}
    own = tuple(start + mark for mark in marks)
    return Layout(names={**_NAMES, **names}, marks=(*_MARKS, *own), unread=_UNREAD)


def _spec(name: str, offset: str, layout: Layout, correction: str = "none") -> HeadSpec:
    return HeadSpec(
        name, kind="block", feed="aux", fusion="none", embed_norm=False, block=SlotBlock.kind,
        mask_token=0, block_size=2, offset=offset, in_block="sliding", correction=correction,
        layout=layout,
    )  # fmt: skip


_ENGINES = ("vllm", "sglang")
_PLAIN = _layout("", {})
_DSPARK, _DOMINO = "markov_w#.weight", "prefix_gru.weight_ih_l#"
_DFLASH_SPEC = _spec("dflash", "place", _PLAIN)
_DSPARK_SPEC = _spec("dspark", "next", _layout("markov_head.", _MARKOV, _DSPARK), "markov")
_DOMINO_SPEC = _spec("domino", "place", _layout("", _GRU, _DOMINO), "gru")
_JETSPEC_SPEC = _spec("jetspec", "place", _PLAIN).replace(in_block="causal")
FAMILY_OFFSETS = {spec.family: spec.offset for spec in (_DFLASH_SPEC, _DSPARK_SPEC, _JETSPEC_SPEC)}
_PEAGLE_NAMES = {**SPECULATORS.names, "mask_hidden": "mask_hidden"}
_PEAGLE_SPEC = HeadSpec(
    "peagle", kind="block", feed="aux", recycle="pre", fusion="attention", output_head="own",
    mask_token=0, block_size=_SLOTS, in_block="causal",
    layout=Layout(names=_PEAGLE_NAMES, marks=("mask_hidden", "layers.#.self_attn.q_proj.weight")),
)  # fmt: skip
_MIDLAYER = {"embed_norm": "midlayer.input_layernorm", "hidden_norm": "midlayer.hidden_norm",
             "block": "midlayer."}  # fmt: skip
# The one that is trained here: no embedding and no correction over the vocabulary.
_OWN_SPEC = HeadSpec(
    "block", kind="block", feed="aux", fusion="he", feature_norm="each", block=SlotBlock.kind,
    block_size=5, correction="features", rank=64,
)  # fmt: skip
BLOCK_HEADS = (
    Family(_DFLASH_SPEC, SlotBlock, _ENGINES, {"dflash": Repository(_PLAIN, _describe)}, _fields),
    Family(_DSPARK_SPEC, SlotBlock, _ENGINES,
           {"dspark": Repository(_DSPARK_SPEC.layout, _describe)}, _markov_fields,
           # SpecForge's first ones.
           aliases=(_layout("logit_head.markov_head.", _MARKOV, _DSPARK),)),
    Family(_DOMINO_SPEC, SlotBlock, ("sglang",), read_fields=_gru_fields,
           aliases=(_layout("logit_head.", _GRU, _DOMINO),)),
    Family(_JETSPEC_SPEC, SlotBlock, read_fields=_fields),
    Family(_PEAGLE_SPEC, LlamaBlock, ("vllm",), read_fields=_pair_fields,
           aliases=(Layout(names={**_PEAGLE_NAMES, **_MIDLAYER},
                           marks=("mask_hidden", "midlayer.self_attn.q_proj.weight")),)),
    Family(_OWN_SPEC, SlotBlock,
           default_layers=lambda depth: (2, depth // 2, depth - 3, BEFORE_NORM)),
)  # fmt: skip
