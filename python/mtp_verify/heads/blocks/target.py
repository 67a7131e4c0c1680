"""A block of the target's own kind of layer (latent attention, experts, ...).

A module may hold in one tensor what the checkpoint keeps apart (the experts of a layer, say).
transformers knows for each architecture how the two relate; its conversion is used here, on one
layer.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import nn

from mtp_verify.caches.dynamic import GrowingLayer
from mtp_verify.caches.indexed import IndexedLayer
from mtp_verify.caches.names import cache_name
from mtp_verify.errors import ParamsError, UnsupportedModelError
from mtp_verify.heads.blocks.base import BlockInputs, Converted, HeadBlock
from mtp_verify.heads.spec import HeadSpec, Sizes
from mtp_verify.models.hidden import final_norm

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mtp_verify.heads.io.recognise import Source

__all__ = ["TargetBlock", "additive", "as_cache", "layers_of", "name_of_cache"]

_WIDTHS = ("hidden_size", "vocab_size")
_KINDS = ("layer_types", "mlp_layer_types")
# Bounds of some of the target's last layers, which no module has.
_LIMITS = ("swiglu_limits", "swiglu_limits_shared")


def as_cache(layer: GrowingLayer) -> Any:
    """Return what a transformers layer uses of a cache: one layer, whatever index it asks for."""
    cache = SimpleNamespace(
        update=lambda keys, values, *_, **__: layer.update(keys, values),
        get_seq_length=lambda *_: layer.get_seq_length(),
    )
    if isinstance(layer, IndexedLayer):
        cache.update_indexer = lambda keys, *_, **__: layer.update_indexer(keys)
    return cache


class TargetBlock(HeadBlock):
    """One more layer of the target's own kind; UnsupportedModelError where those are not found."""

    kind = "target"
    uses_rotary = False
    needs_target = True
    wrapper = "layer."
    place: ClassVar[str] = "0."  # of `layer` among the target's layers, in names

    def __init__(self, spec: HeadSpec, index: int = 0, target: Any | None = None) -> None:
        super().__init__(spec, index, target)
        model, layers = layers_of(target)
        rotary = getattr(model.get_decoder(), "rotary_emb", None)
        if rotary is None:
            what = "does not show its rotary embedding, so a head made of one more such layer"
            message = f"{type(model).__name__} {what} cannot be built"
            raise UnsupportedModelError(message, slug="unsupported_block")
        config, place = _config_of_head(spec, model.config, len(layers))
        self.layer = self._part(type(layers[-1])(config, place))
        self._cache_name = name_of_cache(self.layer)
        types = getattr(config, "layer_types", None)
        kind = types[place] if types else "full_attention"
        # The rotary parameters may be one table for each kind of layer.
        rope = getattr(config, "rope_parameters", None) or {}
        is_nested = any(isinstance(value, dict) for value in rope.values())
        self._rope_options = {"layer_type": kind} if is_nested else {}
        # Width of its sliding attention, or None where it sees all.
        self.window: int | None = config.sliding_window if kind == "sliding_attention" else None
        attention = getattr(self.layer, "self_attn", None)
        self._is_indexed = getattr(attention, "indexer", None) is not None
        # The target's own, without weights of its own; outside of this module's parameters.
        self._shared = (rotary,)

    @staticmethod
    def _part(layer: nn.Module) -> nn.Module:
        """Return what of a layer of the target is the block."""
        return layer

    @classmethod
    def read_sizes(cls, source: Source) -> Sizes:
        """See `HeadBlock.read_sizes`; the target knows them, whatever a release calls them."""
        if source.target is None:
            return Sizes.from_table(source.config)
        norm = final_norm(source.target.get_decoder())
        # Widths are those of the file: by them another target is known.
        known = {name: source.config[name] for name in _WIDTHS if name in source.config}
        for name in ("variance_epsilon", "eps"):
            if isinstance(eps := getattr(norm, name, None), float):
                known["norm_eps"] = eps
        return dataclasses.replace(Sizes.of(source.target.config), **known)

    @classmethod
    def from_checkpoint(
        cls, spec: HeadSpec, target: Any, tensors: Mapping[str, torch.Tensor]
    ) -> Converted:
        """See `HeadBlock.from_checkpoint`."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        layer = cls._empty(spec, target).layer
        holder = _Holder(target, layer, cls.place)
        known = getattr(target, "_weight_conversions", None)
        options = LoadStateDictConfig(weight_mapping=known or get_model_conversion_mapping(target))
        state = {holder.prefix + name: tensor for name, tensor in tensors.items()}
        with _no_progress_bar():
            info, _ = convert_and_load_state_dict_in_model(holder, state, options)
        if info.conversion_errors or info.error_msgs:
            what = [*map(str, info.conversion_errors.values()), *info.error_msgs][0]
            message = f"transformers cannot convert the block of the head: {what[:300]}"
            raise UnsupportedModelError(message, slug="bad_tensors")

        unknown = (name.removeprefix(holder.prefix) for name in info.unexpected_keys)
        wrong = (
            f"{name.removeprefix(holder.prefix)} {list(one)} for {list(two)}"
            for name, one, two in sorted(info.mismatched_keys)
        )
        found = {name: tensor for name, tensor in layer.state_dict().items() if not tensor.is_meta}
        return Converted(found, tuple(sorted(unknown)), tuple(wrong))

    @classmethod
    def to_checkpoint(
        cls, spec: HeadSpec, target: Any, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """See `HeadBlock.to_checkpoint`."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import revert_weight_conversion

        holder = _Holder(target, cls._empty(spec, target).layer, cls.place)
        holder._weight_conversions = get_model_conversion_mapping(target, add_legacy=False)
        state = {holder.prefix + name: tensor for name, tensor in tensors.items()}
        found = revert_weight_conversion(holder, state)
        start = re.compile(rf"^(?:.*?\.)?layers\.{re.escape(cls.place)}")
        return {start.sub("", name, count=1): tensor for name, tensor in found.items()}

    @classmethod
    def _empty(cls, spec: HeadSpec, target: Any) -> TargetBlock:
        """Return a block whose parameters have shapes and no memory."""
        with torch.device("meta"):
            return cls(spec, 0, target)

    def new_layer(self) -> GrowingLayer:
        """See `HeadBlock.new_layer`."""
        return IndexedLayer() if self._is_indexed else GrowingLayer()

    def forward(self, x: torch.Tensor, inputs: BlockInputs) -> torch.Tensor:
        """See `HeadBlock.forward`; the layer has its own input norm and residual stream."""
        if not inputs.segments:
            return self._run(x, inputs.positions, inputs.mask, None)
        counts, places = [own.num_rows for own in inputs.segments], cast("Any", inputs.positions)
        parts = zip(
            inputs.segments,
            torch.split(x, counts, dim=1),
            torch.split(places, counts, dim=1),
            strict=True,
        )
        found = [
            self._run(rows, own, segment.mask, segment.layers[inputs.block])
            for segment, rows, own in parts
        ]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def _run(
        self,
        x: torch.Tensor,
        positions: torch.Tensor | None,
        mask: torch.Tensor | None,
        layer: GrowingLayer | None,
    ) -> torch.Tensor:
        """Run the library's code, which knows of one cache, on rows that share it."""
        if mask is None and self._is_indexed:
            # It picks among the keys that a mask shows.
            past = 0 if layer is None else layer.get_seq_length()
            mask = x.new_zeros((1, 1, x.shape[1], past + x.shape[1]))
        output = self.layer(
            x,
            attention_mask=additive(mask, x),
            position_ids=positions,
            position_embeddings=self._shared[0](x, position_ids=positions, **self._rope_options),
            use_cache=layer is not None,
            **{self._cache_name: None if layer is None else as_cache(layer)},
        )
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result


