"""A target that is a function from token paths to rows, so that its law is known exactly."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from transformers.cache_utils import DynamicCache

    from mtp_verify._core import CommitPlan
    from mtp_verify.caches.many import ManyCache

__all__ = ["BatchTableTarget", "TableCache", "TableTarget"]


class TableCache:
    """The tokens of a sequence, node by node: what a KV cache would hold entries for."""

    capacity: int | None = None
    is_recurrent = False

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self.tokens = list(tokens)

    @property
    def length(self) -> int:
        """Number of entries."""
        return len(self.tokens)

    def commit(self, plan: CommitPlan) -> None:
        """Apply the moves one after the other, in place, and cut."""
        for source, target in plan.moves.tolist():
            self.tokens[target] = self.tokens[source]
        self.crop(plan.length)

    def crop(self, length: int) -> None:
        """Keep the first `length` entries."""
        del self.tokens[length:]

    def finish(self, num_padding: int = 0) -> list[int]:
        """Return the tokens, behind `num_padding` entries of -1."""
        return [-1] * num_padding + self.tokens


class TableTarget:
    """A `Target` made of a function.

    It sees a tree through the mask and the positions alone, as a transformer does, so that wrong
    masks, positions and commits change its rows.

    Args:
        rows: given the tokens up to and including a node, the logits (V,) after it.
        vocab_size: V.
        max_length: most tokens of a sequence, or None.
        eos_ids: tokens that end a sequence.
        dtype: of the logits.
        hidden: given the same tokens and a layer's number, its (d,) hidden state; None: it has
            none.
    """

    def __init__(
        self,
        rows: Callable[[tuple[int, ...]], np.ndarray | Sequence[float]],
        vocab_size: int,
        *,
        max_length: int | None = None,
        eos_ids: tuple[int, ...] = (),
        dtype: torch.dtype = torch.float32,
        hidden: Callable[[tuple[int, ...], int], torch.Tensor] | None = None,
    ) -> None:
        self.rows, self.hidden = rows, hidden
        self.vocab_size: int | None = vocab_size
        self.max_length, self.eos_ids = max_length, eos_ids
        self.device, self.dtype = torch.device("cpu"), dtype
        self.tree_obstacle: str | None = None
        self.num_forwards = 0

    def new_cache(self, past: Any | None = None) -> TableCache:
        """Return an empty cache, or one that holds the tokens `past`."""
        return TableCache(() if past is None else past)

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor | None,
        tree_mask: torch.Tensor | None,
        cache: TableCache,
        hidden_layers: Sequence[int] = (),
        *,
        num_logits: int,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """See `Target.forward`; a node's path is what its mask shows, in the order of positions."""
        self.num_forwards += 1
        past, fresh = tuple(cache.tokens), tokens[0].tolist()
        places = range(len(fresh)) if positions is None else (positions[0] - len(past)).tolist()
        rows = []
        states: list[list[torch.Tensor]] = [[] for _ in hidden_layers]
        first = len(fresh) - num_logits
        for node in range(0 if self.hidden is not None and hidden_layers else first, len(fresh)):
            seen = [
                (places[other], fresh[other])
                for other in range(len(fresh))
                if (other <= node if tree_mask is None else bool(tree_mask[node, other]))
            ]
            if sorted(place for place, _ in seen) != list(range(len(seen))):
                message = (
                    f"node {node} sees nodes at the depths {sorted(place for place, _ in seen)}"
                )
                raise ValueError(message)
            path = past + tuple(token for _, token in sorted(seen))
            if node >= first:
                rows.append(torch.as_tensor(self.rows(path), dtype=self.dtype))
            if self.hidden is not None:
                for layer, kept in zip(hidden_layers, states, strict=True):
                    kept.append(self.hidden(path, layer))
        cache.tokens.extend(fresh)
        if self.hidden is None or not hidden_layers:
            return torch.stack(rows), None
        return torch.stack(rows), tuple(torch.stack(kept) for kept in states)


class BatchTableTarget(TableTarget):
    """A `TableTarget` that runs many sequences in one forward, over the caches that ship.

    Its one layer keeps tokens as keys and positions as values, so that what a node sees is what the
    cache shows under the mask: a block in the wrong place changes its rows.
    """

    batch_obstacle: str | None = None

    def new_kv(self) -> DynamicCache:
        """See `BatchTarget.new_kv`."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        cache = DynamicCache()
        cache.layers = [DynamicLayer()]
        return cache

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor | None,
        tree_mask: torch.Tensor | None,
        cache: Any,
        hidden_layers: Sequence[int] = (),
        *,
        num_logits: int,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """See `Target.forward`; over a cache of many it runs one slot, as the cache was aimed."""
        if isinstance(cache, TableCache):
            run = partial(super().forward, num_logits=num_logits)
            return run(tokens, positions, tree_mask, cache, hidden_layers)
        self.num_forwards += 1
        count = tokens.shape[1]
        with cache.writing(count):
            seen, _ = cache.kv.layers[0].update(*_entries(tokens, tokens))
        text = seen[0, 0, :, 0].int().tolist()
        start = len(text) - count
        paths = [tuple(text[: start + node + 1]) for node in range(count)]
        logits, states = self._read([paths], hidden_layers)
        return logits[0, -num_logits:], tuple(state[0] for state in states) or None

    def forward_slots(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        ancestors: torch.Tensor,
        cache: ManyCache,
        hidden_layers: Sequence[int] = (),
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """See `BatchTarget.forward_slots`; a node that sees no path has a row of NaN."""
        self.num_forwards += 1
        cache.aim(tokens.shape[1], tokens.device)
        keys, values = cache.kv.layers[0].update(*_entries(tokens, positions))
        paths: list[list[tuple[int, ...] | None]] = []
        for slot, start in enumerate(cache.lengths):
            text, places = (entries[slot, 0, :, 0].int().tolist() for entries in (keys, values))
            paths.append([])
            for mask in ancestors[slot].tolist():
                nodes = [start + node for node, is_seen in enumerate(mask) if is_seen]
                nodes.sort(key=places.__getitem__)
                is_path = [places[node] for node in nodes] == list(range(start, start + len(nodes)))
                path = (*text[:start], *(text[node] for node in nodes))
                paths[-1].append(path if is_path else None)
        return self._read(paths, hidden_layers)

    def _read(
        self, paths: Sequence[Sequence[tuple[int, ...] | None]], layers: Sequence[int]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return rows (B, W, V) and hidden states (B, W, d) per layer."""
        nothing = [float("nan")] * (self.vocab_size or 0)

        def row(path: tuple[int, ...] | None) -> torch.Tensor:
            return torch.as_tensor(nothing if path is None else self.rows(path), dtype=self.dtype)

        def each(made: Callable[[tuple[int, ...] | None], torch.Tensor]) -> torch.Tensor:
            return torch.stack([torch.stack([made(path) for path in slot]) for slot in paths])

        if (hidden := self.hidden) is None:
            return each(row), ()

        def state(layer: int, path: tuple[int, ...] | None) -> torch.Tensor:
            return hidden(path or (), layer)

        return each(row), tuple(each(partial(state, layer)) for layer in layers)


def _entries(tokens: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (B, 1, W, 1) keys and values of a forward."""
    return tokens[:, None, :, None].float(), positions[:, None, :, None].float()
