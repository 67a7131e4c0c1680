"""transformers KV caches: attention masks of trees, and commits that keep the accepted path alone.

A step's forward writes one cache entry per node, the root first. `commit` moves the entries of the
accepted path together and drops the rest. Keys are rotated by depth already when they are written,
so a move needs no further work (`CommitPlan` says which entries move, in an order that is safe in
place).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import cache_utils
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from mtp_verify.errors import CacheError, UnsupportedModelError

if TYPE_CHECKING:
    from mtp_verify import CommitPlan

__all__ = ["GrowingLayer", "ModelCache", "WindowLayer", "tree_mask"]

# Stands for layers that read another layer's entries; early versions of transformers 5 have none.
_DUMMY: tuple[type, ...] = tuple(filter(None, [getattr(cache_utils, "DummyLayer", None)]))


class GrowingLayer(DynamicLayer):
    """A dynamic layer that keeps spare room, so that a step copies its own entries and no others.

    `DynamicLayer` concatenates, that is, copies the whole cache in every layer of every step. Here
    `keys` and `values` are views of a larger buffer that grows by a quarter when it is full.
    Whatever else assigns to `keys` or `values` (reordering, repeating, a user) is noticed and
    taken over.
    """

    is_initialized: bool

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
        views = self._views
        is_ours = views is not None and views[0] is self.keys and views[1] is self.values
        if self._buffers is None or not is_ours or end > self._buffers[0].shape[-2]:
            self._grow(start, end, key_states, value_states)
        keys, values = self._buffers  # type: ignore[misc]
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self._show(end)
        return self.keys, self.values

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last `-tokens_to_remove` entries; their room is used again."""
        views = self._views
        is_ours = views is not None and views[0] is self.keys and views[1] is self.values
        if tokens_to_remove < 0 and is_ours:
            self._show(self.get_seq_length() + tokens_to_remove)
        else:
            super().crop(tokens_to_remove)

    def _show(self, length: int) -> None:
        keys, values = self._buffers  # type: ignore[misc]
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]
        self._views = (self.keys, self.values)

    def _grow(self, start: int, end: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        room = end + max(64, end // 4)
        old = (self.keys, self.values)
        fresh = []
        for new, kept in zip((keys, values), old, strict=True):
            buffer = new.new_empty((*new.shape[:2], room, new.shape[3]))
            if start:
                buffer[:, :, :start] = kept
            fresh.append(buffer)
        self._buffers = (fresh[0], fresh[1])


class WindowLayer(DynamicSlidingWindowLayer):
    """A sliding-window layer that shows each forward its window and no more.

    While the past is recorded for a rollback, early versions of transformers 5 show all of it,
    which is more than the mask covers where two forwards come before a crop.
    """

    @classmethod
    def from_layer(cls, layer: DynamicSlidingWindowLayer) -> WindowLayer:
        """Take over a plain layer's entries and start to record its past."""
        window = cls(layer.sliding_window)
        window.__dict__.update(layer.__dict__)
        window.activate_past_recording()
        return window

    def to_layer(self) -> DynamicSlidingWindowLayer:
        """Return a plain layer with the same entries, none of them behind the window."""
        if self.is_initialized:
            self.crop(0)
        plain = DynamicSlidingWindowLayer(self.sliding_window)
        plain.__dict__.update(self.__dict__)
        plain.record_past = False
        return plain

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append entries (B, heads, n, width) and return those that the mask covers."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        num_visible = self.sliding_window - 1 + key_states.shape[-2]
        return keys[:, :, -num_visible:], values[:, :, -num_visible:]


class ModelCache:
    """A transformers dynamic cache as the decoder uses it: a length, commits, and a way out.

    While it is in use, its layers are `GrowingLayer`s and `WindowLayer`s; `finish` puts plain ones
    back.

    Args:
        cache: full and sliding-window layers may be mixed; changed in place.

    Raises:
        UnsupportedModelError: a cache, or a layer of it, that cannot be rolled back; names it.
    """

    def __init__(self, cache: DynamicCache) -> None:
        if not isinstance(cache, DynamicCache):
            msg = (
                f"{type(cache).__name__} cannot be rolled back after a rejected draft; use the "
                "default dynamic cache (leave cache_implementation unset)"
            )
            raise UnsupportedModelError(msg, slug="unsupported_cache")
        if getattr(cache, "offloading", False):
            msg = "an offloaded DynamicCache is not supported; create it with offloading=False"
            raise UnsupportedModelError(msg, slug="unsupported_cache")
        known = (DynamicLayer, DynamicSlidingWindowLayer, GrowingLayer, WindowLayer, *_DUMMY)
        for index, layer in enumerate(cache.layers):
            if type(layer) not in known:
                msg = (
                    f"cache layer {index} is a {type(layer).__name__}, which cannot be rolled "
                    "back after a rejected draft; supported are models of full and sliding-window "
                    "attention"
                )
                raise UnsupportedModelError(msg, slug="unsupported_cache")
        self.kv = cache
        cache.layers = [_taken_over(layer) for layer in cache.layers]
        if getattr(cache, "layer_class_to_replicate", None) is DynamicLayer:
            cache.layer_class_to_replicate = GrowingLayer
        self._sliding = [layer for layer in cache.layers if isinstance(layer, WindowLayer)]
        self._holder = next(
            (layer for layer in cache.layers if not isinstance(layer, _DUMMY)), None
        )

    @property
    def length(self) -> int:
        """Number of entries, those of nodes that are not committed yet included."""
        if self._holder is None:
            return int(self.kv.get_seq_length())
        return int(self._holder.get_seq_length())

    @property
    def windows(self) -> tuple[bool, int | None]:
        """Whether some layer sees everything, and the width of sliding layers (None: no such)."""
        if not self._sliding:
            return True, None
        window = int(self._sliding[0].sliding_window)
        return len(self._sliding) < len(self.kv.layers), window

    def commit(self, plan: CommitPlan) -> None:
        """Keep the accepted path: apply the plan's moves, then drop everything after `plan.length`.

        Raises:
            CacheError: the plan keeps more entries than there are.
        """
        if len(plan.moves):
            total = self.length
            moves = torch.as_tensor(plan.moves)
            for layer in self.kv.layers:
                if isinstance(layer, _DUMMY) or not layer.is_initialized:
                    continue
                # A sliding layer has dropped its oldest entries: its slots count from there.
                slots = (moves - (total - layer.keys.shape[-2])).to(layer.keys.device)
                for entries in (layer.keys, layer.values):
                    # All sources are read before any target is written.
                    entries[:, :, slots[:, 1]] = entries[:, :, slots[:, 0]]
        self.crop(plan.length)

    def crop(self, length: int) -> None:
        """Drop all entries after the first `length`.

        Raises:
            CacheError: there are fewer entries than that.
        """
        surplus = self.length - length
        if surplus < 0 or length < 0:
            msg = f"the cache holds {self.length} entries and cannot be cut to {length}"
            raise CacheError(msg, slug="bad_length")
        # A forward that failed half-way leaves layers of different lengths: each is cut by its own.
        # Sliding layers keep their past until they are told, by 0 as well, that all is committed.
        for layer in self.kv.layers if surplus else self._sliding:
            if not isinstance(layer, _DUMMY) and layer.is_initialized:
                layer.crop(min(length - layer.get_seq_length(), 0))

    def finish(self, num_padding: int = 0) -> DynamicCache:
        """Return the cache with plain layers, as the library's own generation leaves it.

        Args:
            num_padding: masked entries to put in front, so that the entries line up with a row that
                was padded on the left.
        """
        cache = self.kv
        cache.layers = [
            layer.to_layer() if isinstance(layer, (GrowingLayer, WindowLayer)) else layer
            for layer in cache.layers
        ]
        if getattr(cache, "layer_class_to_replicate", None) is GrowingLayer:
            cache.layer_class_to_replicate = DynamicLayer
        for layer in cache.layers:
            if num_padding and not isinstance(layer, _DUMMY) and layer.is_initialized:
                _pad_left(layer, num_padding)
        return cache


def _taken_over(layer: Any) -> Any:
    if type(layer) is DynamicLayer:
        return GrowingLayer.from_layer(layer)
    if type(layer) is DynamicSlidingWindowLayer:
        return WindowLayer.from_layer(layer)
    return layer


def _pad_left(layer: DynamicLayer, num_padding: int) -> None:
    room = num_padding
    if isinstance(layer, DynamicSlidingWindowLayer):
        room = min(num_padding, max(layer.sliding_window - 1 - layer.keys.shape[-2], 0))
        layer.cumulative_length += num_padding
    if room:
        layer.keys = torch.nn.functional.pad(layer.keys, (0, 0, room, 0))
        layer.values = torch.nn.functional.pad(layer.values, (0, 0, room, 0))


def tree_mask(
    ancestors: torch.Tensor,
    past: int,
    dtype: torch.dtype,
    *,
    window: int | None = None,
    depths: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the additive attention mask of a tree behind `past` committed entries.

    Additive floats are the one form that both eager and SDPA attention take: booleans are added as
    0 and 1 by eager attention, silently.

    Args:
        ancestors: (N+1, N+1) bool, row i marks node i and its ancestors.
        past: committed entries, all of them visible to every node.
        dtype: of the model.
        window: width of a sliding-window layer, which holds min(past, window - 1) old entries; keys
            are hidden by their position, not by their index.
        depths: (N+1,) int, needed with `window`.

    Returns:
        (1, 1, N+1, kept + N+1), 0 where visible and the lowest finite value elsewhere.
    """
    num_nodes = ancestors.shape[0]
    kept = past if window is None else min(past, window - 1)
    visible = torch.ones((num_nodes, kept + num_nodes), dtype=torch.bool, device=ancestors.device)
    visible[:, kept:] = ancestors
    if window is not None:
        if depths is None:
            msg = "a sliding-window mask needs the depths of the nodes"
            raise CacheError(msg, slug="missing_depths")
        old = torch.arange(past - kept, past, device=ancestors.device)
        keys = torch.cat([old, past + depths])
        visible &= (past + depths)[:, None] - keys[None, :] < window
    mask = torch.zeros(visible.shape, dtype=dtype, device=ancestors.device)
    mask.masked_fill_(~visible, torch.finfo(dtype).min)
    return mask[None, None]
