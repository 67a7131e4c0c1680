"""Layers of full attention that grow as they are written."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from mtp_verify._core import Entries
from mtp_verify.caches.base import AttentionEntries, OpenLayer

__all__ = ["DynamicEntries", "GrowingLayer", "hand_over", "pad_left"]


def _entries(index: int) -> Any:
    """Return a property of the entries (B, heads, length, width); None until the first update."""

    def show(layer: GrowingLayer) -> Any:
        buffer, length = layer._buffers[index], layer._lengths[index]
        is_full = buffer is None or buffer.dim() < 4 or buffer.shape[-2] == length
        return buffer if is_full else buffer[:, :, :length]

    def take(layer: GrowingLayer, entries: Any) -> None:
        layer._buffers[index] = entries
        layer._lengths[index] = 0 if entries is None or entries.dim() < 4 else entries.shape[-2]
        layer._is_taken[index] = True
        layer._memory = None

    return property(show, take)


class GrowingLayer(OpenLayer, DynamicLayer):
    """A dynamic layer with spare capacity, so that a step copies its own entries and no others.

    `keys` and `values` are the filled part of buffers that grow by a quarter when they are full,
    and dropping entries is a matter of one number. Whatever assigns to `keys` or `values`
    (reordering, repeating, a user) is taken over: those tensors are the entries then.
    """

    is_initialized: bool
    keys, values = _entries(0), _entries(1)

    def __init__(self, **kwargs: Any) -> None:
        # What holds the entries, and how many: None until the first update, as `keys` is in the
        # library's layers.
        self._buffers: list[Any] = [None, None]
        self._lengths = [0, 0]
        self._is_taken = [True, True]  # tensors of others are never written to
        self._memory: Entries | None = None  # the buffers, once they are known to the core
        super().__init__(**kwargs)

    def get_seq_length(self) -> int:
        """Return the number of entries held."""
        return self._lengths[0]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append entries (B, heads, n, width) and return all of them."""
        start = self._lengths[0]
        end = self._extend(key_states.shape[-2], key_states, value_states)
        keys, values = self._buffers
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        return keys[:, :, :end], values[:, :, :end]

    def open(self, count: int, like: torch.Tensor) -> tuple[Entries, int]:
        """See `OpenLayer.open`."""
        self._extend(count, like, like)
        if self._memory is None:
            self._memory = Entries(*self._buffers)
        return self._memory, 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what refers to this object's own memory."""
        return {**self.__dict__, "_memory": None}

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last `-tokens_to_remove` entries; their places are used again."""
        if tokens_to_remove < 0:
            self._lengths = [max(length + tokens_to_remove, 0) for length in self._lengths]
        else:
            super().crop(tokens_to_remove)

    def _extend(self, count: int, *likes: torch.Tensor) -> int:
        """Make room for `count` more entries like these, and count them; return how many it has."""
        end = self._lengths[0] + count
        if not self.is_initialized:
            self.dtype, self.device = likes[0].dtype, likes[0].device
            self.is_initialized = True
        for index, like in enumerate(likes):
            buffer = self._buffers[index]
            if buffer is None or self._is_taken[index] or end > buffer.shape[-2]:
                self._buffers[index] = self._grown(index, end, like)
                self._memory = None
        self._lengths = [end, end]
        return end

    def _grown(self, index: int, capacity: int, like: torch.Tensor) -> torch.Tensor:
        """Return a buffer for so many entries and more, with those that there are."""
        capacity += max(64, capacity // 4)
        # Zeros: a hidden entry has weight 0, and 0 times whatever memory held may be NaN.
        fresh = like.new_zeros((*like.shape[:2], capacity, like.shape[3]))
        if length := self._lengths[index]:
            fresh[:, :, :length] = self._buffers[index][:, :, :length]
        self._is_taken[index] = False
        return fresh


class DynamicEntries(AttentionEntries):
    """A `DynamicLayer`, replaced by a `GrowingLayer` while it is in use."""

    layer: GrowingLayer

    def __init__(self, layer: DynamicLayer) -> None:
        is_ours = isinstance(layer, GrowingLayer)
        super().__init__(layer if is_ours else hand_over(layer, GrowingLayer()))

    def finish(self, num_padding: int) -> Any:
        """See `LayerEntries.finish`."""
        return pad_left(hand_over(self.layer, DynamicLayer()), num_padding)


def hand_over(old: Any, new: Any) -> Any:
    """Give a layer another one's entries (no copy), and return it."""
    if old.is_initialized:
        new.lazy_initialization(old.keys, old.values)
        new.keys, new.values = old.keys, old.values
        if new.is_sliding:
            new.cumulative_length = old.cumulative_length
    return new


def pad_left(layer: Any, num_padding: int) -> Any:
    """Put entries of zeros in front of those of a layer, and return it."""
    if num_padding and layer.is_initialized:
        layer.keys = torch.nn.functional.pad(layer.keys, (0, 0, num_padding, 0))
        layer.values = torch.nn.functional.pad(layer.values, (0, 0, num_padding, 0))
    return layer
