"""Batches: which sequences a step trains on, and their rows side by side.

The order is a function of seed, epoch and lengths alone, so a step's number is the whole position
in the data.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.training.shards import Text

__all__ = ["Batch", "collate", "plan_epoch"]

_POOL = 64  # sequences that are sorted by length together, so that little is padding


@dataclass(frozen=True)
class Batch:
    """Sequences side by side, filled up on the right with rows that count nothing."""

    hidden: tuple[torch.Tensor, ...]  # by hidden layer (B, n, d)
    tokens: torch.Tensor  # (B, n) int64, the token after each row; 0 where filled up
    top_ids: torch.Tensor  # (B, n, C) int64 places among what the head can draft, or -1
    top_probs: torch.Tensor  # (B, n, C) float32; zeros where filled up and within prompts
    targets: torch.Tensor  # (B, n) int64, `tokens` as such places, or -1
    lengths: torch.Tensor  # (B,) rows of each sequence
    extra: torch.Tensor  # (E,) int64, context tokens; their places follow the draft vocabulary
    known: torch.Tensor  # (B, n, E) whether a sequence has shown them up to a row's token
    vocab_size: int  # of the draft vocabulary

    def reachable(self, places: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return places (R, C) of `rows` (B, n), -1 for tokens that a sequence has not shown."""
        if not self.extra.numel():
            return places
        late = places - self.vocab_size
        is_known = self.known[rows].gather(1, late.clamp(min=0))
        return places.masked_fill((late >= 0) & ~is_known, -1)

    def shifted(self, rows: torch.Tensor, by: int) -> torch.Tensor:
        """Return (B, n, ...) moved `by` rows to the left; zeros come in."""
        moved = torch.zeros_like(rows)
        moved[:, : rows.shape[1] - by] = rows[:, by:]
        return moved

    def part(self, rank: int, world: int) -> Batch:
        """Return the sequences of one of several processes."""
        names = ("tokens", "top_ids", "top_probs", "targets", "lengths", "known")
        hidden = tuple(layer[rank::world] for layer in self.hidden)
        parts = {name: getattr(self, name)[rank::world] for name in names}
        return dataclasses.replace(self, hidden=hidden, **parts)


def plan_epoch(lengths: Sequence[int], max_rows: int, seed: int, epoch: int) -> list[list[int]]:
    """Cut all sequences, of `lengths` rows, into batches of indices, in an order of this epoch.

    `max_rows` counts filled-up ones too; a longer sequence is a batch of its own.

    Example:
        >>> sorted(sum(plan_epoch([3, 5, 4], 10, seed=0, epoch=0), []))
        [0, 1, 2]
    """
    generator = random.Random(f"{seed}:{epoch}")
    order = list(range(len(lengths)))
    generator.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), _POOL):
        pool = sorted(order[start : start + _POOL], key=lambda index: lengths[index])
        batch: list[int] = []
        for index in pool:
            if batch and (len(batch) + 1) * lengths[index] > max_rows:
                batches.append(batch)
                batch = []
            batch.append(index)
        batches.append(batch)
    generator.shuffle(batches)
    return batches


def collate(texts: Sequence[Text], places: torch.Tensor, *, with_context: bool = False) -> Batch:
    """Put sequences of any lengths side by side.

    `places` (V,) are those of each token in the draft vocabulary, or -1; with `with_context` the
    head drafts tokens of its context too.
    """
    count = max(len(text) for text in texts)

    def stack(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        whole = parts[0].new_zeros((len(parts), count, *parts[0].shape[1:]))
        for row, part in zip(whole, parts, strict=True):
            row[: part.shape[0]] = part
        return whole

    tokens = stack([text.tokens for text in texts])
    vocab_size = int(places.max()) + 1
    extra = tokens.new_empty(0)
    if with_context:
        shown = torch.unique(torch.cat([text.tokens for text in texts]))
        extra = shown[places[shown] < 0]
        places = places.clone()
        places[extra] = torch.arange(vocab_size, vocab_size + extra.numel())
    return Batch(
        hidden=tuple(stack(layer) for layer in zip(*(t.hidden for t in texts), strict=True)),
        tokens=tokens,
        top_ids=places[stack([text.top_ids for text in texts])],
        top_probs=stack([text.top_probs for text in texts]),
        targets=places[tokens],
        lengths=torch.tensor([len(text) for text in texts]),
        extra=extra,
        known=(tokens[..., None] == extra).cumsum(1) > 0,
        vocab_size=vocab_size,
    )
