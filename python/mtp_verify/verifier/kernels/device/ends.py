"""Chains whose tokens only the device knows end there as they would on the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from mtp_verify.verifier.kernels.device.layout import Step

__all__ = ["end_chains"]


def end_chains(step: Step, ends: Tensor) -> None:
    """Take what stands below the first end of a chain out of a planned step.

    A rule may decide by what is drafted below a node, so that the same draft has to end where it
    ends on the host. Nothing is read there.

    Args:
        step: Planned; its nodes and requests are changed.
        ends: (B, E) int32, the tokens that end each request's text, filled up with -1; nothing but
            -1 for requests whose trees are no chains, or stay as they are.
    """
    nodes, requests = step.nodes, step.requests
    request = nodes.request.clamp(min=0).long()
    is_end = (nodes.token[:, None] == ends[request]).any(1) & (nodes.parent >= 0)
    # A request's nodes stand one after the other: ends before a node are those since its root.
    before = is_end.cumsum(0) - is_end.long()
    root = requests.root.clamp(min=0).long()
    is_below = (nodes.request >= 0) & (before > before[root][request])
    kept = requests.count.new_zeros(len(requests.count))
    kept.index_add_(0, request, (~is_below & (nodes.request >= 0)).to(kept.dtype))
    requests.count.copy_(kept)
    nodes.first_child.masked_fill_(is_end | is_below, -1)
    nodes.request.masked_fill_(is_below, -1)
