"""The drafter's rows: probabilities or logits, over all tokens or a sub-vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from mtp_verify.verifier.kernels.device.layout import (
    BLOCK,
    NOT_FINITE,
    NOT_NORMALISED,
    Drafted,
    Edited,
)
from mtp_verify.verifier.kernels.device.torch_.rows import Logits, Shaped
from mtp_verify.verifier.kernels.device.torch_.shaping import shape
from mtp_verify.verifier.kernels.device.torch_.weights import block_sums, fold

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from mtp_verify.verifier.kernels.device.layout import Step
    from mtp_verify.verifier.kernels.device.torch_.trees import Trees
    from mtp_verify.verifier.kernels.device.torch_.workspace import Workspace

__all__ = ["Drafter", "rests", "sums_without"]

# How far a row of probabilities may be from summing to 1; the core checks the one after the root.
_SUM_TOLERANCE = 1e-2


class Drafter(NamedTuple):
    """Q rows of the drafter as weights: a probability is a weight over its row's total.

    Attributes:
        drafted: The rows.
        logits: The same as logits to be shaped, None for probabilities.
        shaped: How, None for probabilities.
        sums: (Q, blocks) wide, of blocks of columns.
        total: (Q,) wide.
        status: (Q,) int32, bits of the layout.
        is_off: (Q,) bool, whether probabilities sum to something else than about 1.
    """

    drafted: Drafted
    logits: Logits | None
    shaped: Shaped | None
    sums: Tensor
    total: Tensor
    status: Tensor
    is_off: Tensor

    @classmethod
    def of(cls, step: Step, workspace: Workspace) -> Drafter | None:
        """Read the drafter's rows of a step, if it has any."""
        drafted = step.drafted
        if drafted is None:
            return None
        rows, shaping, _, place = drafted
        if shaping is None:
            return cls._of_probabilities(drafted, workspace)
        place = torch.arange(len(rows), device=rows.device) if place is None else place.long()
        logits = Logits(rows, place, shaping, Edited())
        shaped = shape(logits, truncates=step.truncates, workspace=workspace)
        is_off = torch.zeros_like(shaped.status, dtype=torch.bool)
        return cls(drafted, logits, shaped, shaped.sums, shaped.total, shaped.status, is_off)

    @classmethod
    def _of_probabilities(cls, drafted: Drafted, workspace: Workspace) -> Drafter:
        rows, wide = drafted.rows, workspace.wide
        sums, statuses = [], []
        for part in workspace.parts(*rows.shape):
            values = rows[part].to(wide)
            is_number = ((values >= 0) & (values < torch.inf)).all(1)
            statuses.append(torch.where(is_number, 0, NOT_FINITE))
            # What is no distribution goes on as zeros, with a total of 1.
            sums.append(block_sums(torch.where(is_number[:, None], values, 0.0)))
        status, total = torch.cat(statuses), fold(torch.cat(sums))
        is_nothing = total <= 0
        status = torch.where((status == 0) & is_nothing, NOT_NORMALISED, status).to(torch.int32)
        return cls(
            drafted,
            logits=None,
            shaped=None,
            sums=torch.cat(sums),
            total=torch.where(is_nothing, 1.0, total),
            status=status,
            is_off=(total - 1).abs() > _SUM_TOLERANCE,
        )

    def at(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Return the weights (n, k), wide, of tokens (n, k) in rows (n,)."""
        column = self._column(tokens)
        weights = self.at_columns(rows, column.clamp(min=0))
        return torch.where(column >= 0, weights, 0.0)

    def at_columns(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the weights (n, k), wide, of columns (n, k) in rows (n,)."""
        if self.logits is None or self.shaped is None:
            return self.drafted.rows[rows[:, None], columns].to(self.total.dtype)
        return self.shaped.weights(rows, self.logits.scaled_at(rows, columns), columns)

    def whole(self, rows: Tensor) -> Tensor:
        """Return the weights (n, V), wide, of all tokens in rows (n,)."""
        if self.logits is None or self.shaped is None:
            weights = self.drafted.rows.index_select(0, rows).to(self.total.dtype)
        else:
            columns = torch.arange(self.logits.rows.shape[1], device=rows.device)
            y = self.logits.whole(rows) / self.logits.divisor(rows)
            weights = self.shaped.weights(rows, y, columns)
        column = self.drafted.column
        if column is None:
            return weights
        return torch.where(column >= 0, weights.index_select(1, column.clamp(min=0)), 0.0)

    def columns(self, tokens: Tensor, is_token: Tensor) -> Tensor:
        """Return the columns of some tokens, -1 for what is none."""
        return torch.where(is_token, self._column(tokens), -1)

    def _column(self, tokens: Tensor) -> Tensor:
        column = self.drafted.column
        return tokens if column is None else column[tokens].long()


def sums_without(
    sums: Tensor, width: int, places: Tensor, weights_of: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the sums of the blocks of rows without some of their places.

    Blocks that hold none of them keep their sums; the others are summed again, with zeros there.

    Args:
        sums: (n, blocks) wide.
        width: Values of a row.
        places: (n, m) int64 of distinct values, -1 for none.
        weights_of: From places (n, k) in rows to their weights, wide.
    """
    size = min(BLOCK, width)
    inside = torch.arange(size, device=sums.device)
    own_block = places.div(BLOCK, rounding_mode="floor")  # -1 for none
    for block in own_block.unbind(1):
        start = block.clamp(min=0)[:, None] * BLOCK
        at = start + inside
        # Places of other blocks are written behind this one.
        is_here = (own_block == block[:, None]) & (places >= 0)
        spare = torch.where(is_here, places - start, size)
        is_out = places.new_zeros((len(places), size + 1), dtype=torch.bool)
        is_out = is_out.scatter(1, spare, value=True)[:, :size] | (at >= width)
        weights = torch.where(is_out, 0.0, weights_of(at.clamp(max=width - 1)))
        again = block_sums(weights)
        known = sums.gather(1, block.clamp(min=0)[:, None])
        again = torch.where(block[:, None] >= 0, again, known)
        sums = sums.scatter(1, block.clamp(min=0)[:, None], again)
    return sums


def rests(trees: Trees, drafter: Drafter, row: Tensor) -> Tensor:
    """Return the mass of q outside of what a sampled child could not be: (R,), wide.

    That is the deterministic set, and its earlier siblings where draws do not repeat. The mass is
    summed over the columns of q that are left: it is never 1 minus what is taken.

    Args:
        trees: Whose children.
        drafter: Its rows.
        row: (R,) int64, the drafter's row of each node's parent.
    """
    parent = trees.parent
    siblings, is_child = trees.children[parent], trees.is_child[parent]
    tokens, sampled = trees.token[siblings], trees.sampled[siblings]
    places = torch.arange(siblings.shape[1], device=parent.device)
    is_earlier = sampled & trees.without[:, None] & (places < trees.place[:, None])
    is_set = ~sampled & trees.has_set[:, None]
    is_out = is_child & (is_earlier | is_set)
    sums = sums_without(
        drafter.sums[row],
        drafter.drafted.rows.shape[1],
        drafter.columns(tokens, is_out),
        lambda columns: drafter.at_columns(row, columns),
    )
    return torch.where(is_out.any(1), fold(sums) / drafter.total[row], 1.0)
