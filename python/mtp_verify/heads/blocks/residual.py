"""Medusa's block, which sees its own position alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from mtp_verify.errors import ParamsError
from mtp_verify.heads.blocks.base import BlockInputs, HeadBlock
from mtp_verify.heads.spec import HeadSpec, Sizes

if TYPE_CHECKING:
    from mtp_verify.heads.io.recognise import Source

__all__ = ["Conditioned", "ResidualBlock"]


class Conditioned(nn.Module):
    """R x + silu(A x) from `inputs` columns to `width`: a residual block that tokens condition."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)
        self.res_connection = nn.Linear(inputs, width)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it on (B, n, inputs); return (B, n, width)."""
        output: torch.Tensor = self.res_connection(x) + functional.silu(self.linear(x))
        return output


class ResidualBlock(HeadBlock):
    """x + silu(A x + b) (arXiv 2401.10774); with A = 0 and b = 0 it passes x on."""

    kind = "residual"
    attends = uses_rotary = False
    sign = "linear.weight"
    has_optional_biases = True  # vLLM's Medusa heads may lack them

    def __init__(self, spec: HeadSpec, index: int = 0, target: Any | None = None) -> None:
        super().__init__(spec, index, target)
        width = spec.known_sizes.hidden_size
        self.linear = nn.Linear(width, width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @classmethod
    def read_sizes(cls, source: Source) -> Sizes:
        """See `HeadBlock.read_sizes`: shapes say what a configuration leaves out."""
        if source.spec.prefix:
            if source.target is None:
                what = "the prefix layer of the head has the target's numbers of attention heads"
                message = f"{source.folder}: {what}; give the target: mv.heads.load(path, target)"
                raise ParamsError(message, slug="head_needs_target")
            return Sizes.of(source.target.config)
        config = dict(source.config)
        tensors = {
            "hidden_size": ("layers.0.linear.weight", "fusion.linear.weight"),
            "vocab_size": ("output.weight",),
        }
        for key, names in tensors.items():
            shapes = [source.shape(f"levels.0.{name}") for name in names]
            config.setdefault(key, next((shape[0] for shape in shapes if shape), None))
        if config["vocab_size"] is None and source.target is not None:
            config["vocab_size"] = source.target.config.get_text_config(decoder=True).vocab_size
        return Sizes.from_table(config, head_dim=0, intermediate_size=0)

    def forward(self, x: torch.Tensor, inputs: BlockInputs) -> torch.Tensor:
        """See `HeadBlock.forward`."""
        del inputs
        return x + functional.silu(self.linear(x))
