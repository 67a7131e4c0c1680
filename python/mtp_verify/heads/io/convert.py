"""`convert`: the tensors of a published head by the names of our parameters."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from mtp_verify.checkpoints.tensors import bad_checkpoint, listed
from mtp_verify.heads.families import block_of
from mtp_verify.heads.io.assemble import HeadTensors, Stored, empty_head

if TYPE_CHECKING:
    from mtp_verify.heads.io.recognise import Source

__all__ = ["convert"]

_MEANINGLESS = ("rotary_emb.inv_freq",)
_VOCABS = {"d2t", "t2d", "token_map"}
_SCALE = "_scale_inv"  # of weights in blocks of eight-bit floats, as DeepSeek's


def convert(source: Source) -> HeadTensors:
    """Return the tensor of each parameter of a recognised head, and those that belong to none.

    UnsupportedModelError: tensors that cannot be converted. ParamsError: the target is needed.
    """
    spec, names, target = source.spec, source.names, source.target
    if not spec.is_tied and spec.num_modules * spec.num_layers > len(names):
        bad_checkpoint(source.folder, f"it claims {spec.num_modules} modules")
    block = block_of(spec)
    stored: dict[str, Stored] = {}
    unknown: list[str] = []
    used: set[str] = set()  # labels
    for module in range(spec.num_modules if block.needs_target and target is not None else 0):
        labels = _labels_of_block(source, module)
        found, more = _convert_block(source, module, labels)
        stored |= found
        unknown += more
        used |= set(labels.values())
    for parameter, tensor in empty_head(spec, target).state_dict().items():
        label = source.naming.name_of(parameter)
        if parameter in stored or label is None:
            continue
        if label in names:
            stored[parameter] = _stored(source, label)
            used.add(label)
        elif block.has_optional_biases and label.endswith("bias"):
            weight, shape = label.removesuffix("bias") + "weight", tuple(tensor.shape)
            stored[parameter] = Stored(label, shape, partial(_zeros, shape, source, weight))
    done = {names[label] for label in used} | {names[vocab] for vocab in _VOCABS & names.keys()}
    done |= {names[scale] for label in used if (scale := label + _SCALE) in names}
    done |= {name for name, is_same in source.copies.items() if is_same}
    done |= {names[label] for label in block.find_copies(source)}
    prefixes = source.naming.prefixes
    unknown += sorted(
        name
        for label, name in names.items()
        if (not prefixes or label.startswith(prefixes))
        and name not in done
        and not label.startswith(source.naming.layout.unread)
        and not name.endswith(_MEANINGLESS)
    )
    return HeadTensors(stored, _vocab_of(source), tuple(unknown), source.label)


def _labels_of_block(source: Source, module: int) -> dict[str, str]:
    """Return a block's tensors: name after the prefix, as the target's layer has it -> label."""
    naming = source.naming
    start = naming.block_prefix(module)
    parts = {
        naming.name_of(f"levels.{module}.{part}.{kind}")
        for part in ("embed_norm", "hidden_norm", "fusion", "norm", "output")
        for kind in ("weight", "bias")
    } | {naming.name_of("embedding.weight")}
    labels: dict[str, str] = {}
    for label in source.names:
        if label.startswith(start) and label not in parts and not label.endswith(_SCALE):
            rest = label.removeprefix(start)
            for ours, theirs in naming.layout.renames.items():
                if rest.startswith(f"{theirs}."):
                    rest = ours + rest.removeprefix(theirs)
            labels[rest] = label
    return labels


def _convert_block(
    source: Source, module: int, labels: dict[str, str]
) -> tuple[dict[str, Stored], list[str]]:
    """Return a module's block as the target's layer class has it, and unknown tensors."""
    block, start = block_of(source.spec), source.naming.block_prefix(module)
    tensors = {rest: _read(source, label) for rest, label in labels.items()}
    converted = block.from_checkpoint(source.spec, source.target, tensors)
    if converted.wrong:
        bad_checkpoint(source.folder, f"wrong shape: {listed(converted.wrong)}", "bad_tensors")
    own = f"levels.{module}.layers.0.{block.wrapper}"
    stored = {
        own + name: Stored(start + name, tuple(tensor.shape), tensor.clone)
        for name, tensor in converted.tensors.items()
    }
    return stored, [
        source.names[labels[name]] if name in labels else start + name
        for name in converted.unknown
        if not name.endswith(_MEANINGLESS)
    ]


def _stored(source: Source, label: str) -> Stored:
    shape = source.checkpoint.tensors[source.names[label]].shape
    return Stored(source.names[label], shape, partial(_read, source, label))


def _read(source: Source, label: str) -> torch.Tensor:
    """Read a tensor; one of eight-bit floats times the scale of each of its blocks."""
    tensor = source.checkpoint.read(source.names[label])
    if (scale_name := source.names.get(label + _SCALE)) is None:
        return tensor
    options = source.config.get("quantization_config")
    sizes = options.get("weight_block_size") if isinstance(options, dict) else None
    is_sound = isinstance(sizes, list) and len(sizes) == 2 and all(type(s) is int for s in sizes)
    height, width = [max(1, size) for size in sizes] if is_sound and sizes else [128, 128]
    shape, scale = tensor.shape, source.checkpoint.read(scale_name).float()
    if len(shape) >= 2:
        blocks = (*shape[:-2], -(-shape[-2] // height), -(-shape[-1] // width))
        if tuple(scale.shape) == blocks:
            wide = scale.repeat_interleave(height, -2).repeat_interleave(width, -1)
            return (tensor.float() * wide[..., : shape[-2], : shape[-1]]).to(torch.bfloat16)
    wanted = f"a scale for each block of {height} x {width} of {list(shape)}"
    what = f"{scale_name}: found shape {list(scale.shape)}, wanted {wanted}"
    bad_checkpoint(source.folder, what)


def _zeros(shape: tuple[int, ...], source: Source, weight: str) -> torch.Tensor:
    return torch.zeros(shape, dtype=_read(source, weight).dtype)


def _vocab_of(source: Source) -> Stored | None:
    """Return the draft vocabulary: EAGLE-3 stores offsets, vLLM's Medusa the tokens."""
    checkpoint, names = source.checkpoint, source.names
    if "token_map" in names:
        name = names["token_map"]
        shape = checkpoint.tensors[name].shape
        return Stored(name, shape, lambda: checkpoint.read(name).to(torch.int64))
    if "d2t" not in names or source.spec.draft_vocab_size is None:
        return None

    def read() -> torch.Tensor:
        offsets = checkpoint.read(names["d2t"]).to(torch.int64)
        tokens = offsets + torch.arange(offsets.numel())
        if "t2d" in names:
            drafted = checkpoint.read(names["t2d"]).to(torch.bool).reshape(-1)
            if not torch.equal(drafted.nonzero()[:, 0], tokens):
                bad_checkpoint(checkpoint.folder, "d2t and t2d name different tokens")
        return tokens

    return Stored(names["d2t"], checkpoint.tensors[names["d2t"]].shape, read)
