"""One KV cache for many sequences of different lengths, so that they can share a forward.

Every sequence has a slot (a place along the batch dimension) and its own length, and a forward
writes behind each sequence's own end: nothing is padded, nothing moves when a neighbour grows. What
a rejected draft left behind is overwritten by the next forward.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify._core import Entries
from mtp_verify.caches.base import OpenLayer
from mtp_verify.caches.many import ManyCache, SharedLayer, Storage, replace_layers
from mtp_verify.verifier.kv import commit_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from transformers.cache_utils import DynamicCache

    from mtp_verify._core import Draft, Verdict

__all__ = ["SlotCache", "SlotStorage", "StaticSlots"]


_LEAST = 64  # entries of a buffer: what is smaller than that grows too often.


@dataclass
class _Aim:
    """Where the forward that comes next writes: shared by all layers of a cache."""

    num_slots: int = 0  # that exist
    first: int = 0
    starts: list[int] = field(default_factory=list)  # of the slots from `first` on
    end: int = 0  # entries that are shown: the longest start and the forward's width, or more
    room: int = 0  # entries that buffers get which have to grow
    # (B, 1) and (B, W) indices of what is written; None where all starts are equal.
    index: tuple[torch.Tensor, torch.Tensor] | None = None


class _SlotLayer(OpenLayer, SharedLayer):
    """The keys and values of one layer, (slots, heads, capacity, width)."""

    def __init__(self, aim: _Aim, sliding_window: int | None) -> None:
        super().__init__(sliding_window, lambda: aim.starts[0] if aim.starts else 0)
        self._aim = aim
        self.buffers: tuple[torch.Tensor, ...] = ()  # keys and values, once there are any
        self._memory: Entries | None = None  # the buffers, once they are known to the core

    def open(self, count: int, like: torch.Tensor) -> tuple[Entries, int]:
        """See `OpenLayer.open`."""
        del count  # The aim knows.
        self.grow(like, like)
        if self._memory is None:
            self._memory = Entries(*self.buffers)
        return self._memory, self._aim.first

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

    def grow(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Make the buffers large enough for what is aimed at, of these dtypes and heads."""
        aim, old = self._aim, self.buffers
        slots = aim.num_slots
        held, room = (old[0].shape[0], old[0].shape[2]) if old else (0, 0)
        if old and slots <= held and aim.end <= room:
            return
        slots = held if slots <= held else max(slots, 2 * held)
        capacity = room if aim.end <= room else aim.room
        grown = []
        for index, like in enumerate((keys, values)):
            # Zeros: a hidden entry has weight 0, and 0 times whatever memory held may be NaN.
            buffer = like.new_zeros((slots, like.shape[1], capacity, like.shape[3]))
            if old:
                buffer[:held, :, :room] = old[index]
            grown.append(buffer)
        self.buffers, self._memory = tuple(grown), None

    def clear(self) -> None:
        """Give the memory back."""
        self.buffers, self._memory = (), None


