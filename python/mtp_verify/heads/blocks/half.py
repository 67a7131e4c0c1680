"""A block of one half of its target's double layer.

A layer of LongCat-Flash holds two of attention and MLP each, and experts beside them; its module
has one of each, and no experts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from mtp_verify.errors import UnsupportedModelError
from mtp_verify.heads.blocks.target import TargetBlock

if TYPE_CHECKING:
    import torch

__all__ = ["HalfBlock"]


class _Half(nn.Module):
    """The first halves of a double layer, with a residual stream of their own."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.input_layernorm = layer.input_layernorm[0]
        self.self_attn = layer.self_attn[0]
        self.post_attention_layernorm = layer.post_attention_layernorm[0]
        self.mlp = layer.mlps[0]

    def forward(
        self, x: torch.Tensor, *, past_key_values: Any = None, **inputs: Any
    ) -> torch.Tensor:
        """Run the half as transformers runs a plain layer."""
        inputs["past_key_values"] = past_key_values
        x = x + self.self_attn(hidden_states=self.input_layernorm(x), **inputs)[0]
        output: torch.Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return output


class HalfBlock(TargetBlock):
    """One half of a layer of the target; UnsupportedModelError where layers are not double."""

    kind = "half"

    @staticmethod
    def _part(layer: nn.Module) -> nn.Module:
        doubled = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlps")
        if not all(isinstance(getattr(layer, part, None), nn.ModuleList) for part in doubled):
            message = f"{type(layer).__name__} is no double layer, of whose half a head is made"
            raise UnsupportedModelError(message, slug="unsupported_block")
        return _Half(layer)
