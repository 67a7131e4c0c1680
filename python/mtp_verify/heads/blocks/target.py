"""A block of the target's own kind of layer (latent attention, experts, ...).

A module may hold in one tensor what the checkpoint keeps apart (the experts of a layer, say).
transformers knows for each architecture how the two relate; its conversion is used here, on one
layer.
"""

from __future__ import annotations

import contextlib
import copy
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from mtp_verify.caches.names import cache_name
from mtp_verify.errors import ParamsError, UnsupportedModelError
from mtp_verify.heads.blocks.base import BlockInputs, Converted, HeadBlock
from mtp_verify.heads.spec import HeadSpec, Sizes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mtp_verify.caches.dynamic import GrowingLayer
    from mtp_verify.heads.io.recognise import Source

__all__ = ["TargetBlock"]

_LAYER = re.compile(r"^(?:.*?\.)?layers\.0\.")


def _as_cache(layer: GrowingLayer) -> Any:
    """Return what a transformers layer uses of a cache: one layer, whatever index it asks for."""
    return SimpleNamespace(
        update=lambda keys, values, *_, **__: layer.update(keys, values),
        get_seq_length=lambda *_: layer.get_seq_length(),
    )


class TargetBlock(HeadBlock):
    """One more layer of the target's own kind; UnsupportedModelError where those are not found."""

    kind = "target"
    uses_rotary = False
    needs_target = True
    wrapper = "layer."

    def __init__(self, spec: HeadSpec, index: int = 0, target: Any | None = None) -> None:
        super().__init__(spec, index, target)
        if target is None:
            message = "a block of the target's own kind of layer needs the target"
            raise ParamsError(message, slug="head_needs_target")
        decoder = target.get_decoder()
        layers, rotary = (getattr(decoder, name, None) for name in ("layers", "rotary_emb"))
        if not isinstance(layers, nn.ModuleList) or not len(layers) or rotary is None:
            what = "does not show its layers and rotary embedding, so a head made of one more such"
            message = f"{type(target).__name__} {what} layer cannot be built"
            raise UnsupportedModelError(message, slug="unsupported_block")
        config, place = _config_of_head(target.config, len(layers))
        self.layer = type(layers[-1])(config, place)
        self._cache_name = cache_name(self.layer.forward)
        if self._cache_name is None:
            message = f"{type(self.layer).__name__} takes no cache, so a head cannot be made of it"
            raise UnsupportedModelError(message, slug="unsupported_block")
        types = getattr(config, "layer_types", None)
        kind = types[place] if types else "full_attention"
        # The rotary parameters may be one table for each kind of layer.
        rope = getattr(config, "rope_parameters", None) or {}
        is_nested = any(isinstance(value, dict) for value in rope.values())
        self._rope_options = {"layer_type": kind} if is_nested else {}
        # Width of its sliding attention, or None where it sees all.
        self.window: int | None = config.sliding_window if kind == "sliding_attention" else None
        # The target's own, without weights of its own; outside of this module's parameters.
        self._shared = (rotary,)

    @classmethod
    def read_sizes(cls, source: Source) -> Sizes:
        """See `HeadBlock.read_sizes`; the sliding window is the target's."""
        window = None if source.target is None else _empty(source.target).window
        return Sizes.from_table(source.config, window=window)

    @classmethod
    def from_checkpoint(cls, target: Any, tensors: Mapping[str, torch.Tensor]) -> Converted:
        """See `HeadBlock.from_checkpoint`."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        layer = _empty(target).layer
        holder = _Holder(target, layer)
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
        cls, target: Any, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """See `HeadBlock.to_checkpoint`."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import revert_weight_conversion

        layer = _empty(target).layer
        holder = _Holder(target, layer)
        holder._weight_conversions = get_model_conversion_mapping(target, add_legacy=False)
        state = {holder.prefix + name: tensor for name, tensor in tensors.items()}
        found = revert_weight_conversion(holder, state)
        return {_LAYER.sub("", name, count=1): tensor for name, tensor in found.items()}

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
        """Run the library's layer, which knows of one cache, on rows of one sequence or of many."""
        if mask is not None and mask.dtype is torch.bool:
            # Floats are the one form that eager and SDPA attention both take.
            mask = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill_(
                ~mask, torch.finfo(x.dtype).min
            )
        output = self.layer(
            x,
            attention_mask=mask,
            position_ids=positions,
            position_embeddings=self._shared[0](x, position_ids=positions, **self._rope_options),
            use_cache=layer is not None,
            **{self._cache_name or "": None if layer is None else _as_cache(layer)},
        )
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result


def _empty(target: Any) -> TargetBlock:
    """Return a block whose parameters have shapes and no memory."""
    with torch.device("meta"):
        return TargetBlock(HeadSpec("empty"), 0, target)


class _Holder(nn.Module):
    """One layer, at the place of the target's first: where transformers' patterns look for it."""

    def __init__(self, model: Any, layer: nn.Module) -> None:
        super().__init__()
        self.base_model_prefix = model.base_model_prefix
        self.config = model.config
        layers = model.get_decoder().layers
        path = next(name for name, module in model.named_modules() if module is layers)
        self.prefix = f"{path}.0."
        place: nn.Module = self
        for part in path.split("."):
            place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        place.add_module("0", layer)


def _config_of_head(config: Any, num_layers: int) -> tuple[Any, int]:
    """Return the configuration and layer number from which the target's class builds the block.

    Where lists give the kind of each layer, the head's are those for multi-token prediction, or
    the target's last layer of full attention.
    """
    text = copy.deepcopy(config.get_text_config(decoder=True))
    if getattr(text, "mtp_layer_types", None):
        text.layer_types = list(text.mtp_layer_types)
        if getattr(text, "mtp_mlp_layer_types", None):
            text.mlp_layer_types = list(text.mtp_mlp_layer_types)
        text.num_hidden_layers = len(text.layer_types)
        return text, 0
    types = getattr(text, "layer_types", None) or ()
    full = [place for place, kind in enumerate(types) if kind == "full_attention"]
    return text, full[-1] if full else num_layers - 1


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
