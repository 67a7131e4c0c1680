"""One KV cache for many sequences of different lengths, so that they can share a forward.

A library's batched cache holds sequences of one length and pads the rest. Here every sequence has a
slot (a place along the batch dimension) and its own length, and a forward writes behind each
sequence's own end: nothing is padded, nothing moves when a neighbour grows.

Entries that a forward wrote count only after `commit`. A forward that failed has therefore changed
nothing, and what a rejected draft left behind is overwritten by the next forward.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from mtp_verify.caches.base import DUMMY
from mtp_verify.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

__all__ = ["SlotCache"]


@dataclass
class _Aim:
    """Where the forward that comes next writes: shared by all layers of a cache."""

    num_slots: int = 0  # that exist
    first: int = 0
    starts: list[int] = field(default_factory=list)  # of the slots from `first` on
    end: int = 0  # entries that are shown: the longest start and the forward's width
    # (B, 1) and (B, W) indices of what is written; None where all starts are equal.
    index: tuple[torch.Tensor, torch.Tensor] | None = None


class _SlotLayer(DynamicLayer):
    """The keys and values of one layer, (slots, heads, capacity, width).

    A sliding-window layer keeps its whole past too: which part of it a node sees is the mask's
    business, and no rollback can need an entry that is gone.
    """

    def __init__(self, aim: _Aim, sliding_window: int | None) -> None:
        super().__init__()
        self._aim = aim
        self.buffers: tuple[torch.Tensor, ...] = ()  # keys and values, once there are any
        if sliding_window is not None:
            self.is_sliding = True
            self.sliding_window = sliding_window

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write entries (B, heads, W, width) where the aim says; return all that may be seen."""
        aim, count, width = self._aim, key_states.shape[0], key_states.shape[2]
        self.grow(key_states, value_states)
        shown = []
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            slots = buffer[aim.first : aim.first + count]
            if aim.index is None:
                slots[:, :, aim.starts[0] : aim.starts[0] + width] = new
            else:
                slots.transpose(1, 2)[aim.index] = new.transpose(1, 2)
            shown.append(slots[:, :, : aim.end])
        return shown[0], shown[1]

    def get_seq_length(self) -> int:
        """Entries before this forward; asked for where one sequence runs alone."""
        return self._aim.starts[0] if self._aim.starts else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Entries shown and the place of the first one."""
        return self.get_seq_length() + query_length, 0

    def grow(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Make room for the slots that exist and the entries that are aimed at.

        Args:
            keys: of the dtype, the device, the heads and the width wanted.
            values: likewise.
        """
        aim, old = self._aim, self.buffers
        slots, room = aim.num_slots, aim.end
        if old:
            if slots <= old[0].shape[0] and room <= old[0].shape[2]:
                return
            slots = max(slots, 2 * old[0].shape[0]) if slots > old[0].shape[0] else len(old[0])
            room = max(room, old[0].shape[2])
        if not old or room > old[0].shape[2]:
            room += max(64, room // 4)
        grown = []
        for index, like in enumerate((keys, values)):
            # Zeros: a hidden entry has weight 0, and 0 times whatever memory held may be NaN.
            buffer = like.new_zeros((slots, like.shape[1], room, like.shape[3]))
            if old:
                buffer[: old[index].shape[0], :, : old[index].shape[2]] = old[index]
            grown.append(buffer)
        self.buffers = tuple(grown)


class SlotCache:
    """The cache of a batch whose sequences come, go and grow independently.

    Slots in use are 0 to `len(lengths) - 1`, so that a forward over all of them is one slice.

    Args:
        cache: empty, made for the model's configuration; its layers are replaced.

    Raises:
        UnsupportedModelError: a layer that is neither of full nor of sliding-window attention.
    """

    is_recurrent = False

    def __init__(self, cache: DynamicCache) -> None:
        self._aim = _Aim()
        layers: list[Any] = []
        for index, layer in enumerate(cache.layers):
            if type(layer) is DynamicLayer:
                layers.append(_SlotLayer(self._aim, None))
            elif type(layer) is DynamicSlidingWindowLayer:
                layers.append(_SlotLayer(self._aim, int(layer.sliding_window)))
            elif isinstance(layer, DUMMY):
                layers.append(layer)
            else:
                msg = (
                    f"cache layer {index} is a {type(layer).__name__}; requests share a forward "
                    "only where all layers are of full or sliding-window attention"
                )
                raise UnsupportedModelError(msg, slug="unsupported_cache")
        cache.layers = layers
        self.kv = cache
        self.lengths: list[int] = []
        self._slot_layers = [layer for layer in layers if isinstance(layer, _SlotLayer)]

    @property
    def windows(self) -> tuple[bool, int | None]:
        """Whether some layer sees everything, and the width of sliding layers (None: no such)."""
        widths = [layer.sliding_window for layer in self._slot_layers if layer.is_sliding]
        return len(widths) < len(self.kv.layers), widths[0] if widths else None

    def add(self) -> int:
        """Return a new, empty slot: the number of those before it."""
        self.lengths.append(0)
        self._aim.num_slots = len(self.lengths)
        return len(self.lengths) - 1

    def remove(self, slot: int, *, wipe: bool = False) -> None:
        """Free a slot; the last one moves into its place.

        Args:
            slot: one in use.
            wipe: overwrite it. A broken model's NaN must not reach who comes next: a hidden entry
                has weight 0, and 0 times NaN is NaN.
        """
        last = len(self.lengths) - 1
        if wipe:
            for layer in self._slot_layers:
                for buffer in layer.buffers:
                    buffer[slot].zero_()
        if slot != last:
            self.copy(last, slot, self.lengths[last])
        del self.lengths[last]
        self._aim.num_slots = len(self.lengths)
        if not self.lengths:
            for layer in self._slot_layers:
                layer.buffers = ()

    def copy(self, source: int, target: int, length: int) -> None:
        """Give slot `target` the first `length` entries of slot `source`, and no others."""
        for layer in self._slot_layers:
            if layer.buffers:
                layer.grow(*layer.buffers)
            for buffer in layer.buffers:
                buffer[target, :, :length] = buffer[source, :, :length]
        self.lengths[target] = length

    def aim(self, width: int, device: torch.device, slot: int | None = None) -> None:
        """Say where the next forward writes: at the end of one slot, or of each.

        Args:
            width: tokens of each sequence in that forward.
            device: of the cache.
            slot: None for all slots.
        """
        aim = self._aim
        aim.first = slot or 0
        aim.starts = list(self.lengths) if slot is None else [self.lengths[slot]]
        aim.end = max(aim.starts) + width
        aim.index = None
        if min(aim.starts) != max(aim.starts):
            starts = torch.tensor(aim.starts, device=device)
            rows = torch.arange(len(aim.starts), device=device)
            aim.index = (rows[:, None], starts[:, None] + torch.arange(width, device=device))

    def writing(self, count: int) -> AbstractContextManager[None]:
        """Around a forward: its entries count once they are committed."""
        del count
        return nullcontext()

    def commit(self, moves: Sequence[tuple[int, int, int]], lengths: dict[int, int]) -> None:
        """Keep accepted paths.

        Args:
            moves: (slot, from, to) entries to be moved together; all are read before any is
                written.
            lengths: new lengths by slot.
        """
        if moves:
            slots, sources, targets = torch.tensor(moves).T
            for layer in self._slot_layers:
                for buffer in layer.buffers:
                    places = buffer.transpose(1, 2)
                    places[slots, targets] = places[slots, sources]
        for slot, length in lengths.items():
            self.lengths[slot] = length
