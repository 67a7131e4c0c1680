"""A paged KV cache over plain tensors, kept by a `BlockTable`.

The entries of all sequences lie in one pool of fixed size, in blocks that need not be neighbours.
Sequences with the same beginning share its blocks, and a block that two of them would write to is
copied first. A layer gathers what is seen, in every forward; production engines need no copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtp_verify._core import BlockTable, Entries
from mtp_verify.caches.base import OpenLayer
from mtp_verify.caches.many import ManyCache, SharedLayer, Storage, replace_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from transformers.cache_utils import DynamicCache

    from mtp_verify._core import Draft, Verdict
    from mtp_verify.caches.settings import Paged

__all__ = ["PagePool", "PagedCache"]


@dataclass
class _Aim:
    """What the forward that comes next writes and sees: shared by all layers of a pool."""

    start: int
    # (n,) places that are written, which of the forward's (row, column) go there, and which (row,
    # column) of what is seen they are.
    targets: torch.Tensor
    nodes: tuple[torch.Tensor, ...]
    fresh: tuple[torch.Tensor, ...]
    # (B, S) places that are seen; the last place of the pool is never written and stands for
    # entries that do not exist.
    seen: torch.Tensor


class _PagedLayer(OpenLayer, SharedLayer):
    """The keys and values of one layer, (places + 1, heads, width)."""

    def __init__(self, aim: _Aim, num_places: int, sliding_window: int | None) -> None:
        super().__init__(sliding_window, lambda: aim.start)
        self._aim = aim
        self._num_places = num_places
        self.buffers: tuple[torch.Tensor, ...] = ()  # keys and values, once there are any
        self._gathered: tuple[torch.Tensor, ...] = ()  # (B, heads, S, width) between open and close

    def open(self, count: int, like: torch.Tensor) -> tuple[Entries, int]:
        """See `OpenLayer.open`: entries are gathered, and new ones are brought back."""
        del count  # The aim knows.
        self._make(like, like)
        gathered = (buffer[self._aim.seen].transpose(1, 2) for buffer in self.buffers)
        self._gathered = tuple(each.contiguous() for each in gathered)
        return Entries(*self._gathered), 0

    def close(self) -> None:
        """See `OpenLayer.close`."""
        aim = self._aim
        for buffer, gathered in zip(self.buffers, self._gathered, strict=True):
            buffer[aim.targets] = gathered.transpose(1, 2)[aim.fresh]
        self._gathered = ()

    def _make(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        if not self.buffers:
            # Zeros: a hidden entry has weight 0, and 0 times whatever memory held may be NaN.
            self.buffers = tuple(
                new.new_zeros((self._num_places + 1, new.shape[1], new.shape[3]))
                for new in (keys, values)
            )

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write entries (B, heads, W, width) where the aim says; gather all that may be seen."""
        aim, states = self._aim, (key_states, value_states)
        self._make(*states)
        for buffer, new in zip(self.buffers, states, strict=True):
            buffer[aim.targets] = new.transpose(1, 2)[aim.nodes]
        keys, values = (buffer[aim.seen].transpose(1, 2) for buffer in self.buffers)
        return keys, values

    def copy(self, pairs: torch.Tensor) -> None:
        # All are read before any is written.
        for buffer in self.buffers:
            buffer[pairs[:, 1]] = buffer[pairs[:, 0]]


class PagePool(Storage):
    """The entries of a decoder's requests: one block table, and a tensor pair per layer.

    The layers of `cache`, empty and made for the model's configuration, are replaced.

    Raises:
        ParamsError: a size is out of range.
        UnsupportedModelError: a layer that is neither of full nor of sliding-window attention.
    """

    is_shared = True

    def __init__(self, cache: DynamicCache, settings: Paged) -> None:
        self.table: BlockTable = BlockTable(
            settings.num_blocks, settings.block_size, settings.prefix_cache
        )
        none = torch.empty(0, dtype=torch.int64)
        self.aim = _Aim(0, none, (none, none), (none, none), none)
        num_places = settings.num_blocks * settings.block_size
        self._layers: list[Any] = replace_layers(
            cache, lambda window: _PagedLayer(self.aim, num_places, window)
        )
        self.kv = cache
        self.hole = num_places
        self._num_sequences = 0

    def new_sequence(self) -> int:
        """Return a number that no sequence has had."""
        self._num_sequences += 1
        return self._num_sequences

    def new_cache(self) -> PagedCache:
        """See `Storage.new_cache`."""
        return PagedCache(self)

    def copy(self, pairs: np.ndarray) -> None:
        """Carry out the copies of a reservation or the moves of a plan, (M, 2) int64."""
        if len(pairs):
            # A move never reads what an earlier move of its plan has written.
            for layer in self._layers:
                layer.copy(torch.from_numpy(pairs))


