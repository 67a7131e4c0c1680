"""A draft that stays on a device, tokens and form, until it has been run there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtp_verify._core import Draft, TokenTree
from mtp_verify.verifier.kernels.device.arena import sent
from mtp_verify.verifier.kernels.device.forest import NO_NODE, ancestors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mtp_verify.verifier.params import SamplingParams
    from mtp_verify.verifier.words import Law

__all__ = ["Sketch", "blank", "bounds_of", "merged", "star"]


@dataclass(frozen=True, eq=False)
class Sketch:
    """A draft of which the host knows how large it gets at most.

    Attributes:
        table: (4, N+1) int64 on the target's device, N >= 1: parents, tokens, which were sampled,
            and which of `logits` follow, as `kernels.device.forest` describes; the root's token is
            not read.
        law: how its tokens were chosen.
        form: a tree of as many nodes; a chain only if the draft is one.
        bounds: how deep it gets at most, and how many children a node has.
        logits: (rows, columns) those that tokens were drawn from; None where none was.
        params: how these rows are shaped.
        vocab: int (columns,), the token of each column where there is a sub-vocabulary.
    """

    table: torch.Tensor
    law: Law
    form: TokenTree
    bounds: tuple[int, int]
    logits: torch.Tensor | None = None
    params: SamplingParams | None = None
    vocab: Any | None = None

    @classmethod
    def of(cls, draft: Draft, device: torch.device) -> Sketch:
        """Return a deterministic draft of the host on a device."""
        tree = draft.tree
        rows = [np.zeros(tree.num_nodes, np.int64), np.full(tree.num_nodes, -1)]
        table = sent(torch.from_numpy(np.stack([tree.parents, draft.tokens, *rows])), device)
        return cls(table, draft.law, tree, bounds_of(tree))

    @property
    def num_nodes(self) -> int:
        """The most that it has, the root included."""
        return self.form.num_nodes

    @property
    def blank(self) -> Draft:
        """A draft of its form, of tokens that mean nothing."""
        return blank(self.form)

    @property
    def sampled(self) -> NDArray[np.bool_]:
        """(N+1,) a guess at which nodes were sampled: of the best siblings that follow, none."""
        if self.law in ("deterministic", "coupled"):
            return np.zeros(self.num_nodes, np.bool_)
        is_first = np.append(True, np.diff(self.form.parents) != 0)
        return is_first if self.law == "top_plus_one" else np.ones(self.num_nodes, np.bool_)

    @cached_property
    def ancestors(self) -> torch.Tensor:
        """(N+1, N+1) bool, whether the second node is the first or above it."""
        return ancestors(self.table[:1])[0]

    @property
    def depths(self) -> torch.Tensor:
        """(N+1,) int64; 0 where there is no node."""
        return self.ancestors.sum(1) - 1

    def draft(self, root: int, table: NDArray[np.int64], logits: Any | None) -> Draft:
        """Return the draft, once its table and its rows are on the host."""
        parents, tokens, sampled, rows = table[:, table[0] > NO_NODE]
        own: dict[str, Any] = {}
        if self.law in ("top_plus_one", "mixed"):
            own["sampled"] = sampled > 0
        if logits is not None and sampled.any():
            own |= {"logits": logits, "rows": rows, "params": self.params, "vocab": self.vocab}
        return Draft(TokenTree(parents), [root, *tokens[1:]], law=self.law, **own)


def blank(tree: TokenTree) -> Draft:
    """Return a draft of some form, of tokens that mean nothing."""
    siblings: dict[int, int] = {}
    tokens = [0] * tree.num_nodes
    for node, parent in enumerate(tree.parents.tolist()):  # Siblings differ.
        tokens[node] = siblings[parent] = siblings.get(parent, -1) + 1
    return Draft(tree, tokens)


def bounds_of(tree: TokenTree) -> tuple[int, int]:
    """Return the depth of a tree, and the most children of a node."""
    above = tree.parents[1:]
    return int(max(tree.depths)), int(np.bincount(above).max()) if len(above) else 0


def star(num_drafted: int) -> TokenTree:
    """Return a form of so many nodes for trees of which nothing else is known."""
    return TokenTree([-1] + [0] * num_drafted)


def merged(drafts: Sequence[Draft | Sketch], limit: int) -> Sketch:
    """Return the union of deterministic drafts, as `growers.merge` makes it, of at most `limit`.

    One of them at least is on a device.
    """
    device = next(draft.table.device for draft in drafts if isinstance(draft, Sketch))
    sketches = [Sketch.of(d, device) if isinstance(d, Draft) else d for d in drafts]
    tables = [sketch.table for sketch in sketches]
    counts = [table.shape[1] - 1 for table in tables]
    # All nodes below the one root, draft after draft; parents are numbered through all of them.
    starts = np.cumsum([0, *counts[:-1]]).tolist()
    parent = torch.cat(
        [
            torch.where(table[0, 1:] > 0, table[0, 1:] + start, table[0, 1:])
            for table, start in zip(tables, starts, strict=True)
        ]
    )
    token = torch.cat([table[1, 1:] for table in tables])
    exists = parent > NO_NODE
    above = torch.nn.functional.pad(parent.clamp(min=0), (1, 0))
    same_token = exists[:, None] & exists & (token[:, None] == token)
    is_same = torch.nn.functional.pad(torch.zeros_like(same_token), (1, 0, 1, 0))
    is_same[0, 0] = True
    depth = max(sketch.bounds[0] for sketch in sketches)
    for _ in range(depth):  # Equal tokens below equal parents are one node.
        is_same[1:, 1:] = same_token & is_same[above][:, above][1:, 1:]
    numbers = torch.arange(len(above), device=parent.device)
    first = torch.where(is_same, numbers, len(numbers)).amin(1).clamp(max=len(numbers) - 1)
    is_new = torch.nn.functional.pad(exists, (1, 0), value=True) & (first == numbers)
    own = is_new.cumsum(0) - 1  # What a new node's number is.
    size = min(limit, sum(counts))
    is_kept = is_new & (own <= size)
    spare = torch.where(is_kept, own, size + 1)
    table = parent.new_full((4, size + 2), -1)
    table[0], table[1:3] = parent.clamp(max=NO_NODE).amin(), 0  # One bad row marks all.
    table[0, spare] = torch.where(numbers > 0, own[first[above]], -1)
    table[1, spare] = torch.nn.functional.pad(token, (1, 0))
    children = sum(sketch.bounds[1] for sketch in sketches)
    return Sketch(
        table[:, : size + 1], "deterministic", star(size), (min(depth, size), min(children, size))
    )
