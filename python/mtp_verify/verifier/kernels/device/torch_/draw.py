"""A token drawn after each node, from what is left there: by block, then inside the block.

Prefix sums run over the blocks and then over the tokens of one block, from what the blocks before
it sum to. Where torch adds them in order (on the CPU), they have the core's bits; where it scans
(CUDA) or the core lists a row's few tokens, a point within about 2**-50 of a cell's edge may fall
to the token beside. The least distance is kept as a margin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import pad

from mtp_verify.verifier.kernels.device.layout import BLOCK
from mtp_verify.verifier.kernels.device.torch_.drafter import sums_without
from mtp_verify.verifier.kernels.device.torch_.weights import fold

if TYPE_CHECKING:
    from torch import Tensor

    from mtp_verify.verifier.kernels.device.layout import Step
    from mtp_verify.verifier.kernels.device.torch_.noise import Noise
    from mtp_verify.verifier.kernels.device.torch_.residual import Rows
    from mtp_verify.verifier.kernels.device.torch_.rounds import State
    from mtp_verify.verifier.kernels.device.torch_.workspace import Workspace

__all__ = ["Drawn", "draw", "race"]


class Drawn(NamedTuple):
    """What is drawn after each node; each (R,).

    Attributes:
        token: int64.
        fell_back: bool, whether rounding had emptied the residual.
        edge: Wide, how far the point was from the edge of a cell, as a share of the total.
    """

    token: Tensor
    fell_back: Tensor
    edge: Tensor


def draw(step: Step, rows: Rows, state: State, u: Tensor) -> Drawn:
    """Draw a token after each node by the numbers `u` (R,).

    Where rounding has emptied a residual, p = q up to rounding: the draw falls back to the target's
    row without the tokens that were rejected, or to the whole row if that is nothing either.
    """
    target, trees = rows.target, rows.trees
    everywhere = torch.arange(len(u), device=u.device)
    sums, b, gone = state.sums, state.b, state.gone
    if step.capacity.rounds > 0:
        is_empty = ~(fold(sums) > 0)
        b = torch.where(is_empty, 0.0, b)
        own = trees.token[trees.children]
        rejected = torch.where(trees.is_child & gone[trees.children], own, -1)
        without = sums_without(
            target.sums, rows.vocab, rejected, lambda tokens: rows.at(everywhere, tokens)
        )
        sums = torch.where(is_empty[:, None], without, sums)
        is_nothing = ~(fold(sums) > 0)
        sums = torch.where(is_nothing[:, None], target.sums, sums)
        gone = gone & ~is_nothing[trees.parent]
    else:
        is_empty = torch.zeros_like(trees.used)

    unit = 1.0 / target.total
    total = fold(sums)
    point = u * (total * unit) / unit
    block, before = _find(sums, point)
    start = block[:, None] * BLOCK
    tokens = start + torch.arange(min(BLOCK, rows.vocab), device=u.device)
    weights = rows.left_at(everywhere, tokens.clamp(max=rows.vocab - 1), b, gone)
    weights = torch.where(tokens < rows.vocab, weights, 0.0)
    place, low, high = _find_token(weights, point, before)
    edge = torch.minimum((point - low).abs(), (high - point).abs()) / total
    token = (start[:, 0] + place).clamp(max=rows.vocab - 1)
    is_greedy = target.only >= 0
    return Drawn(
        token=torch.where(is_greedy, target.only, token),
        fell_back=is_empty,
        edge=torch.where(is_greedy, torch.inf, edge),
    )


def _find(sums: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Return the block (n,) in which points (n,) lie, and the sum (n,) of those before it."""
    ends = sums.cumsum(1)
    block = _first(sums > 0, point[:, None] < ends)
    starts = pad(ends, (1, 0))
    return block, starts.gather(1, block[:, None])[:, 0]


def _find_token(weights: Tensor, point: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the place (n,) in a block whose cell holds a point, and the ends of that cell."""
    edges = torch.cat([before[:, None], weights], dim=1).cumsum(1)
    place = _first(weights > 0, point[:, None] < edges[:, 1:])
    ends = edges.gather(1, torch.stack([place, place + 1], dim=1))
    return place, ends[:, 0], ends[:, 1]


def _first(is_positive: Tensor, is_beyond: Tensor) -> Tensor:
    """Return the first positive place beyond the point, or the last positive one; 0 if none is."""
    places = torch.arange(is_positive.shape[1], device=is_positive.device)
    first = torch.where(is_positive & is_beyond, places, len(places)).amin(1)
    last = torch.where(is_positive, places, 0).amax(1)
    return torch.minimum(first, last)


def race(step: Step, rows: Rows, noise: Noise, workspace: Workspace) -> Tensor:
    """Return the winners (R,), int64, of the exponential races of `coupled` after all nodes."""
    vocab = rows.vocab
    tokens = torch.arange(vocab, device=step.logits.device)
    winners = []
    for part in workspace.parts(len(rows.trees.used), vocab):
        y = rows.logits.whole(part) / rows.logits.divisor(part)
        weights = rows.target.weights(part, y, tokens)
        times = -torch.log1p(-noise.race(part, vocab)) / weights
        times = torch.where(weights > 0, times, torch.inf)
        is_least = times == times.amin(1)[:, None]
        # Equal times: the lowest token.
        winners.append(torch.where(is_least, tokens, vocab - 1).amin(1))
    only = rows.target.only
    return torch.where(only >= 0, only, torch.cat(winners))
