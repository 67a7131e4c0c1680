"""Layers of sliding-window attention.

The library's layer forgets what has left the window as soon as it is written past it. After a
rejected draft some of that is inside the window again, so here the past is kept until the commit.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicSlidingWindowLayer, StaticSlidingWindowLayer

from mtp_verify.caches.base import AttentionEntries
from mtp_verify.caches.dynamic import hand_over, pad_left

__all__ = ["StaticWindowEntries", "WindowEntries", "WindowLayer"]


class WindowLayer(DynamicSlidingWindowLayer):
    """A sliding-window layer that keeps all of its past until it is cropped, by 0 as well.

    A token sees `sliding_window` of them, itself included. A crop leaves `num_kept`; None stands
    for the window - 1 that the next token sees.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, sliding_window: int, num_kept: int | None = None) -> None:
        super().__init__(sliding_window)
        self.num_kept = sliding_window - 1 if num_kept is None else num_kept

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append entries (B, heads, n, width) and return those that the mask covers."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = torch.cat([self.keys, key_states], dim=-2)
        self.values = torch.cat([self.values, value_states], dim=-2)
        self.cumulative_length += key_states.shape[-2]
        num_visible = self.sliding_window - 1 + key_states.shape[-2]
        return self.keys[:, :, -num_visible:], self.values[:, :, -num_visible:]

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last `-tokens_to_remove` entries, then those that have left the window.

        Entries that a rollback dropped behind the window are gone: it reaches back to the last crop
        and no further.
        """
        if self.is_initialized:
            end = max(self.keys.shape[-2] + tokens_to_remove, 0)
            kept = slice(max(end - self.num_kept, 0), end)
            self.keys, self.values = self.keys[:, :, kept], self.values[:, :, kept]
            self.cumulative_length += tokens_to_remove


class WindowEntries(AttentionEntries):
    """A `DynamicSlidingWindowLayer`, replaced by a `WindowLayer` while it is in use."""

    layer: WindowLayer

    def __init__(self, layer: DynamicSlidingWindowLayer) -> None:
        is_ours = isinstance(layer, WindowLayer)
        window = layer if is_ours else hand_over(layer, WindowLayer(int(layer.sliding_window)))
        super().__init__(window)

    def finish(self, num_padding: int) -> Any:
        """See `LayerEntries.finish`."""
        self.layer.crop(0)
        layer = hand_over(self.layer, DynamicSlidingWindowLayer(self.layer.sliding_window))
        if layer.is_initialized:
            pad_left(layer, min(num_padding, self.layer.num_kept - layer.keys.shape[-2]))
            layer.cumulative_length += num_padding
        return layer

    def _num_dropped(self) -> int:
        return int(self.layer.cumulative_length) - int(self.layer.keys.shape[-2])


class StaticWindowEntries(WindowEntries):
    """A `StaticSlidingWindowLayer`, whose own tensors get the entries back at the end."""

    def __init__(self, layer: StaticSlidingWindowLayer) -> None:
        size = int(layer.max_cache_len)
        # The library keeps one entry more than the next token sees.
        window = WindowLayer(size, num_kept=size)
        # Else the library leaves masks out, and static layers show what is not written yet.
        window.is_compileable = True
        if layer.is_initialized:
            length = int(layer.get_seq_length())
            window.lazy_initialization(layer.keys, layer.values)
            window.keys = layer.keys[:, :, :length].clone()
            window.values = layer.values[:, :, :length].clone()
            window.cumulative_length = length
        super().__init__(window)
        self._static = layer

    def finish(self, num_padding: int) -> Any:
        """See `LayerEntries.finish`; a static cache takes no padding."""
        del num_padding
        static, window = self._static, self.layer
        if window.is_initialized:
            window.crop(0)
            if not static.is_initialized:
                static.lazy_initialization(window.keys, window.values)
            count = window.keys.shape[-2]
            for own, entries in ((static.keys, window.keys), (static.values, window.values)):
                own[:, :, :count] = entries
                own[:, :, count:] = 0
            # In place: a compiled forward knows this tensor by its address.
            static.cumulative_length.fill_(count)
            static.cumulative_length_int = int(window.cumulative_length)
        return static
