"""The engine's links, of a first child and of a next sibling, as trees and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from mtp_verify._core import TokenTree
from mtp_verify.errors import DraftError
from mtp_verify.verifier.kernels.device.forest import NO_NODE, ancestors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Planted", "links_from_tree", "plant_links", "tree_from_links"]


def tree_from_links(
    next_token: Sequence[int], next_sibling: Sequence[int]
) -> tuple[TokenTree, NDArray[np.int64]]:
    """Read a tree from the engine's links.

    Args:
        next_token: int (D,), the first child of each column, -1 for none.
        next_sibling: int (D,), the next sibling of each column, -1 for none.

    Returns:
        The tree, and int64 (N+1,): the column of each of its nodes. Columns that the root does not
        lead to (the engine leaves out nodes whose parent was not selected) are no nodes. Where the
        links ascend, as the engine's own do, the order of the columns is kept.

    Raises:
        DraftError: A link out of range, or a column that is reached twice; names the column.

    Example:
        >>> tree, columns = tree_from_links([1, 3, -1, -1], [-1, 2, -1, -1])
        >>> tree.parents.tolist(), columns.tolist()
        ([-1, 0, 0, 1], [0, 1, 2, 3])
    """
    width = len(next_token)
    if width == 0 or len(next_sibling) != width:
        found = f"{width} next tokens and {len(next_sibling)} next siblings"
        message = f"links: found {found}, wanted as many of each, and the root at least"
        raise DraftError(message, slug="shape_mismatch")
    parents: dict[int, int] = {0: -1}
    order = [0]  # breadth first: parents before children, siblings as they are linked
    ascending = True
    for node in order:
        child, before = int(next_token[node]), node
        while child != -1:
            if not 0 < child < width or child in parents:
                what = "is linked twice" if child in parents else f"is not in 1 .. {width - 1}"
                place = f"links of column {before}: column {child}"
                message = f"{place} {what}; wanted a tree, -1 for none"
                raise DraftError(message, slug="bad_parent", node=before)
            ascending = ascending and before < child
            parents[child] = node
            order.append(child)
            child, before = int(next_sibling[child]), child
    if ascending:
        order.sort()
    nodes = {column: node for node, column in enumerate(order)}
    tree = TokenTree([-1] + [nodes[parents[column]] for column in order[1:]])
    return tree, np.array(order, np.int64)


def links_from_tree(
    tree: TokenTree, width: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Write a tree as the engine's links, node i in column i.

    Args:
        tree: The tree.
        width: D, at least the number of nodes; columns past the tree have no links to them.

    Returns:
        `next_token` and `next_sibling`, int64 (D,) each.

    Raises:
        DraftError: The tree has more nodes than columns.
    """
    num = len(tree.parents)
    width = num if width is None else width
    if width < num:
        message = f"width: found {width} columns, wanted {num} at least: the root and every node"
        raise DraftError(message, slug="shape_mismatch")
    links = np.full((2, width), -1, np.int64)
    links[0, :num], links[1, :num] = tree.next_token, tree.next_sibling
    return links[0], links[1]


class Planted(NamedTuple):
    """Trees that a device has read from links.

    Attributes:
        table: int64 (4, B * D), as `DeviceDrafts.table`.
        columns: int64 (B, D), the column of each node; the last ones of a tree may be no nodes.
    """

    table: Tensor
    columns: Tensor


def plant_links(candidates: Tensor, next_token: Tensor, next_sibling: Tensor) -> Planted:
    """Do as `tree_from_links` for B trees where they are, without a wait.

    Where the links ascend, the order of the columns is kept; else nodes are ordered by their
    levels, and in a level by their columns. Nothing is raised: a link out of range is as none, and
    of several links to a column one counts, so that what the root leads to is a tree.

    Args:
        candidates: int (B, D), the tokens.
        next_token: int (B, D), the first child of each column, -1 for none.
        next_sibling: int (B, D), the next sibling of each column, -1 for none.
    """
    width = candidates.shape[1]
    numbers = torch.arange(width, device=candidates.device)
    above = _from_where(next_token, numbers)
    before = _from_where(next_sibling, numbers)
    source = torch.where(above >= 0, above, before)
    # The sibling that a parent links to, found by leaps along the siblings.
    eldest = torch.where(above >= 0, numbers, before)
    for _ in range((width - 1).bit_length()):
        eldest = _looked_up(eldest, eldest)
    parents = _looked_up(above, eldest)
    parents[:, 0] = -1

    path = ancestors(parents)
    is_node = path[:, :, 0]
    ascends = (source < numbers) | ~is_node
    ascends[:, 0] = True
    level = torch.where(ascends.all(1, keepdim=True), 0, path.sum(2))
    key = torch.where(is_node, level, width + 1) * width + numbers
    columns = key.argsort(dim=1)
    node = torch.empty_like(columns).scatter(1, columns, numbers.expand_as(columns))
    own = torch.where(is_node, _looked_up(node, parents), NO_NODE).gather(1, columns)
    tokens = candidates.long().gather(1, columns)
    rest = torch.zeros_like(own), torch.full_like(own, -1)
    return Planted(torch.stack([own, tokens, *rest]).flatten(1), columns)


def _from_where(links: Tensor, numbers: Tensor) -> Tensor:
    """Return (B, D), the first column that links to each, or -1."""
    leads = links[:, :, None] == numbers
    return torch.where(leads.any(1), leads.to(torch.int8).argmax(1), -1)


def _looked_up(values: Tensor, columns: Tensor) -> Tensor:
    """Return (B, D), the values at some columns; -1 at those that are -1."""
    return torch.where(columns >= 0, values.gather(1, columns.clamp(min=0)), -1)
