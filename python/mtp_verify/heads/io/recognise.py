"""`recognise`: what the head in a published checkpoint is, before its tensors are taken.

Each step takes a `Source` and gives a new one that knows more: the names, the fields of the spec
that tensors and configuration decide, and which stored matrices are copies of the target's.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify.checkpoints.tensors import bad_checkpoint
from mtp_verify.errors import ParamsError
from mtp_verify.heads.base import Shared
from mtp_verify.heads.families import FAMILIES, block_of
from mtp_verify.heads.io.names import Naming, find_head

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mtp_verify.checkpoints.folder import Checkpoint
    from mtp_verify.heads.spec import HeadSpec

__all__ = ["Source", "recognise"]

_EMBEDDINGS = ("embed_tokens.weight", "word_embeddings.weight", "embeddings.weight")
_OUTPUTS = ("lm_head.weight", *_EMBEDDINGS)
_ROWS = 4096  # compared at once


@dataclass(frozen=True)
class Source:
    """A head in a published checkpoint."""

    checkpoint: Checkpoint
    config: Mapping[str, Any]  # of the language model, in one table
    target: Any | None  # the transformers model that it drafts for
    naming: Naming  # and the spec
    names: Mapping[str, str]  # name of a tensor in the layout -> in the checkpoint
    # Stored embeddings and output heads (names in the checkpoint) that were compared with the
    # target's -> whether they are equal.
    copies: Mapping[str, bool] = field(default_factory=dict)

    @property
    def spec(self) -> HeadSpec:
        """What the head is made of."""
        return self.naming.spec

    @property
    def folder(self) -> Path:
        """Of the checkpoint."""
        return self.checkpoint.folder

    @property
    def own_names(self) -> list[str]:
        """The checkpoint's names of all tensors that belong to the head, sorted."""
        prefixes, embedding = self.naming.prefixes, self.naming.name_of("embedding.weight")
        return sorted(
            name
            for label, name in self.names.items()
            if not prefixes or label.startswith(prefixes) or label == embedding
        )

    @property
    def main_embedding(self) -> str | None:
        """The target's own embedding, in a checkpoint that holds both."""
        return self._main(_EMBEDDINGS)

    def label(self, parameter: str) -> str:
        """Return the name of a parameter as such a checkpoint has it."""
        return self.naming.name_of(parameter) or parameter

    def name(self, parameter: str) -> str | None:
        """Return the checkpoint's tensor for a parameter, or None if there is none."""
        label = self.naming.name_of(parameter)
        return None if label is None else self.names.get(label)

    def has(self, parameter: str) -> bool:
        """Return whether there is a tensor for a parameter."""
        return self.name(parameter) is not None

    def shape(self, parameter: str) -> tuple[int, ...] | None:
        """Return the shape of the tensor for a parameter, or None if there is none."""
        name = self.name(parameter)
        return None if name is None else self.checkpoint.tensors[name].shape

    def of_levels(self, part: str) -> list[str | None]:
        """Return the checkpoint's tensor for the weight of a part of each module."""
        return [self.name(f"levels.{n}.{part}.weight") for n in range(self.spec.num_modules)]

    def main_of(self, copy: str) -> str:
        """Return the target's own tensor that a stored copy equals; an error if there is none."""
        is_embedding = copy == self.name("embedding.weight") or copy.endswith(_EMBEDDINGS)
        if (main := self._main(_EMBEDDINGS if is_embedding else _OUTPUTS)) is None:
            bad_checkpoint(self.folder, f"it holds no tensor of which {copy} is a copy")
        return main

    def same_as_target(self, name: str, weight: torch.Tensor | None) -> bool | None:
        """Return whether a stored matrix equals the target's, or None if that is not known.

        The target's is `weight`, or where that is None the one in the same checkpoint.
        """
        shape = self.checkpoint.tensors[name].shape
        if weight is None:
            is_embedding = name == self.name("embedding.weight")
            main = self._main(_EMBEDDINGS if is_embedding else _OUTPUTS)
            if main is None or self.checkpoint.tensors[main].shape != shape:
                return None
            weight = self.checkpoint.read(main)
        if not shape or tuple(weight.shape) != shape:
            return False
        stored = self.checkpoint.read(name)
        pairs = zip(torch.split(stored, _ROWS), torch.split(weight.detach(), _ROWS), strict=True)
        return all(torch.equal(one, other.to("cpu", one.dtype)) for one, other in pairs)

    def _main(self, endings: tuple[str, ...]) -> str | None:
        """Return the shortest name outside the head with one of the endings, the first first."""
        prefixes = self.naming.prefixes
        if not prefixes:
            return None
        own = {name for label, name in self.names.items() if label.startswith(prefixes)}
        others = [n for n in self.checkpoint.tensors if n not in own and ".mtp" not in n]
        for ending in endings:
            if found := [name for name in others if name.endswith(ending)]:
                return min(found, key=len)
        return None


