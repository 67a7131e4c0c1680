"""Layers of sparse attention that picks among its entries by keys of their own.

DeepSeek Sparse Attention (DeepSeek-V3.2) scores every entry by a small key of its indexer, and
reads the entries of the best scores alone. These keys move and go with the entries.
"""

from __future__ import annotations

from typing import Any

import torch

from mtp_verify.caches.base import library_classes
from mtp_verify.caches.dynamic import DynamicEntries, GrowingLayer, hand_over, pad_left

__all__ = ["INDEXED", "IndexedEntries", "IndexedLayer"]

INDEXED = library_classes("DynamicIndexedLayer")


class IndexedLayer(GrowingLayer):
    """A growing layer with the keys (B, n, width) of an indexer."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.index = GrowingLayer()  # one head of keys, and values of no width

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        """Append keys (B, n, width) of the indexer and return all of them."""
        keys = indexer_key_states[:, None]
        kept, _ = self.index.update(keys, keys[..., :0])
        return kept[:, 0]

    def crop(self, tokens_to_remove: int) -> None:
        """See `GrowingLayer.crop`; a forward that failed may have written one of the two alone."""
        super().crop(tokens_to_remove)
        self.index.crop(min(self.get_seq_length() - self.index.get_seq_length(), 0))


class IndexedEntries(DynamicEntries):
    """A `DynamicIndexedLayer`, replaced by an `IndexedLayer` while it is in use."""

    layer: IndexedLayer

    def __init__(self, layer: Any) -> None:
        if not isinstance(layer, IndexedLayer):
            old, layer = layer, hand_over(layer, IndexedLayer())
            if old.is_indexer_initialized:
                layer.update_indexer(old.indexer_keys)
        super().__init__(layer)

    def move(self, moves: torch.Tensor) -> None:
        """See `LayerEntries.move`."""
        super().move(moves)
        if self.layer.index.is_initialized:
            keys = self.layer.index.keys
            places = moves.to(keys.device)
            keys.index_copy_(2, places[:, 1], keys.index_select(2, places[:, 0]))

    def finish(self, num_padding: int) -> Any:
        """See `LayerEntries.finish`."""
        (kind,) = INDEXED
        layer = pad_left(hand_over(self.layer, kind()), num_padding)
        if self.layer.index.is_initialized:
            padding = (0, 0, num_padding, 0)
            layer.update_indexer(torch.nn.functional.pad(self.layer.index.keys[:, 0], padding))
        return layer
