"""The trees of a step as tables over its nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from mtp_verify.verifier.kernels.device.layout import Step

__all__ = ["Trees", "tables"]


class Trees(NamedTuple):
    """Who belongs to whom. Rows that stand for nothing are 0, and a mask says so.

    Attributes:
        used: (R,) bool.
        request: (R,) int64.
        core: (R,) int32, of a node's request.
        parent: (R,) int64; of a root the root itself.
        is_root: (R,) bool.
        token: (R,) int64.
        sampled: (R,) bool.
        children: (R, C) int64, rows of the children in order.
        is_child: (R, C) bool.
        place: (R,) int64, which child of its parent a node is.
        is_last: (R,) bool, whether it is the last one.
        without: (R,) bool, whether siblings were drawn without replacement.
        has_set: (R,) bool, whether deterministic children stand behind sampled ones.
    """

    used: Tensor
    request: Tensor
    core: Tensor
    parent: Tensor
    is_root: Tensor
    token: Tensor
    sampled: Tensor
    children: Tensor
    is_child: Tensor
    place: Tensor
    is_last: Tensor
    without: Tensor
    has_set: Tensor

    def of_children(self, values: Tensor) -> Tensor:
        """Return what nodes (R,) say for each place of a child (R, C)."""
        return values[self.children]

    def child_with(self, tokens: Tensor) -> Tensor:
        """Return the row of the first child that carries a token (R,), or -1."""
        matches = self.is_child & (self.of_children(self.token) == tokens[:, None])
        found = torch.full_like(self.parent, -1)
        for place in reversed(range(self.children.shape[1])):
            found = torch.where(matches[:, place], self.children[:, place], found)
        return found


def tables(step: Step) -> Trees:
    """Make the tables of a step's trees."""
    nodes, requests = step.nodes, step.requests
    used = nodes.request >= 0
    request = nodes.request.clamp(min=0).long()
    rows = torch.arange(len(used), device=used.device)
    is_root = nodes.parent < 0
    columns = [torch.where(used, nodes.first_child, -1)]
    while len(columns) < step.capacity.children:
        before = columns[-1]
        following = nodes.next_sibling[before.clamp(min=0).long()]
        columns.append(torch.where(before >= 0, following, -1))
    children = torch.stack(columns, dim=1).long()
    is_child = children >= 0
    # What is no child goes to a place behind the others.
    spare = torch.where(is_child, children, len(rows)).flatten()
    places = torch.arange(children.shape[1], device=used.device).expand_as(children).flatten()
    place = rows.new_zeros(len(rows) + 1).scatter(0, spare, places)[:-1]
    return Trees(
        used=used,
        request=request,
        core=requests.core[request],
        parent=torch.where(is_root, rows, nodes.parent.long()),
        is_root=is_root,
        # A root's token and those of rows that are not used may be anything.
        token=nodes.token.long().clamp(0, step.capacity.vocab - 1),
        sampled=nodes.sampled > 0,
        children=children.clamp(min=0),
        is_child=is_child,
        place=place,
        is_last=nodes.next_sibling < 0,
        without=requests.without[request] > 0,
        has_set=requests.has_set[request] > 0,
    )
