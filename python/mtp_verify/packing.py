"""Weights laid out once for the narrow products of speculative decoding on a CPU.

In bfloat16, torch multiplies by a matrix as it lies in memory for one row at a time, and brings it
into its kernel's layout anew at each call for more rows. A forward over a draft has a few rows, so
that it pays for this in every layer: on a CPU with AVX-512 five rows cost 1.7 times as much as one,
and 1.2 times with weights that were laid out beforehand. The operators are those that
`torch.compile` uses with frozen weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["can_prepack", "is_prepacked", "prepack"]

_WIDEST = 64  # rows; from about there on the layout is a small part of a product
_LAID_OUT_FOR = 8  # rows that the layout is chosen for


def can_prepack(model: nn.Module) -> bool:
    """Whether weights of this model can be laid out beforehand: bfloat16, on a CPU that has it."""
    weight = next(model.parameters())
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch._C._has_mkldnn
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def is_prepacked(model: nn.Module) -> bool:
    """Whether `prepack` has changed this model: its wider forwards take less time then."""
    return any(type(layer) is nn.Linear and "forward" in vars(layer) for layer in model.modules())


def prepack(model: nn.Module) -> int:
    """Let every linear layer keep a second copy of its weights for products of 2 to 64 rows.

    Inference only: a forward that needs gradients takes the ordinary way, and weights that change
    later are not seen. Results differ from torch's own by rounding, as those of other widths do.

    Args:
        model: in evaluation mode; its linear layers get another `forward`.

    Returns:
        Bytes of the weights that were copied; 0, and nothing changed, where `can_prepack` is false.

    Example:
        >>> prepack(nn.Linear(4, 4))  # float32: nothing to do
        0
    """
    if not can_prepack(model):
        return 0
    # Of tied layers one copy: they are the same parameter.
    copies: dict[int, torch.Tensor] = {}
    size = 0
    for layer in model.modules():
        if type(layer) is nn.Linear:
            weight = layer.weight.detach()
            packed = copies.get(weight.data_ptr())
            if packed is None:
                packed = torch.ops.mkldnn._reorder_linear_weight(weight, _LAID_OUT_FOR)
                copies[weight.data_ptr()] = packed
                size += weight.nbytes
            layer.forward = _narrow(layer, packed)  # type: ignore[assignment, method-assign]
    return size


def _narrow(layer: nn.Linear, packed: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    bias: Any = layer.bias

    def forward(rows: torch.Tensor) -> torch.Tensor:
        count = rows.numel() // rows.shape[-1]
        if not 1 < count <= _WIDEST or (torch.is_grad_enabled() and layer.weight.requires_grad):
            return nn.functional.linear(rows, layer.weight, bias)
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, packed, bias, "none", [], ""
        )
        return result

    return forward
