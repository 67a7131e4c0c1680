"""What a causal head keeps of a sequence: true pairs, a draft's nodes, and how these are run."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtp_verify.heads.base import ContextTokens
from mtp_verify.heads.blocks.base import Segment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.caches.dynamic import GrowingLayer

__all__ = ["CausalState", "Node", "Run"]


@dataclass
class Node:
    """A node that was run.

    While levels move from module to module, a pair's token is further ahead than its hidden state:
    module m first reads the path's token at depth 1 in the row m positions before its newest. A
    node at depth d therefore runs the d newest rows of module d; a module that is used again runs
    one row a node.
    """

    depth: int
    # (k,) tokens of its path, its own last: as many as a module may read, at least that one.
    path: torch.Tensor
    # Drafted entries of its module that are on its path, its own included: (k,) int64 where only
    # the device knows whom it follows.
    entries: list[int] | torch.Tensor
    rows: torch.Tensor  # (1, k, d), what its own rows hand to the next module
    last: torch.Tensor  # (1, 1, d), the newest of them


@dataclass
class CausalState:
    """State of a sequence in a causal head."""

    layers: list[list[GrowingLayer]]  # keys and values by module and block
    num_true: list[int]  # by module: entries that come from true pairs
    first: int = 0  # position of the first pair's hidden state
    context_tokens: ContextTokens = field(default_factory=ContextTokens)
    carry: list[torch.Tensor | None] = field(default_factory=list)  # by module: its last true row
    nodes: list[Node] = field(default_factory=list)
    latest: int = 0  # the first node of the last call

    @property
    def num_nodes(self) -> int:
        """Nodes run since the last `read`, the root included."""
        return len(self.nodes)

    @property
    def num_entries(self) -> list[int]:
        """Entries of each module, drafted ones included."""
        return [layers[0].get_seq_length() for layers in self.layers]

    def rollback(self) -> None:
        """Drop everything that was drafted; true pairs stay."""
        del self.nodes[1:]
        self.latest = 0
        for layers, num_true in zip(self.layers, self.num_true, strict=True):
            for layer in layers:
                if (surplus := layer.get_seq_length() - num_true) > 0:
                    layer.crop(-surplus)

    def followed(self, parents: Sequence[int] | torch.Tensor) -> list[Node]:
        """Return the nodes of these numbers, as `Head.step` takes them."""
        if isinstance(parents, torch.Tensor):
            return _gather(self.nodes[self.latest :], parents)
        return [self.nodes[parent] for parent in parents]


class Run:
    """Nodes of a sequence that one module runs together.

    Args:
        state: of the sequence.
        module: its number.
        above: the node that each of them follows.
        words: (1,) int64 each, their tokens.

    Attributes:
        hidden: (1, n, d), the rows that the module reads; a node may have several.
        tokens: (n,) int64, the token after each.
        places: position of each.
        ends: of each node, the place behind its last row.
    """

    def __init__(
        self, state: CausalState, module: int, above: Sequence[Node], words: Sequence[torch.Tensor]
    ) -> None:
        self._state, self._module, self._above = state, module, above
        num_modules, true = len(state.layers), state.num_true[module]
        past = self._past = state.layers[module][0].get_seq_length()
        hidden: list[torch.Tensor] = []
        tokens: list[torch.Tensor] = []
        self._paths: list[torch.Tensor] = []
        self._seen: list[Any] = []  # drafted entries that each row sees
        self.places: list[int] = []
        self.ends: list[int] = []
        for node, word in zip(above, words, strict=True):
            rows, entries, depth = node.last, node.entries, node.depth + 1
            # Modules that are used again read one token; those before them the whole path.
            path = word if depth >= num_modules else torch.cat((node.path, word))
            self._paths.append(path)
            if depth == module:
                carry, entries = state.carry[module - 1], []
                rows = node.rows if carry is None else torch.cat((carry, node.rows), dim=1)
            count = rows.shape[1]
            hidden.append(rows)
            tokens.append(path[-count:])
            # The root's pair is at the last true position of module 0.
            newest = state.first + state.num_true[0] - 1 + depth
            self.places += range(newest - count + 1, newest + 1)
            for _ in range(count):
                own = past - true + len(self._seen)
                if isinstance(entries, torch.Tensor):
                    entries = torch.cat((entries, entries.new_full((1,), own)))
                else:
                    entries = [*entries, own]
                self._seen.append(entries)
            self.ends.append(len(self._seen))
        self.hidden, self.tokens = torch.cat(hidden, dim=1), torch.cat(tokens)

    @property
    def context(self) -> ContextTokens:
        """The tokens of the context that its head may draft."""
        return self._state.context_tokens

    def segment(self, window: int | None) -> Segment:
        """Return what these rows see, at most `window` positions back."""
        true = self._state.num_true[self._module]
        is_known = window is None and not isinstance(self._seen[0], torch.Tensor)
        return Segment(
            len(self._seen),
            partial(self._mask, window),
            self._state.layers[self._module],
            num_true=true,
            num_held=self._past - true,
            paths=self._seen if is_known else None,
        )

    def _mask(self, window: int | None) -> torch.Tensor | None:
        state, module, seen = self._state, self._module, self._seen
        past, count, true = self._past, len(seen), state.num_true[module]
        if window is None and all(len(entries) == past + count - true for entries in seen):
            return None
        # On the host: a few rows are filled there before an operator of a device has started.
        visible = np.zeros((count, past + count), bool)
        visible[:, :true] = True
        if window is not None:
            keys = np.arange(true) + (state.first + module)
            visible[:, :true] = keys > np.array(self.places)[:, None] - window
        inside = seen if window is None else [entries[-window:] for entries in seen]
        if isinstance(seen[0], torch.Tensor):
            columns = true + torch.stack(inside)
            mask = torch.from_numpy(visible).to(columns.device)
            return mask.scatter_(1, columns, torch.ones_like(columns, dtype=torch.bool))[None, None]
        for row, entries in enumerate(inside):
            visible[row, [true + entry for entry in entries]] = True
        return torch.from_numpy(visible[None, None]).to(self.hidden.device)

    def nodes(self, recycled: torch.Tensor) -> list[Node]:
        """Return the nodes, given what their rows (1, n, d) hand to the next module."""
        made, start = [], 0
        for node, path, end in zip(self._above, self._paths, self.ends, strict=True):
            own = recycled[:, start:end]
            made.append(Node(node.depth + 1, path, self._seen[end - 1], own, own[:, -1:]))
            start = end
        return made


def _gather(nodes: Sequence[Node], index: torch.Tensor) -> list[Node]:
    """Return for each of (n,) numbers, which the host does not read, a node like that one."""
    entries = [
        torch.as_tensor(node.entries, dtype=torch.int64, device=index.device) for node in nodes
    ]
    fields = [
        [node.path for node in nodes],
        entries,
        [node.rows for node in nodes],
        [node.last for node in nodes],
    ]
    parts = [torch.stack(values)[index].unbind() for values in fields]
    return [Node(nodes[0].depth, *own) for own in zip(*parts, strict=True)]