def recognise(checkpoint: Checkpoint, target: Any | None = None) -> Source:
    """Return what the head in a checkpoint is, for a target, a transformers model, if there is one.

    UnsupportedModelError: no head is recognised, or its configuration makes no sense. ParamsError:
    the target is needed to understand it.
    """
    config = _in_one_table(checkpoint)
    tables: list[Any] = [checkpoint.config, config]
    if target is not None:
        tables.append({"model_type": target.config.model_type})
    model_types = [kind for table in tables if isinstance(kind := table.get("model_type"), str)]
    naming = find_head(checkpoint.tensors, config, model_types)
    kind = config.get("speculators_model_type")
    if kind is not None and kind != naming.spec.family:
        what = f"its tensors are those of {naming.spec.family}"
        bad_checkpoint(checkpoint.folder, f"speculators_model_type: found {kind!r}, and {what}")
    source = Source(checkpoint, config, target, naming, _names_in(checkpoint, naming))
    try:
        return _compare_copies(_read_fields(source))
    except ParamsError as error:
        if error.slug == "head_needs_target":
            raise
        bad_checkpoint(checkpoint.folder / "config.json", str(error))


def _in_one_table(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the configuration in one table; `speculators` keeps the block's apart."""
    config = dict(checkpoint.text_config)
    block, kind = config.get("transformer_layer_config"), config.get("speculators_model_type")
    if kind is None or not isinstance(block, dict):
        return config
    # Whether it can be run is found by its tensors.
    known = [name for name, record in FAMILIES.items() if not record.spec.is_inside_target]
    if kind not in known:
        found = f"speculators_model_type: found {str(kind)[:50]!r}"
        what = f"{found}, wanted one of: {', '.join(known)}"
        bad_checkpoint(checkpoint.folder, what, "unsupported_head")
    return {**config, **block}


def _names_in(checkpoint: Checkpoint, naming: Naming) -> dict[str, str]:
    layout = naming.layout
    names = {name.removeprefix(naming.start): name for name in checkpoint.tensors}
    # All modules may share one output head.
    if (shared := names.pop(f"{layout.names.get('shared_output')}.weight", None)) is not None:
        for module in range(naming.spec.num_modules):
            label = naming.name_of(f"levels.{module}.output.weight")
            names.setdefault(label or "", shared)
    return names


def _read_fields(source: Source) -> Source:
    """Fill in the fields of the spec that tensors and configuration decide."""
    spec, config = source.spec, source.config
    block, read_fields = block_of(spec), FAMILIES[spec.family].read_fields
    if config.get("target_hidden_size") not in (None, config.get("hidden_size")):
        width = config["target_hidden_size"]
        what = f"target_hidden_size: found {width}, wanted {config.get('hidden_size')}"
        bad_checkpoint(source.folder, what)
    num_layers = 0
    if "{l}" in source.naming.layout.names.get("block", ""):
        while source.has(f"levels.0.layers.{num_layers}.{block.wrapper}{block.sign}"):
            num_layers += 1
    bias = source.has("levels.0.fusion.bias")
    source = _with(source, num_layers=max(num_layers, 1), fusion_bias=bias)
    source = _with(source, **(read_fields(source) if read_fields else {}))
    return _with(source, sizes=block.read_sizes(source))


def _compare_copies(source: Source) -> Source:
    """Fill in which stored embeddings and output heads are the target's own."""
    spec, checkpoint = source.spec, source.checkpoint
    shared = None if source.target is None else Shared.of(source.target)
    copies: dict[str, bool | None] = {}
    fields: dict[str, Any] = {}
    if (embedding := source.name("embedding.weight")) is not None:
        weight = None if shared is None else getattr(shared.embed, "weight", None)
        copies[embedding] = source.same_as_target(embedding, weight)
        fields["own_embedding"] = not copies[embedding]
    outputs = [name for name in source.of_levels("output") if name is not None]
    weight = None if shared is None else shared.output_weight
    is_mapped = spec.kind == "parallel" and "token_map" in source.names and bool(outputs)
    if is_mapped:
        shape = checkpoint.tensors[outputs[0]].shape
        fields["draft_vocab_size"] = shape[0] if shape else None
        if weight is not None:
            tokens = checkpoint.read(source.names["token_map"]).to(weight.device, torch.int64)
            is_sound = tokens.numel() and tokens.min() >= 0 and tokens.max() < len(weight)
            weight = weight[tokens] if is_sound else None
    if spec.draft_vocab_size is not None and not is_mapped:
        fields["output_head"] = "own" if outputs else "shared"
    else:
        copies |= {name: source.same_as_target(name, weight) for name in outputs}
        is_shared = all(copies[name] for name in outputs)
        fields["output_head"] = "shared" if is_shared and not spec.output_bias else "own"
    compared = {name: same for name, same in copies.items() if same is not None}
    return dataclasses.replace(_with(source, **fields), copies=compared)


def _with(source: Source, **fields: Any) -> Source:
    naming = dataclasses.replace(source.naming, spec=source.spec.replace(**fields))
    return dataclasses.replace(source, naming=naming)
