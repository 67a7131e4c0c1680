"""Muon in a dtype of choice.

torch's own always rounds to bfloat16 on the way. On a CPU without bfloat16 units that takes twice
the time of float32, and it makes a run depend on the order of sums: two processes drift away from
one. On a CPU with them it takes a third of the time.

References:
    Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; momentum, decay
    and scale as in `torch.optim.Muon`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Muon"]

# Of the polynomial whose iteration drives every singular value towards 1.
_FIRST, _THIRD, _FIFTH = 3.4445, -4.7750, 2.0315
_EPS = 1e-7
_MOMENTUM = 0.95  # of the gradients' mean
_ITERATIONS = 4  # of Newton and Schulz


class Muon(torch.optim.Optimizer):
    """Steps along the momentum's nearest orthogonal matrix, for parameters of two dimensions.

    A matrix that is taller than wide steps further than `lr`; a step takes `weight_decay`, times
    `lr`, of each weight away. Products in the iteration are of `dtype`.
    """

    def __init__(
        self,
        matrices: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        del closure
        for group in self.param_groups:
            rate = group["lr"]
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["mean"] = torch.zeros_like(matrix.grad)
                mean = state["mean"].lerp_(matrix.grad, 1 - _MOMENTUM)
                rows, columns = matrix.shape
                matrix.mul_(1 - rate * group["weight_decay"])
                direction = _orthogonal(matrix.grad.lerp(mean, _MOMENTUM), self._dtype)
                matrix.sub_(direction, alpha=rate * max(1.0, rows / columns) ** 0.5)


def _orthogonal(matrix: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a matrix of the same singular vectors whose singular values are near 1."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = (x / x.norm().clamp(min=_EPS)).to(dtype)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_THIRD, alpha=_FIFTH), x, beta=_FIRST)
    return x.T if is_tall else x
