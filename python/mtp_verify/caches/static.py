"""Layers of full attention of a fixed number of entries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtp_verify.caches.base import AttentionEntries

if TYPE_CHECKING:
    from transformers.cache_utils import StaticLayer

__all__ = ["StaticEntries"]


class StaticEntries(AttentionEntries):
    """A `StaticLayer`, changed in place: a compiled forward knows its tensors by their address."""

    def crop(self, length: int) -> None:
        """See `LayerEntries.crop`; the library's layer has no `crop` of its own."""
        layer = self.layer
        if layer.is_initialized and length < int(layer.cumulative_length):
            layer.cumulative_length.fill_(length)
            # Hidden entries have weight 0, and 0 times NaN is NaN.
            layer.keys[:, :, length:].zero_()
            layer.values[:, :, length:].zero_()

    def finish(self, num_padding: int) -> StaticLayer:
        """See `LayerEntries.finish`; a static cache takes no padding."""
        del num_padding
        return self.layer