def layers_of(target: Any | None) -> tuple[Any, nn.ModuleList]:
    """Return the target and its layers.

    ParamsError: no target. UnsupportedModelError: it does not show its layers.
    """
    if target is None:
        message = "a block of the target's own kind of layer needs the target"
        raise ParamsError(message, slug="head_needs_target")
    layers = getattr(target.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        what = "does not show its layers, so a head made of one more such layer cannot be built"
        message = f"{type(target).__name__} {what}"
        raise UnsupportedModelError(message, slug="unsupported_block")
    return target, layers


def name_of_cache(layer: nn.Module) -> str:
    """Return what a layer calls its cache; UnsupportedModelError if it takes none."""
    name = cache_name(layer.forward)
    if name is None:
        message = f"{type(layer).__name__} takes no cache, so a head cannot be made of it"
        raise UnsupportedModelError(message, slug="unsupported_block")
    return name


def additive(mask: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    """Return a mask as floats, the one form that eager and SDPA attention both take."""
    if mask is None or mask.dtype is not torch.bool:
        return mask
    shown = torch.zeros(mask.shape, dtype=x.dtype, device=x.device)
    return shown.masked_fill_(~mask, torch.finfo(x.dtype).min)


class _Holder(nn.Module):
    """A block, in the place of the target's layers: where transformers' patterns look for it."""

    def __init__(self, model: Any, layer: nn.Module, within: str) -> None:
        super().__init__()
        self.base_model_prefix = model.base_model_prefix
        self.config = model.config
        layers = model.get_decoder().layers
        path = next(name for name, module in model.named_modules() if module is layers)
        self.prefix = f"{path}.{within}"
        path = self.prefix.removesuffix(".")
        *above, last = path.split(".")
        place: nn.Module = self
        for part in above:
            place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        place.add_module(last, layer)


def _config_of_head(spec: HeadSpec, config: Any, num_layers: int) -> tuple[Any, int]:
    """Return the configuration and layer number from which the target's class builds the block.

    The block is like a layer that the target has, so that whatever a configuration says layer by
    layer (numbers of heads, rotary parameters) is said of it too.
    """
    text = copy.deepcopy(config.get_text_config(decoder=True))
    attention, mlp = (
        _only_kind(text, name) or kind
        for name, kind in (
            ("mtp_layer_types", spec.layer_attention),
            ("mtp_mlp_layer_types", spec.layer_mlp),
        )
    )
    place = 0 if spec.layer_like == "first" else num_layers - 1
    types, mlps = (list(getattr(text, name, None) or ()) for name in _KINDS)
    if types and (attention or spec.layer_like == "last"):
        wanted = attention or "full_attention"
        alike = [number for number, kind in enumerate(types) if kind == wanted]
        if not alike and attention:
            message = f"layer_types: found {types}, wanted {wanted}, which the head's block has"
            raise UnsupportedModelError(message, slug="unsupported_block")
        exact = [number for number in alike if mlps and mlps[number] == mlp]
        place = [place, *alike, *exact][-1]
    changes = {"mlp_layer_types": mlp, "indexer_types": "full", **dict.fromkeys(_LIMITS, 0.0)}
    for name, value in changes.items():
        values = getattr(text, name, None)
        if values and value != "":
            setattr(text, name, [*values[:place], value, *values[place + 1 :]])
    return text, place


def _only_kind(text: Any, name: str) -> str:
    """Return the kind that a configuration gives all modules, or "" where it gives none."""
    kinds = set(getattr(text, name, None) or ())
    if len(kinds) > 1:
        message = f"{name}: found {sorted(kinds)}, wanted one kind for all modules"
        raise UnsupportedModelError(message, slug="unsupported_block")
    return kinds.pop() if kinds else ""


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Hide transformers' progress bar, one for each conversion."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