class SlotCache(ManyCache):
    """A `ManyCache` that grows as it needs to; a forward over all slots is one slice.

    The layers of `cache`, empty and made for the model's configuration, are replaced.

    Raises:
        UnsupportedModelError: a layer that is neither of full nor of sliding-window attention.
    """

    def __init__(self, cache: DynamicCache) -> None:
        super().__init__(cache)
        self._aim = _Aim()
        self._layers: list[Any] = replace_layers(cache, lambda w: _SlotLayer(self._aim, w))

    @property
    def length(self) -> int:
        """See `ManyCache.length`."""
        return self._aim.starts[0]

    def add(self, tokens: Sequence[int] = (), *, is_known: bool = True) -> None:
        """See `ManyCache.add`; the slot is empty."""
        del tokens, is_known
        self.lengths.append(0)
        self._aim.num_slots = len(self.lengths)

    def remove(self, slot: int, *, wipe: bool = False) -> None:
        """See `ManyCache.remove`."""
        last = len(self.lengths) - 1
        if wipe:
            # A hidden entry has weight 0, and 0 times NaN is NaN.
            for layer in self._layers:
                for buffer in layer.buffers:
                    buffer[slot].zero_()
        if slot != last:
            self.share(last, slot, self.lengths[last])
        del self.lengths[last]
        self._aim.num_slots = len(self.lengths)
        if not self.lengths:
            for layer in self._layers:
                layer.clear()

    def share(self, source: int, target: int, length: int) -> bool:
        """See `ManyCache.share`: they are copied."""
        for layer in self._layers:
            if layer.buffers:
                layer.grow(*layer.buffers)
            for buffer in layer.buffers:
                buffer[target, :, :length] = buffer[source, :, :length]
        self.lengths[target] = length
        return True

    def aim(self, width: int, device: torch.device, slot: int | None = None) -> None:
        """See `ManyCache.aim`."""
        aim = self._aim
        aim.first = slot or 0
        aim.starts = list(self.lengths) if slot is None else [self.lengths[slot]]
        aim.end = max(aim.starts) + width
        aim.room = aim.end + max(64, aim.end // 4)
        aim.index = None
        if min(aim.starts) != max(aim.starts):
            aim.index = _index(torch.tensor(aim.starts, device=device), width)

    def commit(
        self, slots: Sequence[int], drafts: Sequence[Draft], verdicts: Sequence[Verdict]
    ) -> None:
        """See `ManyCache.commit`."""
        moves: list[tuple[int, int, int]] = []
        for slot, draft, verdict in zip(slots, drafts, verdicts, strict=True):
            plan = commit_plan(draft.tree, verdict.path, self.lengths[slot])
            moves += [(slot, source, target) for source, target in plan.moves.tolist()]
            self.lengths[slot] = plan.length
        if moves:
            index = None
            for layer in self._layers:
                for buffer in layer.buffers:
                    if index is None:  # One copy to the device, for all layers.
                        index = torch.tensor(moves, device=buffer.device).T
                    places, sources, targets = index
                    # All sources are read before any target is written.
                    entries = buffer.transpose(1, 2)
                    entries[places, targets] = entries[places, sources]


def _index(starts: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where `width` entries behind each of some starts (B,) lie: slots and places."""
    rows = torch.arange(len(starts), device=starts.device)
    return rows[:, None], starts[:, None] + torch.arange(width, device=starts.device)


def _power(count: int) -> int:
    """Return the least power of two that is not below a count."""
    return 1 << (count - 1).bit_length()


class StaticSlots(SlotCache):
    """A `SlotCache` whose forwards over all slots have few shapes, none of which depends on values.

    It is as wide as a power of two, shows a power of two of entries, and finds out on the device
    where it writes.
    """

    def __init__(self, cache: DynamicCache) -> None:
        super().__init__(cache)
        # The lengths on the device, in one tensor for each number of slots, and what they are.
        self._starts: dict[int, torch.Tensor] = {}
        self._copied: list[int] = []

    def starts(self, device: torch.device) -> torch.Tensor:
        """See `ManyCache.starts`; the same tensor at each call with so many slots."""
        count = len(self.lengths)
        if self._copied != self.lengths or count not in self._starts:
            fresh = super().starts(device)
            self._starts.setdefault(count, fresh).copy_(fresh)
            self._copied = list(self.lengths)
        return self._starts[count]

    def num_shown(self, width: int) -> int:
        """See `ManyCache.num_shown`."""
        return max(_LEAST, _power(super().num_shown(width)))

    def width(self, num_nodes: int) -> int:
        """See `ManyCache.width`."""
        return _power(num_nodes)

    def memory(self) -> Hashable:
        """See `ManyCache.memory`."""
        buffers = (buffer for layer in self._layers for buffer in layer.buffers)
        return tuple((buffer.data_ptr(), buffer.shape) for buffer in buffers)

    def aim(self, width: int, device: torch.device, slot: int | None = None) -> None:
        """See `ManyCache.aim`."""
        super().aim(width, device, slot)
        aim = self._aim
        aim.room = max(_LEAST, _power(aim.end))
        if slot is None:
            aim.end = aim.room
            aim.index = _index(self.starts(device), width)


class SlotStorage(Storage):
    """Buffers of its own for each cache; `new_kv` makes an empty one of the library."""

    def __init__(self, new_kv: Callable[[], DynamicCache], kind: type[SlotCache]) -> None:
        self._new_kv = new_kv
        self._kind = kind

    def new_cache(self) -> SlotCache:
        """See `Storage.new_cache`."""
        return self._kind(self._new_kv())
