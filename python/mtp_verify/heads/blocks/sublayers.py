"""A block of several layers of its target: what one step of a hybrid target is made of.

A layer of Nemotron-H holds attention alone, or experts alone; a step of its module is one of each.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import nn

from mtp_verify.errors import UnsupportedModelError
from mtp_verify.heads.blocks.base import HeadBlock
from mtp_verify.heads.blocks.target import (
    TargetBlock,
    additive,
    as_cache,
    layers_of,
    name_of_cache,
)  # fmt: skip

if TYPE_CHECKING:
    import torch

    from mtp_verify.caches.dynamic import GrowingLayer
    from mtp_verify.heads.spec import HeadSpec

__all__ = ["SublayersBlock"]

_ATTENTION, _REST = "full_attention", ("moe", "mlp")


class SublayersBlock(TargetBlock):
    """Layers of the kinds that `mtp_layers_block_type` names, one of them full attention."""

    kind = "sublayers"
    place = ""

    def __init__(self, spec: HeadSpec, index: int = 0, target: Any | None = None) -> None:
        HeadBlock.__init__(self, spec, index, target)
        model, layers = layers_of(target)
        config = copy.deepcopy(model.config.get_text_config(decoder=True))
        kinds = list(getattr(config, "mtp_layers_block_type", None) or ())
        there = list(getattr(config, "layer_types", None) or ())
        is_sound = kinds.count(_ATTENTION) == 1 and {*kinds} - {_ATTENTION} <= {*_REST}
        if not is_sound or not {*kinds} <= {*there}:
            wanted = "layers that the target has, one of full attention and no recurrent ones"
            message = f"mtp_layers_block_type: found {kinds}, wanted {wanted}"
            raise UnsupportedModelError(message, slug="unsupported_block")
        made = type(layers[-1])
        parts = [made(config, there.index(kind)) for kind in kinds]
        self.layer = nn.ModuleList(parts)
        self._cache_name = name_of_cache(parts[0])
        self._is_indexed, self.window = False, None

    def _run(
        self,
        x: torch.Tensor,
        positions: torch.Tensor | None,
        mask: torch.Tensor | None,
        layer: GrowingLayer | None,
    ) -> torch.Tensor:
        """See `TargetBlock._run`; each layer has its own norm and residual stream."""
        mask = additive(mask, x)
        cache = {self._cache_name: None if layer is None else as_cache(layer)}
        for part in self.layer.children():
            x = part(x, attention_mask=mask, position_ids=positions, **cache)
        return x
