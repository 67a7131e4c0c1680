"""What the target has left at each node: `max(p - b q [not in S], 0) [not removed]`, in weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from mtp_verify.verifier.kernels.device.torch_.arithmetic import fused_subtract
from mtp_verify.verifier.kernels.device.torch_.weights import block_sums

if TYPE_CHECKING:
    from torch import Tensor

    from mtp_verify.verifier.kernels.device.torch_.drafter import Drafter
    from mtp_verify.verifier.kernels.device.torch_.rows import Logits, Shaped
    from mtp_verify.verifier.kernels.device.torch_.trees import Trees
    from mtp_verify.verifier.kernels.device.torch_.workspace import Workspace

__all__ = ["Rows"]


class Rows(NamedTuple):
    """The rows after R nodes, of target and drafter.

    Attributes:
        trees: The nodes.
        logits: The target's.
        target: The same, shaped.
        drafter: The drafter's, or None.
        drafted: (R,) int64, the drafter's row of each node's children; 0 where there is none.
    """

    trees: Trees
    logits: Logits
    target: Shaped
    drafter: Drafter | None
    drafted: Tensor

    @property
    def vocab(self) -> int:
        """V."""
        return self.logits.rows.shape[1]

    def at(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Return the target's weights (n, k), wide, of tokens (n, k) after nodes (n,)."""
        return self.target.weights(rows, self.logits.scaled_at(rows, tokens), tokens)

    def left_at(self, rows: Tensor, tokens: Tensor, b: Tensor, gone: Tensor) -> Tensor:
        """Return what is left (n, k), wide, of tokens (n, k) after nodes (n,).

        Args:
            rows: Which nodes.
            tokens: Which tokens.
            b: (R,) wide, how much of q is taken off p.
            gone: (R,) bool, of each node: whether its token is removed after its parent.
        """
        taken = None if self.drafter is None else self.drafter.at(self.drafted[rows], tokens)
        return self._left(rows, tokens, self.at(rows, tokens), taken, b, gone)

    def left_sums(self, b: Tensor, gone: Tensor, workspace: Workspace) -> Tensor:
        """Return the sums (R, blocks), wide, of what is left after all nodes."""
        tokens = torch.arange(self.vocab, device=b.device)
        sums = []
        for part in workspace.parts(len(b), self.vocab):
            y = self.logits.whole(part) / self.logits.divisor(part)
            whole = self.target.weights(part, y, tokens)
            taken = None
            if self.drafter is not None:
                taken = self.drafter.whole(self.drafted[part])
            sums.append(block_sums(self._left(part, tokens, whole, taken, b, gone)))
        return torch.cat(sums)

    def _left(
        self,
        rows: Tensor | slice,
        tokens: Tensor,
        whole: Tensor,
        taken: Tensor | None,
        b: Tensor,
        gone: Tensor,
    ) -> Tensor:
        trees = self.trees
        is_child = trees.is_child[rows]
        children = trees.children[rows]
        own = trees.token[children]
        left = whole
        if taken is not None and self.drafter is not None:
            in_set = is_child & ~trees.sampled[children] & trees.has_set[rows, None]
            is_taken = (b[rows, None] > 0) & ~_holds(own, in_set, tokens)
            ratio = self.target.total[rows] / self.drafter.total[self.drafted[rows]]
            factor = (b[rows] * ratio)[:, None]
            left = fused_subtract(whole, factor, torch.where(is_taken, taken, 0.0))
            left = torch.where(left > 0, left, 0.0)
        return torch.where(_holds(own, is_child & gone[children], tokens), 0.0, left)


def _holds(listed: Tensor, is_listed: Tensor, tokens: Tensor) -> Tensor:
    """Return whether tokens (k,) or (n, k) are among the listed ones (n, m)."""
    found = torch.zeros_like(listed[:, :1], dtype=torch.bool)
    for token, is_one in zip(listed.unbind(1), is_listed.unbind(1), strict=True):
        found = found | (is_one[:, None] & (tokens == token[:, None]))
    return found
