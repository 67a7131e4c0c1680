"""A draft whose tokens stay on a device until they have been run there.

What the host knows of it is its form, which no token decides: a chain, or a fixed shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtp_verify._core import Draft, TokenTree

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from mtp_verify.drafters.base import Request
    from mtp_verify.verifier.kernels.device.drawer import Drawer
    from mtp_verify.verifier.params import SamplingParams
    from mtp_verify.verifier.words import Law

__all__ = ["Picker", "Sketch", "level_by_level"]


class Picker:
    """Takes the tokens of one request from rows where these are.

    Args:
        params: how rows are shaped before tokens are drawn; None takes the most likely ones.
    """

    def __init__(self, params: SamplingParams | None) -> None:
        self._params = params
        self._drawer: Drawer | None = None

    def pick(self, row: torch.Tensor, request: Request, nodes: Sequence[int]) -> list[torch.Tensor]:
        """Return columns (1,) int64 of a row (1, columns), for children of a node.

        They are those that a grower takes on the host.
        """
        if self._params is None:
            return most_likely(row, len(nodes))
        return [self._draw(row, self._params, request, node) for node in nodes]

    def _draw(
        self, row: torch.Tensor, params: SamplingParams, request: Request, node: int
    ) -> torch.Tensor:
        if self._drawer is None:
            from mtp_verify.verifier.kernels.device.drawer import Drawer

            self._drawer = Drawer(1, row.shape[1], row.dtype, row.device)
        address = {"seeds": [request.seed], "positions": [request.position], "nodes": [node]}
        return self._drawer.draw(row, params, **address)


@dataclass(frozen=True, eq=False)
class Sketch:
    """A draft whose form the host knows, and whose tokens it does not.

    Attributes:
        tree: its form; nodes stand level by level.
        tokens: (N,) int64 on the target's device, of the nodes below the root, N >= 1.
        law: how they were chosen: "deterministic", "chain" or "iid".
        logits: (inner, columns) the drafter's rows of the nodes that have children, in their order;
            None for a deterministic draft.
        params: how these rows are shaped.
        vocab: int (columns,), the token of each column where there is a sub-vocabulary.
    """

    tree: TokenTree
    tokens: torch.Tensor
    law: Law
    logits: torch.Tensor | None = None
    params: SamplingParams | None = None
    vocab: Any | None = None

    @property
    def num_nodes(self) -> int:
        """Of the tree, the root included."""
        return self.tree.num_nodes

    @property
    def blank(self) -> Draft:
        """A draft of this form, of tokens that mean nothing."""
        above = self.tree.parents[1:]
        # Siblings differ: the number of each among its own, who stand side by side.
        return Draft(self.tree, [0, *(np.arange(len(above)) - np.searchsorted(above, above))])

    @property
    def rows(self) -> NDArray[np.int64]:
        """(N+1,) which of `logits` follows each node, -1 for none."""
        inner = np.unique(self.tree.parents[1:])
        rows = np.full(self.num_nodes, -1)
        rows[inner] = np.arange(len(inner))
        return rows

    def draft(
        self, root: int, tokens: Sequence[int], logits: Any | None, ends: Collection[int]
    ) -> Draft:
        """Return the draft, once its tokens and its rows are on the host.

        A chain goes down to the first token of `ends`, as if nothing had been drafted below.
        """
        tree, rows = self.tree, self.rows
        if tree.is_chain:
            count = next((n for n, token in enumerate(tokens, 1) if token in ends), len(tokens))
            tree, tokens, rows = TokenTree(range(-1, count)), tokens[:count], rows[: count + 1]
            rows[count] = -1
        own: dict[str, Any] = {}
        if logits is not None:
            own = {"logits": logits, "rows": rows, "params": self.params, "vocab": self.vocab}
        return Draft(tree, [root, *tokens], law=self.law, **own)


def most_likely(row: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Return the columns (1,) of the `count` largest entries of a row (1, columns), in order.

    Of equal ones the lowest comes first, as the growers take them.
    """
    found: list[torch.Tensor] = []
    for _ in range(count):
        if found:
            row = row.scatter(1, found[-1][:, None], -torch.inf)
        found.append(row.argmax(1))
    return found


def level_by_level(tree: TokenTree) -> TokenTree:
    """Return the same form with its nodes in the order in which growers fill it."""
    order = [0]
    for node in order:  # Grows while it is read.
        order += tree.children(node)
    places = {node: place for place, node in enumerate(order)}
    return TokenTree([-1, *(places[int(tree.parents[node])] for node in order[1:])])
