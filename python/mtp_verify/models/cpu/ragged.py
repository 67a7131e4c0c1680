"""Forwards over drafts of different sizes: products over their rows alone, attention in runs.

Rows that only fill a batch up cost as much as others in a product. They are left out there: what is
B sequences of W rows for the cache is R rows, one after the other, for the products. Attention goes
over the roots of all sequences at once, and over the drafts of neighbours that have some.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from mtp_verify.models.cpu.attention import GroupedMask, attend

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Ragged"]


@dataclass(frozen=True)
class _Run:
    """Neighbouring sequences whose drafts attend together."""

    slots: slice
    width: int  # rows of the largest draft
    mask: GroupedMask


class Ragged:
    """Where the rows of drafts lie in a batch of `width`, and how they attend.

    Args:
        counts: (B,) rows of each sequence, from 1 to `width`: the first ones.
        width: W.
        mask: (B, 1, W, K), as `attend` takes it.
        group: queries that share a key.

    Example:
        >>> mask = torch.zeros(2, 1, 3, 3)
        >>> ragged = Ragged([1, 3], 3, mask, group=1)
        >>> ragged.gather(torch.arange(6).view(2, 3))
        tensor([[0, 3, 4, 5]])
    """

    def __init__(self, counts: Sequence[int], width: int, mask: torch.Tensor, group: int) -> None:
        self._shape = len(counts), width
        is_row = torch.arange(width) < torch.tensor(counts)[:, None]
        self._index = is_row.flatten().nonzero()[:, 0]  # (R,) of B * W
        self._roots = GroupedMask(mask[:, :, :1], group)
        self._runs: list[_Run] = []
        for has_draft, members in groupby(range(len(counts)), lambda slot: counts[slot] > 1):
            if has_draft:
                slots = list(members)
                most = max(counts[slot] for slot in slots)
                run = slice(slots[0], slots[-1] + 1)
                self._runs.append(_Run(run, most, GroupedMask(mask[run, :, :most], group)))

    def gather(self, padded: torch.Tensor) -> torch.Tensor:
        """Return the rows (1, R, ...) of (B, W, ...)."""
        return padded.flatten(0, 1).index_select(0, self._index)[None]

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (B, W, ...), zeros where no row of (1, R, ...) lies."""
        batch, width = self._shape
        padded = rows.new_zeros((batch * width, *rows.shape[2:]))
        return padded.index_copy_(0, self._index, rows[0]).view(batch, width, *rows.shape[2:])

    def attend(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Do as `attention.attend`; rows that only fill up stay 0."""
        roots = attend(queries[:, :, :1], keys, values, self._roots)
        seen = roots.new_zeros((*self._shape, roots.shape[-1]))
        seen[:, :1] = roots
        for run in self._runs:
            slots, rows = run.slots, slice(run.width)
            seen[slots, rows] = attend(
                queries[slots, :, rows], keys[slots], values[slots], run.mask
            )
        return seen
