"""Trees whose form only the device knows: what a step reads of them is made there.

Such trees are given as a table (4, R) int64 of all nodes, roots included: the parent's number in
the node's own tree (-1 for a root, `NO_NODE` or `BAD_ROW` where there is none), the token, 1 for
what was sampled, and the drafter's row that follows the node (-1 for none). A tree's nodes stand
before the places of it that hold none, and parents before their children.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from mtp_verify.verifier.kernels.device.layout import Nodes, Requests

__all__ = ["BAD_ROW", "NO_NODE", "ancestors", "plant"]

NO_NODE = -2
BAD_ROW = (
    -3
)  # As `NO_NODE`, in all such places of a tree that a row which is no distribution ended.


def ancestors(parents: Tensor) -> Tensor:
    """Return (B, W, W) bool: entry (i, j) marks whether j is i or above it.

    Args:
        parents: (B, W) int64 numbers; negative ones for nodes that have none.
    """
    count = parents.shape[1]
    numbers = torch.arange(count, device=parents.device)
    own = numbers[:, None] == numbers
    seen = (own | (parents[:, :, None] == numbers)).float()
    reach = 1  # How far up it goes.
    while reach < count - 1:
        seen = (seen @ seen).clamp(max=1.0)
        reach *= 2
    return seen > 0


def plant(nodes: Nodes, requests: Requests, table: Tensor, *, width: int, vocab: int) -> None:
    """Write trees into the arrays of a step that was planned for places of theirs.

    Args:
        nodes: Of the step; changed.
        requests: Their counts are changed.
        table: (4, R) as this module describes it.
        width: The most places of a tree.
        vocab: V; what is no token becomes one.
    """
    total = table.shape[1]
    request, number = nodes.request[:total].long(), nodes.number[:total].long()
    parent, token, sampled, drafted = table
    # One tree a line; what a line has no place for stays empty.
    grid = parent.new_full((len(requests.root), width), NO_NODE)
    grid[request, number] = parent
    numbers = torch.arange(width, device=table.device)
    exists = grid > NO_NODE
    above = ancestors(grid) & exists[:, :, None]
    sizes = above.sum(1)
    is_sibling = (grid[:, :, None] == grid[:, None]) & (grid[:, :, None] >= 0)
    is_earlier = is_sibling & (numbers < numbers[:, None])
    before = (is_earlier * sizes[:, None]).sum(2)
    post = sizes - 1 + (above * before[:, None]).sum(2)
    is_child = grid[:, None] == numbers[:, None]
    first = _least(is_child, numbers)
    following = _least(is_sibling & (numbers > numbers[:, None]), numbers)

    root = requests.root.clamp(min=0).long()[request]
    is_there = parent > NO_NODE

    def write(column: Tensor, values: Tensor) -> None:
        column[:total] = torch.where(is_there, values, -1).to(column.dtype)

    def rows(values: Tensor) -> Tensor:
        return torch.where(values >= 0, root + values, -1)

    write(nodes.parent, rows(parent))
    write(nodes.first_child, rows(first[request, number]))
    write(nodes.next_sibling, rows(following[request, number]))
    write(nodes.depth, above.sum(2)[request, number] - 1)
    write(nodes.post, post[request, number])
    nodes.token[:total] = token.clamp(0, vocab - 1).to(nodes.token.dtype)
    write(nodes.sampled, sampled)
    write(nodes.drafted, drafted)
    write(nodes.request, request)
    requests.count.copy_(exists.sum(1))


def _least(mask: Tensor, numbers: Tensor) -> Tensor:
    """Return the first number (B, W) that is marked in (B, W, W), or -1."""
    count = len(numbers)
    first = torch.where(mask, numbers, count).amin(2)
    return torch.where(first < count, first, -1)
