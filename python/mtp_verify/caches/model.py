"""The cache of one sequence: layers of any kinds, one length, commits, and a way out."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from mtp_verify.caches.base import DUMMY, library_classes
from mtp_verify.caches.dynamic import DynamicEntries, GrowingLayer
from mtp_verify.caches.indexed import INDEXED, IndexedEntries, IndexedLayer
from mtp_verify.caches.recurrent import RECURRENT, RecurrentEntries
from mtp_verify.caches.sliding import StaticWindowEntries, WindowEntries, WindowLayer
from mtp_verify.caches.static import StaticEntries
from mtp_verify.errors import CacheError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mtp_verify._core import CommitPlan
    from mtp_verify.caches.base import LayerEntries

__all__ = ["ModelCache"]

_KINDS: dict[type, Callable[[Any], LayerEntries]] = {
    DynamicLayer: DynamicEntries,
    GrowingLayer: DynamicEntries,
    DynamicSlidingWindowLayer: WindowEntries,
    WindowLayer: WindowEntries,
    StaticLayer: StaticEntries,
    StaticSlidingWindowLayer: StaticWindowEntries,
    **dict.fromkeys(RECURRENT, RecurrentEntries),
    **dict.fromkeys((*INDEXED, IndexedLayer), IndexedEntries),
}
_QUANTIZED = library_classes("QuantizedLayer", "BaseQuantizedLayer")


class ModelCache:
    """A transformers cache as the decoder uses it; layers of all kinds may be mixed.

    While it is in use, layers that could not be rolled back have stand-ins; `finish` puts the
    library's own back. The cross-attention half of an `EncoderDecoderCache` is left alone.

    Raises:
        UnsupportedModelError: a cache, or a layer of it, that cannot be rolled back; says why.

    Attributes:
        kv: the cache, for the model's forward.
        length: entries written, those of nodes that are not committed yet included.
        capacity: the most entries that it can hold, or None.
        is_recurrent: a layer has a recurrent state: only chains can be run, and a commit that drops
            entries goes back to the last forward's beginning, or an earlier one's.
    """

    def __init__(self, cache: Any) -> None:
        self.kv = cache
        own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        self._own: Any = own
        self._refuse_unsuitable()
        self.is_recurrent = any(isinstance(layer, RECURRENT) for layer in own.layers)
        self.length = self._initial_length()
        # A sliding window of fixed size never fills up.
        static = (i for i in own.layers if isinstance(i, StaticLayer) and not i.is_sliding)
        self.capacity = min((int(layer.max_cache_len) for layer in static), default=None)
        self._entries: list[LayerEntries] = []
        self._take_over()
        if getattr(own, "layer_class_to_replicate", None) is DynamicLayer:
            # A cache without a configuration makes its layers as they are first written.
            own.layer_class_to_replicate = GrowingLayer
        # Recurrent layers: where each forward since the last commit began, and how to go back.
        self._marks: list[tuple[int, list[Any]]] = []
        # A forward that failed half-way has reached some layers and not others.
        self._is_torn = False

    @property
    def windows(self) -> tuple[bool, int | None]:
        """Whether some layer sees everything, and the width of sliding layers (None: no such)."""
        widths = [e.layer.sliding_window for e in self._entries if isinstance(e, WindowEntries)]
        return len(widths) < len(self._own.layers) or not widths, next(iter(widths), None)

    @contextmanager
    def writing(self, count: int) -> Iterator[None]:
        """Open around a forward that writes `count` entries; call `crop` after one that fails."""
        if self.is_recurrent:
            self._marks.append((self.length, [entries.mark() for entries in self._entries]))
        self._is_torn = True
        yield
        self._is_torn = False
        self.length += count
        self._take_over()

    def commit(self, plan: CommitPlan) -> None:
        """Keep the accepted path: apply the plan's moves, then `crop` to its length.

        Raises:
            CacheError: the plan keeps more entries than there are.
        """
        if len(plan.moves):
            moves = torch.as_tensor(plan.moves)
            for entries in self._entries:
                entries.move(moves)
        self.crop(plan.length)

    def crop(self, length: int) -> None:
        """Drop all entries after the first `length`.

        A recurrent state cannot be cut: the cache goes back to where one of the last forwards
        began, before `length` if need be, and the tokens between are run again with what follows
        them.

        Raises:
            CacheError: there are fewer entries than that, or a recurrent state was committed since.
        """
        self._take_over()
        surplus = self.length - length
        if surplus < 0 or length < 0:
            message = f"the cache holds {self.length} entries and cannot be cut to {length}"
            raise CacheError(message, slug="bad_length")
        if self.is_recurrent and (surplus or self._is_torn):
            self._go_back(length)
        else:
            for entries in self._entries:
                # Sliding layers keep their past until they are told that all is committed.
                if surplus or self._is_torn or isinstance(entries, WindowEntries):
                    entries.crop(length)
            self.length = length
        self._marks.clear()
        self._is_torn = False

    def finish(self, num_padding: int = 0) -> Any:
        """Return the cache with the library's own layers, as its own generation leaves it.

        Masked entries go in front of those of a prompt that was padded; none in a static cache.
        """
        own = self._own
        ends = (entries.finish(num_padding) for entries in self._entries)
        own.layers = [x if isinstance(x, DUMMY) else next(ends) for x in own.layers]
        if getattr(own, "layer_class_to_replicate", None) is GrowingLayer:
            own.layer_class_to_replicate = DynamicLayer
        return self.kv

    def _go_back(self, length: int) -> None:
        while self._marks:
            start, marks = self._marks.pop()
            if start <= length:
                for entries, mark in zip(self._entries, marks, strict=True):
                    entries.restore(mark, start)
                self.length = start
                return
        found = f"the recurrent state of {self.length} tokens was committed"
        message = f"{found} and cannot be taken back to {length}"
        raise CacheError(message, slug="bad_length")

    def _take_over(self) -> None:
        """Put stand-ins where layers need one; the first forward may have made new layers."""
        layers = [layer for layer in self._own.layers if not isinstance(layer, DUMMY)]
        if len(layers) == len(self._entries):
            return
        self._entries += [_KINDS[type(layer)](layer) for layer in layers[len(self._entries) :]]
        own, ours = self._own, (entries.layer for entries in self._entries)
        own.layers = [x if isinstance(x, DUMMY) else next(ours) for x in own.layers]

    def _initial_length(self) -> int:
        layers = self._own.layers
        holder = next((layer for layer in layers if hasattr(layer, "get_seq_length")), None)
        if holder is not None:
            return int(holder.get_seq_length())
        if any(any(getattr(layer, "has_previous_state", {}).values()) for layer in layers):
            message = "the cache holds a recurrent state of unknown length; start with an empty one"
            raise UnsupportedModelError(message, slug="unsupported_cache")
        return 0

    def _refuse_unsuitable(self) -> None:
        own, reason = self._own, None
        name = type(own).__name__
        if getattr(own, "offloading", False):
            reason = f"an offloaded {name} is not supported; create it with offloading=False"
        elif not hasattr(own, "layers"):
            reason = f"{name} is not a transformers cache; use DynamicCache or StaticCache"
        for index, layer in enumerate(() if reason else own.layers):
            kind = type(layer)
            if isinstance(layer, _QUANTIZED):
                reason = (
                    f"{name} cannot be rolled back after a rejected draft: its entries are "
                    "quantised together, so that a dropped one leaves its trace in the others; use "
                    "DynamicCache"
                )
            elif kind not in _KINDS and not isinstance(layer, DUMMY):
                reason = (
                    f"cache layer {index} is a {kind.__name__}, which cannot be rolled back after "
                    "a rejected draft; see docs/howto/batches.md for the kinds that can"
                )
        if reason:
            raise UnsupportedModelError(reason, slug="unsupported_cache")
