"""Weights of a target's own kind of layer, between a checkpoint's names and the module's.

A module may hold in one tensor what the checkpoint keeps apart (the experts of a layer, say). How
the two relate is known to transformers, per architecture; its own conversion is used here, on one
layer.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mtp_verify.errors import UnsupportedModelError
from mtp_verify.heads.blocks import TargetBlock

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Converted", "from_checkpoint", "to_checkpoint"]


_LAYER = re.compile(r"^(?:.*?\.)?layers\.0\.")


@dataclass(frozen=True)
class Converted:
    """A layer's tensors by the module's names, and what did not fit into it."""

    tensors: dict[str, torch.Tensor]
    unknown: tuple[str, ...]
    wrong: tuple[str, ...]


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


def from_checkpoint(model: Any, tensors: Mapping[str, torch.Tensor]) -> Converted:
    """A layer's tensors under the names of the target's layer class.

    Args:
        model: the target.
        tensors: by their names behind the layer's prefix in the checkpoint.

    Raises:
        UnsupportedModelError: transformers cannot convert them.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    with torch.device("meta"):
        layer = TargetBlock(model).layer
    holder = _Holder(model, layer)
    mapping = getattr(model, "_weight_conversions", None) or get_model_conversion_mapping(model)
    options = LoadStateDictConfig(weight_mapping=mapping)
    state = {holder.prefix + name: tensor for name, tensor in tensors.items()}
    with _quiet():
        info, _ = convert_and_load_state_dict_in_model(holder, state, options)
    if info.conversion_errors or info.error_msgs:
        what = [*map(str, info.conversion_errors.values()), *info.error_msgs][0]
        msg = f"transformers cannot convert the block of the head: {what[:300]}"
        raise UnsupportedModelError(msg, slug="bad_tensors")

    def short(name: str) -> str:
        return name.removeprefix(holder.prefix)

    found = {name: tensor for name, tensor in layer.state_dict().items() if not tensor.is_meta}
    wrong = tuple(
        f"{short(name)} {list(one)} for {list(two)}"
        for name, one, two in sorted(info.mismatched_keys)
    )
    return Converted(found, tuple(sorted(map(short, info.unexpected_keys))), wrong)


def to_checkpoint(model: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The opposite: a layer's tensors under their names in a checkpoint of the target's kind."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import revert_weight_conversion

    with torch.device("meta"):
        layer = TargetBlock(model).layer
    holder = _Holder(model, layer)
    holder._weight_conversions = get_model_conversion_mapping(model, add_legacy=False)
    state = {holder.prefix + name: tensor for name, tensor in tensors.items()}
    found = revert_weight_conversion(holder, state)
    return {_LAYER.sub("", name, count=1): tensor for name, tensor in found.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Transformers shows a progress bar for each conversion."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
