"""Where each request's walk leads, and what it emits."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from mtp_verify.verifier.kernels.device.layout import FALLBACK, LIFTED, TOPDOWN

if TYPE_CHECKING:
    from torch import Tensor

    from mtp_verify.verifier.kernels.device.layout import Step
    from mtp_verify.verifier.kernels.device.torch_.draw import Drawn
    from mtp_verify.verifier.kernels.device.torch_.residual import Rows
    from mtp_verify.verifier.kernels.device.torch_.rounds import State

__all__ = ["follow", "write"]


class Links(NamedTuple):
    """Where a walk goes on from each node; each (R,).

    Attributes:
        child: int64, the row of the child to go to, or -1 to stop.
        is_drawn: bool, whether a draw says so, or that the walk stops.
    """

    child: Tensor
    is_drawn: Tensor


def follow(step: Step, rows: Rows, state: State, drawn: Drawn, u: Tensor) -> Links:
    """Link each node to the child to which its request's walk goes on."""
    trees = rows.trees
    accepted = torch.where(trees.core == LIFTED, _climb(step, rows, state, u), state.accepted)
    hit = trees.child_with(drawn.token)
    # Topdown tests its sampled children: a draw leads to the deterministic ones alone.
    is_forced = (hit >= 0) & ~trees.sampled[hit.clamp(min=0)]
    follows = torch.where(trees.core == TOPDOWN, is_forced, trees.core != LIFTED)
    is_drawn = accepted < 0
    child = torch.where(is_drawn, torch.where(follows, hit, -1), accepted)
    return Links(child, is_drawn)


def _climb(step: Step, rows: Rows, state: State, u: Tensor) -> Tensor:
    """Return the child (R,) of each node on the way to where `lifted` stops, or -1.

    The traversal decides in post-order: it stops at the first node whose number is below its weight
    (before its last child was rejected, too: the weight only falls), the root if at no other. It
    ends as well at the first child whose test is an error.
    """
    trees, post = rows.trees, step.nodes.post.long()
    stops = (u < state.w) & (u < state.w_before)
    stops = state.is_visited & (trees.is_root | (stops & (state.w > 0)))
    stops = (stops | (state.error > 0)) & (trees.core == LIFTED) & trees.used
    requests, count = len(step.requests.root), len(post)
    spare = torch.where(stops, trees.request, requests)
    first = post.new_full((requests + 1,), count)
    first = first.scatter_reduce(0, spare, torch.where(stops, post, count), "amin")
    is_stop = stops & (post == first[trees.request])
    child = torch.full_like(trees.parent, -1)
    own_row = torch.arange(count, device=post.device)
    on_way = is_stop
    for _ in range(step.capacity.depth):
        moves = on_way & ~trees.is_root
        spare = torch.where(moves, trees.parent, count)
        child = torch.cat([child, child[:1]]).scatter(0, spare, own_row)[:-1]
        on_way = torch.zeros_like(on_way)
        on_way = torch.cat([on_way, on_way[:1]]).scatter(0, spare, moves)[:-1]
    return child


def write(step: Step, rows: Rows, state: State, drawn: Drawn, links: Links) -> None:
    """Walk from the roots and write what is emitted into the step's outcomes."""
    trees, nodes, requests, out = rows.trees, step.nodes, step.requests, step.outcomes
    used = requests.root >= 0
    at = requests.root.clamp(min=0).long()
    is_on = used
    count = torch.zeros_like(at)
    last = torch.zeros_like(at)
    status = torch.zeros_like(out.status)
    fault = torch.full_like(out.fault, -1)
    margin = torch.full_like(out.margin, torch.inf)
    tokens, path, logprobs = [], [], []
    for _ in range(step.capacity.depth + 1):
        child = links.child[at]
        goes_on = is_on & (child >= 0)
        following = child.clamp(min=0)
        draws = is_on & links.is_drawn[at]
        token = torch.where(child >= 0, trees.token[following], drawn.token[at])
        weight = rows.at(at, token[:, None])[:, 0]
        logprob = (weight / rows.target.total[at]).log().to(torch.float32)

        # The tests of a node come before its draw.
        error = torch.where(state.error[at] > 0, state.error[at], rows.target.status[at])
        number = torch.where(state.error[at] > 0, state.fault[at], nodes.number[at])
        is_lifted = trees.core[at] == LIFTED
        is_asked = is_on & (draws | (state.error[at] > 0) | ~is_lifted)
        is_wrong = is_asked & (error > 0) & (status == 0)
        fault = torch.where(is_wrong, number, fault)
        status = torch.where(is_wrong, error, status)
        fell_back = draws & drawn.fell_back[at]
        status = torch.where(fell_back, status | FALLBACK, status)
        margin = torch.where(draws, torch.minimum(margin, drawn.edge[at]), margin)

        tokens.append(torch.where(is_on, token, -1))
        logprobs.append(torch.where(is_on, logprob, 0.0))
        path.append(torch.where(goes_on, nodes.number[following], -1))
        last = torch.where(goes_on, nodes.number[following].long(), last)
        count = count + goes_on
        at, is_on = torch.where(goes_on, following, at), goes_on

    numbers = torch.stack(path, dim=1)[:, :-1]
    moves = _moves(numbers.long(), requests.start)
    _put(out.tokens, torch.stack(tokens, dim=1), used, beyond=-1)
    _put(out.path, numbers, used, beyond=-1)
    _put(out.num_accepted, count, used)
    _put(out.logprobs, torch.stack(logprobs, dim=1), used, beyond=0)
    _put(out.moves, moves, used, beyond=-1)
    _put(out.length, requests.start + 1 + count, used)
    _put(out.state_select, last, used)
    _put(out.status, status, used)
    _put(out.fault, fault, used)
    _put(out.margin, margin, used)


def _moves(path: Tensor, start: Tensor) -> Tensor:
    """Return from where to where the entries of paths (B, D) go in a cache: (B, D, 2).

    A node whose entry is in its place already is not moved, and then none before it is: the others
    begin with the first that is.
    """
    depth = path.shape[1]
    to = torch.arange(1, depth + 1, device=path.device).expand_as(path)
    moves = (path >= 0) & (path != to)
    pairs = torch.stack([path, to], dim=2) + start[:, None, None]
    place = torch.where(moves, moves.long().cumsum(1) - 1, depth)
    empty = pairs.new_full((len(path), depth + 1, 2), -1)
    return empty.scatter(1, place[:, :, None].expand_as(pairs), pairs)[:, :depth]


def _put(out: Tensor, values: Tensor, used: Tensor, *, beyond: float | None = None) -> None:
    """Write values (B, ...) where requests are used, and `beyond` to levels that no tree has."""
    where = used.view(-1, *[1] * (out.dim() - 1))
    if beyond is not None:
        own = torch.full_like(out, beyond)
        own[:, : values.shape[1]] = values
        values = own
    out.copy_(torch.where(where, values.to(out.dtype), out))
