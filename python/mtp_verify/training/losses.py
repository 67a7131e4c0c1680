"""Losses of draft heads, row by row, and how levels are put together.

p is the target's distribution of a row, known through its most likely tokens; q is the head's. The
expected acceptance of a drafted token is the overlap, sum of min(p, q). The part of p outside the
draft vocabulary, or outside those tokens, counts as lost: an overlap is a lower bound.

References:
    DeepSeek-V3, arXiv 2412.19437 (weighted levels); EAGLE, arXiv 2401.15077 (features); KOALA,
    arXiv 2408.08146 (adversarial); LK losses, arXiv 2602.23881; Meta, arXiv 2404.19737 (memory).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "LOSSES", "Discriminator", "cross_entropy", "distillation", "feature_regression", "hybrid",
    "log_overlap", "mtp_loss", "overlap", "sequential_backward", "total_variation",
]  # fmt: skip

_FLOOR = 1e-5  # a smaller overlap counts as this: its logarithm stays finite


class _LogProbs(torch.autograd.Function):
    """A few log-probabilities of each row, with a gradient in two passes over the row.

    Autograd's own takes six, and three more tensors of the size of the logits: half of what a loss
    over a large vocabulary costs.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        every = torch.log_softmax(logits, 1, dtype=torch.float32)
        ctx.save_for_backward(every, ids)
        ctx.dtype = logits.dtype
        return every.gather(1, ids)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        every, ids = ctx.saved_tensors
        (grad,) = grads
        whole = every.exp().mul_(-grad.sum(1, keepdim=True)).scatter_add_(1, ids, grad)
        return whole.to(ctx.dtype), None


def _log_probs(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities (R, C) of the tokens at `ids`; those at -1 must be masked."""
    probs: torch.Tensor = _LogProbs.apply(logits, ids.clamp(min=0))
    return probs


def overlap(logits: torch.Tensor, ids: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """Return a lower bound of the expected acceptance (R,) of a sampled draft token.

    Args:
        logits: (R, D) of the head.
        ids: (R, C) places of the target's tokens in the draft vocabulary, -1 outside of it.
        probs: (R, C) of the target.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0]])
        >>> overlap(logits, torch.tensor([[0, -1]]), torch.tensor([[0.8, 0.2]]))
        tensor([0.5000])
    """
    least = torch.minimum(_log_probs(logits, ids).exp(), probs)
    return least.masked_fill(ids < 0, 0.0).sum(1)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return -log q (R,) of the text's own token; 0 outside the draft vocabulary."""
    return -_log_probs(logits, targets[:, None])[:, 0].masked_fill(targets < 0, 0.0)


def distillation(logits: torch.Tensor, ids: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """Return -sum p log q (R,); arguments as `overlap`."""
    return -(_log_probs(logits, ids) * probs.masked_fill(ids < 0, 0.0)).sum(1)


def total_variation(logits: torch.Tensor, ids: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """Return 1 - overlap (R,): the probability that a drafted token is rejected.

    Its gradient vanishes where q is far from p, so it is for heads that are trained already.
    """
    return 1 - overlap(logits, ids, probs)


def log_overlap(logits: torch.Tensor, ids: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """Return -log overlap (R,): the gradient of `total_variation`, divided by the overlap."""
    return -overlap(logits, ids, probs).clamp(min=_FLOOR).log()


def hybrid(
    logits: torch.Tensor, ids: torch.Tensor, probs: torch.Tensor, rate: float = 3.0
) -> torch.Tensor:
    """Return distillation where the overlap is small, total variation where it is large (R,)."""
    share = overlap(logits, ids, probs)
    weight = torch.exp(-rate * share.detach())
    return weight * distillation(logits, ids, probs) + (1 - weight) * (1 - share)


LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "distillation": distillation,
    "total-variation": total_variation,
    "log-overlap": log_overlap,
    "hybrid": hybrid,
}


def feature_regression(features: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Return EAGLE's smooth L1 distance (R,) of a head's output to the target's hidden state."""
    return functional.smooth_l1_loss(features.float(), hidden.float(), reduction="none").mean(1)


def mtp_loss(main: torch.Tensor, levels: Sequence[torch.Tensor], weight: float) -> torch.Tensor:
    """Return DeepSeek's sum: `main`, and the mean of the levels' losses times 0.3, later 0.1."""
    return main + weight * torch.stack(tuple(levels)).mean()


def sequential_backward(
    trunk: torch.Tensor, losses: Sequence[Callable[[torch.Tensor], torch.Tensor]]
) -> float:
    """Run backward of several heads over a trunk, with the logits of one head in memory at a time.

    `losses` are functions of the trunk's output (B, n, d) to a scalar, one for each head. Returns
    their sum; gradients are those of the sum's backward.
    """
    cut = trunk.detach().requires_grad_()
    total = 0.0
    for loss in losses:
        value = loss(cut)
        value.backward()  # type: ignore[no-untyped-call]
        total += float(value.detach())
    trunk.backward(cut.grad)  # type: ignore[no-untyped-call]
    return total


class Discriminator(nn.Module):
    """Distinguishes a target's hidden states from a head's, for KOALA's adversarial term.

    The paper does not give its layers; here they are d -> d -> 1.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logit (R,) that hidden states (R, d) are the target's."""
        logits: torch.Tensor = self.second(functional.silu(self.first(features)))
        return logits[:, 0]

    def own_loss(self, real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        """Return the discriminator's loss (R,); real rows have the label 0.9."""
        true, false = self(real.detach()), self(made.detach())
        label = torch.full_like(true, 0.9)
        loss = functional.binary_cross_entropy_with_logits(true, label, reduction="none")
        return loss + functional.softplus(false)

    def head_loss(self, made: torch.Tensor) -> torch.Tensor:
        """Return -log of the probability (R,) to count as the target's, for the head."""
        return functional.softplus(-self(made))
