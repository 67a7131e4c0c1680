"""What every kind of cache layer can do, and how layers of attention do it.

A step's forward writes one entry per node, the root first. A commit moves the entries of the
accepted path together and drops the rest. Keys are rotated by depth already when they are written,
so a move needs no further work (`CommitPlan` says which entries move).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from transformers import cache_utils

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from mtp_verify._core import Entries

__all__ = ["DUMMY", "AttentionEntries", "LayerEntries", "OpenLayer", "are_open", "library_classes"]


def library_classes(*names: str) -> tuple[type, ...]:
    """Return the classes of those names; early versions of transformers 5 have fewer of them."""
    return tuple(getattr(cache_utils, name) for name in names if hasattr(cache_utils, name))


DUMMY = library_classes("DummyLayer")  # Stands for layers that read another layer's entries.


class OpenLayer(ABC):
    """A layer that the model gets, whose memory the core may read and write in a forward."""

    @abstractmethod
    def open(self, count: int, like: torch.Tensor) -> tuple[Entries, int]:
        """Begin a forward that writes behind what is held, and is done with `close`.

        Args:
            count: rows of its largest tree.
            like: (1, heads, any, width), with the shape and the dtype of keys and values.

        Returns:
            The entries, and the place of the first sequence among them.
        """

    def close(self) -> None:  # noqa: B027
        """End what `open` began: the entries are written."""


def are_open(layers: Sequence[Any]) -> bool:
    """Return whether there are layers, and the core may work on all of them."""
    return bool(layers) and all(isinstance(layer, OpenLayer) for layer in layers)


class LayerEntries(ABC):
    """One layer of a sequence's cache in use; `layer` is what the model gets, maybe a stand-in."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    @abstractmethod
    def move(self, moves: torch.Tensor) -> None:
        """Copy entries `moves` (M, 2) int64, from -> to; all are read before any is written."""

    @abstractmethod
    def crop(self, length: int) -> None:
        """Drop all entries after the first `length`; what was kept for a rollback may go too."""

    @abstractmethod
    def mark(self) -> Any:
        """Return what `restore` needs to come back to here, whatever is written in between."""

    @abstractmethod
    def restore(self, mark: Any, length: int) -> None:
        """Go back to a mark that was taken at `length` entries."""

    @abstractmethod
    def finish(self, num_padding: int) -> Any:
        """Return the library's own layer again, with `num_padding` masked entries in front."""


class AttentionEntries(LayerEntries):
    """Entries of an attention layer: they stand side by side, so that the last can be dropped."""

    def move(self, moves: torch.Tensor) -> None:
        """See `LayerEntries.move`."""
        layer = self.layer
        if layer.is_initialized:
            # A sliding layer has dropped its oldest entries: its places count from there.
            places = (moves - self._num_dropped()).to(layer.keys.device)
            for entries in (layer.keys, layer.values):
                entries.index_copy_(2, places[:, 1], entries.index_select(2, places[:, 0]))

    def crop(self, length: int) -> None:
        """See `LayerEntries.crop`."""
        if self.layer.is_initialized:
            # A forward that failed half-way has not reached every layer: none is made longer.
            self.layer.crop(min(length - int(self.layer.get_seq_length()), 0))

    def mark(self) -> None:
        """See `LayerEntries.mark`: the length says it all."""

    def restore(self, mark: None, length: int) -> None:
        """See `LayerEntries.restore`."""
        del mark
        self.crop(length)

    def _num_dropped(self) -> int:
        return 0
