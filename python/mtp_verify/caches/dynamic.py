"""Layers of full attention that grow as they are written."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from mtp_verify.caches.base import AttentionEntries

__all__ = ["DynamicEntries", "GrowingLayer", "pad_left"]


class GrowingLayer(DynamicLayer):
    """A dynamic layer that keeps spare room, so that a step copies its own entries and no others.

    `DynamicLayer` concatenates, that is, copies the whole cache in every layer of every step. Here
    `keys` and `values` are views of a larger buffer that grows by a quarter when it is full.
    Whatever else assigns to `keys` or `values` (reordering, repeating, a user) is noticed and
    taken over.
    """

    is_initialized: bool
    keys: Any  # a tensor; None until the first update, as in the library's layers
    values: Any

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None
        self._views: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def from_layer(cls, layer: DynamicLayer) -> GrowingLayer:
        """Take over a plain layer's entries; they are copied at the next update."""
        grown = cls()
        if layer.is_initialized:
            grown.dtype, grown.device = layer.dtype, layer.device
            grown.keys, grown.values = layer.keys, layer.values
            grown.is_initialized = True
        return grown

    def to_layer(self) -> DynamicLayer:
        """Return a plain layer with the same entries (views, no copy)."""
        plain = DynamicLayer()
        if self.is_initialized:
            plain.dtype, plain.device = self.dtype, self.device
            plain.keys, plain.values = self.keys, self.values
            plain.is_initialized = True
        return plain

    def get_seq_length(self) -> int:
        """Number of entries held."""
        return 0 if self.keys is None or self.keys.dim() < 4 else int(self.keys.shape[-2])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append entries (B, heads, n, width) and return all of them."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
        buffers = self._buffers
        if buffers is None or not self._is_ours() or end > buffers[0].shape[-2]:
            buffers = self._buffers = self._grown(start, end, key_states, value_states)
        keys, values = buffers
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self._show(buffers, end)
        return self.keys, self.values

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last `-tokens_to_remove` entries; their room is used again."""
        if tokens_to_remove < 0 and self._buffers is not None and self._is_ours():
            self._show(self._buffers, self.get_seq_length() + tokens_to_remove)
        else:
            super().crop(tokens_to_remove)

    def _is_ours(self) -> bool:
        """Whether nobody has put other tensors in the place of the buffers' views."""
        views = self._views
        return views is not None and views[0] is self.keys and views[1] is self.values

    def _show(self, buffers: tuple[torch.Tensor, torch.Tensor], length: int) -> None:
        keys, values = buffers
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]
        self._views = (self.keys, self.values)

    def _grown(
        self, start: int, end: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Buffers with room for `end` entries and more, holding the first `start`."""
        room = end + max(64, end // 4)
        old = (self.keys, self.values)
        fresh = []
        for new, kept in zip((keys, values), old, strict=True):
            buffer = new.new_empty((*new.shape[:2], room, new.shape[3]))
            if start:
                buffer[:, :, :start] = kept
            fresh.append(buffer)
        return fresh[0], fresh[1]


class DynamicEntries(AttentionEntries):
    """A `DynamicLayer`, replaced by a `GrowingLayer` while it is in use."""

    layer: GrowingLayer

    def __init__(self, layer: DynamicLayer) -> None:
        is_ours = isinstance(layer, GrowingLayer)
        super().__init__(layer if is_ours else GrowingLayer.from_layer(layer))

    def finish(self, num_padding: int) -> DynamicLayer:
        """See `LayerEntries.finish`."""
        layer = self.layer.to_layer()
        pad_left(layer, num_padding)
        return layer


def pad_left(layer: Any, num_padding: int) -> None:
    """Put entries of zeros in front of those of a layer."""
    if num_padding and layer.is_initialized:
        layer.keys = torch.nn.functional.pad(layer.keys, (0, 0, num_padding, 0))
        layer.values = torch.nn.functional.pad(layer.values, (0, 0, num_padding, 0))
