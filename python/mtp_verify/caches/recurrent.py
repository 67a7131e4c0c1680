"""Layers with a recurrent state: Mamba, gated delta, linear attention, short convolutions.

No token can be taken out of a state. Before each forward it is copied; after a rejection the copy
is put back, and the accepted tokens are run again with the next forward. Where such a state and
attention are combined in one layer, its keys and values go back the same way.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mtp_verify.caches.base import LayerEntries, library_classes
from mtp_verify.caches.dynamic import pad_left
from mtp_verify.errors import InternalError

__all__ = ["RECURRENT", "RecurrentEntries"]

RECURRENT = library_classes(
    "LinearAttentionLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
    "LinearAttentionAndStaticFullAttentionLayer",
)

_COUNT = "cumulative_length"


class RecurrentEntries(LayerEntries):
    """A layer of the library's own, with copies of its state."""

    def move(self, moves: torch.Tensor) -> None:
        """See `LayerEntries.move`: a chain's accepted path is a prefix, and nothing moves."""
        del moves
        message = "a recurrent state cannot be moved; trees are refused before their forward"
        raise InternalError(message, slug="recurrent_move")

    def crop(self, length: int) -> None:
        """See `LayerEntries.crop`: only `restore` alters a state."""

    def mark(self) -> dict[str, Any]:
        """See `LayerEntries.mark`: a copy of the state."""
        # Keys and values: the dynamic kinds never write into them, and entries of the static kind
        # that lie behind the length do not count.
        held = vars(self.layer).items()
        return {n: _copied(v) if isinstance(v, dict) or n == _COUNT else v for n, v in held}

    def restore(self, mark: dict[str, Any], length: int) -> None:
        """See `LayerEntries.restore`; a mark serves once."""
        del length
        for name, value in mark.items():
            current = getattr(self.layer, name)
            if isinstance(current, dict):
                for index, saved in value.items():
                    current[index] = _put_back(current[index], saved)
            else:
                setattr(self.layer, name, _put_back(current, value) if name == _COUNT else value)

    def finish(self, num_padding: int) -> Any:
        """See `LayerEntries.finish`; padding is not part of a state."""
        layer = self.layer
        if isinstance(layer, DynamicSlidingWindowLayer) and layer.is_initialized:
            pad_left(layer, min(num_padding, layer.sliding_window - 1 - layer.keys.shape[-2]))
            layer.cumulative_length += num_padding
        elif isinstance(layer, DynamicLayer):
            pad_left(layer, num_padding)
        return layer


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {index: _copied(item) for index, item in value.items()}
    return value.clone() if isinstance(value, torch.Tensor) else value


def _put_back(current: Any, saved: Any) -> Any:
    """Return the saved value, in the current tensor where that fits: compiled code knows it."""
    are_tensors = isinstance(current, torch.Tensor) and isinstance(saved, torch.Tensor)
    return current.copy_(saved) if are_tensors and current.shape == saved.shape else saved
