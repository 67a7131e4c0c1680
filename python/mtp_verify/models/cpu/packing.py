"""Prepacked weights for the narrow products of speculative decoding on a CPU.

In bfloat16, torch multiplies by a matrix as it lies in memory for one row at a time, and brings it
into its kernel's layout anew at each call for more rows, such as those of a draft: with AVX-512
five rows cost 1.7 times as much as one, and 1.2 times with prepacked weights. The operators are
those that `torch.compile` uses with frozen weights.
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Product", "can_prepack", "is_prepacked", "multiply", "prepack", "prepacked_copy"]

_WIDEST = 64  # rows; from about there on the layout is a small part of a product
_PACKED_FOR = 8  # rows that the layout is chosen for
# Columns: the sums of a single longer row are put together from parts, and round otherwise than
# those of a row among others. Four rows take the time of one, two take more.
_LONGEST_ALONE = 1024


class Product:
    """rows @ weight.T + bias; of 2 to 64 rows by a prepacked copy of the weights.

    Inference only: where gradients are wanted, or rows have another dtype than the weights
    (autocast), torch's own product is taken. Weights that change later are not seen. Results differ
    from torch's own by rounding, as those of other widths do.

    Args:
        weight: (m, d).
        bias: (m,), or None.
        packed: the copy, if there is one of this weight already.

    Example:
        >>> Product(torch.eye(2))(torch.tensor([[3.0, 4.0]])).tolist()
        [[3.0, 4.0]]
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        packed: torch.Tensor | None = None,
    ) -> None:
        self.weight, self.bias = weight, bias
        self.packed = prepacked_copy(weight) if packed is None else packed

    def __reduce__(self) -> tuple[type[Product], tuple[torch.Tensor, torch.Tensor | None]]:
        """Pack the weights anew in copies and pickles: the packed form cannot be copied."""
        return Product, (self.weight, self.bias)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply rows (..., d): (..., m)."""
        weight = self.weight
        count = rows.numel() // rows.shape[-1]
        wants_gradients = torch.is_grad_enabled() and (weight.requires_grad or rows.requires_grad)
        is_narrow = 1 < count <= _WIDEST and rows.dtype == weight.dtype
        if self.packed is None or wants_gradients or not is_narrow:
            return nn.functional.linear(rows, weight, self.bias)
        return multiply(rows, self.packed, self.bias)


def prepacked_copy(weight: torch.Tensor) -> torch.Tensor | None:
    """Return a copy of a weight (m, d) for `multiply`; None where the CPU has no kernels for it."""
    if not _has_kernels(weight):
        return None
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _PACKED_FOR)
    return packed


def multiply(rows: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply rows (..., n, d) by a prepacked weight and add a bias (m,): (..., n, m).

    A row's result has the same bits, however many rows it comes with.
    """
    width = rows.shape[-1]
    is_odd = rows.numel() == width > _LONGEST_ALONE
    given = rows.expand(*rows.shape[:-2], 4, width) if is_odd else rows
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(given, packed, bias, "none", [], "")
    return result[..., :1, :] if is_odd else result


def can_prepack(model: nn.Module) -> bool:
    """Return whether weights of this model can be prepacked: bfloat16, on a CPU that has it."""
    return _has_kernels(next(model.parameters()))


def is_prepacked(model: nn.Module) -> bool:
    """Return whether `prepack` has changed this model: its wider forwards take less time then."""
    return any(type(layer) is nn.Linear and "forward" in vars(layer) for layer in model.modules())


def prepack(model: nn.Module) -> int:
    """Let every linear layer keep a second copy of its weights, as a `Product`.

    Args:
        model: in evaluation mode, a target or a draft head; its linear layers change.

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
            place = layer.weight.data_ptr()
            product = Product(layer.weight, layer.bias, copies.get(place))
            if product.packed is None:  # of another dtype than the first: left as it is
                continue
            if place not in copies:
                copies[place] = product.packed
                size += layer.weight.nbytes
            layer.forward = product  # type: ignore[assignment, method-assign]
    return size


def _has_kernels(weight: torch.Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch._C._has_mkldnn
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
