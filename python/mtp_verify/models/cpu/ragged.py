"""Rows of drafts of different sizes, one after the other instead of padded to the largest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Ragged"]


class Ragged:
    """Where the first `counts` (B,) rows of each sequence lie in a batch of `width`.

    Example:
        >>> ragged = Ragged([1, 3], 3)
        >>> ragged.gather(torch.arange(6).view(2, 3))
        tensor([[0, 3, 4, 5]])
    """

    def __init__(self, counts: Sequence[int], width: int) -> None:
        self._shape = len(counts), width
        self._index: torch.Tensor | None = None  # (R,) of B * width; None: all
        if min(counts) < width:
            is_row = torch.arange(width) < torch.tensor(counts)[:, None]
            self._index = is_row.flatten().nonzero()[:, 0]

    def gather(self, padded: torch.Tensor) -> torch.Tensor:
        """Return the rows (1, R, ...) of (B, width, ...)."""
        rows = padded.flatten(0, 1)
        return (rows if self._index is None else rows.index_select(0, self._index))[None]

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (B, width, ...), zeros where no row of (1, R, ...) lies."""
        batch, width = self._shape
        if self._index is None:
            return rows.view(batch, width, *rows.shape[2:])
        padded = rows.new_zeros((batch * width, *rows.shape[2:]))
        return padded.index_copy_(0, self._index, rows[0]).view(batch, width, *rows.shape[2:])