class PagedCache(ManyCache):
    """A `ManyCache` over a pool, which other sessions of the decoder may use as well."""

    def __init__(self, pool: PagePool) -> None:
        # `lengths` are of entries that are computed: those of a prompt have their blocks before.
        super().__init__(pool.kv)
        self._pool = pool
        self._table = pool.table
        self._sequences: list[int] = []
        self._parents: list[int | None] = []
        self._prompts: list[list[int]] = []
        self._counts: list[int] = []

    @property
    def length(self) -> int:
        """See `ManyCache.length`."""
        return self._pool.aim.start

    def add(self, tokens: Sequence[int], *, is_known: bool) -> None:
        """See `ManyCache.add`: a sequence that begins with the same tokens is forked."""
        table, sequence, tokens = self._table, self._pool.new_sequence(), list(tokens)
        same = None
        if is_known and tokens:
            same = next((s for s, other in enumerate(self._prompts) if other == tokens), None)
        if same is None:
            cached = table.add_sequence(sequence, len(tokens), tokens if is_known else None)
            parent = None
        else:
            parent = self._sequences[same]
            table.fork(parent, sequence)
            table.rollback(sequence, len(tokens))
            cached = min(self.lengths[same], len(tokens))
        self._sequences.append(sequence)
        self._parents.append(parent)
        self._prompts.append(tokens)
        self.lengths.append(cached)

    def remove(self, slot: int, *, wipe: bool = False) -> None:
        """See `ManyCache.remove`: blocks are written before they are seen."""
        del wipe
        self._table.release(self._sequences[slot])
        columns: list[list[Any]] = [self.lengths, self._sequences, self._parents, self._prompts]
        for column in columns:
            last = column.pop()
            if slot < len(column):
                column[slot] = last

    def share(self, source: int, target: int, length: int) -> bool:
        """See `ManyCache.share`: where `add` forked the one from the other."""
        is_fork = self._parents[target] == self._sequences[source]
        if is_fork:
            self.lengths[target] = length
        return is_fork

    def has_space(self) -> bool:
        """See `ManyCache.has_space`."""
        num_free = self._table.num_free
        return num_free >= len(self.lengths) or int(self._roots().sum()) <= num_free

    def budgets(self, wanted: Sequence[int]) -> list[int]:
        """See `ManyCache.budgets`: free blocks are shared evenly among those that want some."""
        size = self._table.block_size
        roots = self._roots()
        num_free = self._table.num_free - int(roots.sum())
        if num_free < 0:
            self._table.reserve_batch(self._sequences, [1] * len(roots))  # Says what is missing.
        # Entries that are left behind the root in the block that holds it.
        spare = -(self._table.lengths(self._sequences) + 1) % size
        blocks = -(-np.maximum(np.asarray(wanted) - spare, 0) // size)
        if blocks.sum() > num_free:
            for place, slot in enumerate(np.argsort(blocks, kind="stable")):
                blocks[slot] = min(blocks[slot], num_free // (len(blocks) - place))
                num_free -= blocks[slot]
        return [int(n) for n in np.minimum(wanted, spare + blocks * size)]

    def _roots(self) -> NDArray[np.int64]:
        """Blocks that each sequence needs for one more entry: a new one, or a copy of its own.

        Of sequences that share a block all but the last copy it; one too many is counted there.
        """
        held = self._table.block_table(self._sequences)
        # A column without blocks, for sequences that have no place in their last one.
        held = np.pad(held, ((0, 0), (0, 1)), constant_values=-1)
        places = self._table.lengths(self._sequences) // self._table.block_size
        places = np.minimum(places, held.shape[1] - 1)
        tails = held[np.arange(len(places)), places]
        # Who shares a block has it at the same place.
        num_holders = (held[:, places] == tails).sum(axis=0)
        return np.where((tails < 0) | (num_holders > 1), 1, 0)

    def reserve(self, counts: Sequence[int]) -> None:
        """See `ManyCache.reserve`."""
        reservation = self._table.reserve_batch(self._sequences, list(counts))
        self._pool.copy(reservation.copies)
        self._counts = list(counts)

    def drop(self, slot: int) -> None:
        """See `ManyCache.drop`."""
        sequence = self._sequences[slot]
        self._table.rollback(sequence, int(self._table.lengths([sequence])[0]))

    def aim(self, width: int, device: torch.device, slot: int | None = None) -> None:
        """See `ManyCache.aim`."""
        aim, size = self._pool.aim, self._table.block_size
        slots = range(len(self.lengths)) if slot is None else [slot]
        starts = np.array([self.lengths[s] for s in slots])
        counts = np.array(self._counts if slot is None else [width])
        blocks = self._table.block_table([self._sequences[s] for s in slots]).astype(np.int64)
        entries = np.arange(starts.max() + width)
        exists = entries < (starts + counts)[:, None]
        seen = np.full(exists.shape, self._pool.hole)
        rows, columns = np.nonzero(exists)
        seen[rows, columns] = blocks[rows, columns // size] * size + columns % size
        is_new = exists & (entries >= starts[:, None])
        rows, columns = np.nonzero(is_new)
        aim.start = int(starts[0])
        aim.seen = torch.from_numpy(seen).to(device)
        aim.targets = torch.from_numpy(seen[is_new]).to(device)
        places = (torch.from_numpy(index).to(device) for index in (rows, columns))
        aim.fresh = row, column = tuple(places)
        aim.nodes = row, column - torch.from_numpy(starts[rows]).to(device)

    def commit(
        self, slots: Sequence[int], drafts: Sequence[Draft], verdicts: Sequence[Verdict]
    ) -> None:
        """See `ManyCache.commit`."""
        sequences = [self._sequences[slot] for slot in slots]
        plans = self._table.commit_batch(sequences, drafts, verdicts)
        self._pool.copy(plans.moves)
        for slot, length in zip(slots, plans.lengths.tolist(), strict=True):
            self.lengths[slot] = length
