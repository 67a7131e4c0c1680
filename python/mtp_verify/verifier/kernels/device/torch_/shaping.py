"""From rows of logits to what describes their shaped rows: K1, K2 and the shaping kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import pad

from mtp_verify.verifier.kernels.device.layout import EMPTY, NOT_FINITE
from mtp_verify.verifier.kernels.device.torch_.arithmetic import (
    even_exponent,
    power_of_two,
    round_up,
)
from mtp_verify.verifier.kernels.device.torch_.rows import ANY_TIE, Logits, Shaped
from mtp_verify.verifier.kernels.device.torch_.weights import (
    around,
    block_sums,
    fold,
    in_blocks,
    lowest,
    weigh,
)

if TYPE_CHECKING:
    from torch import Tensor

    from mtp_verify.verifier.kernels.device.layout import Shaping
    from mtp_verify.verifier.kernels.device.torch_.workspace import Workspace

__all__ = ["keep", "shape"]

# Rows whose largest logit is farther from 0 are brought near it before they are exponentiated.
_REACH = 1048576.0


class _Cut(NamedTuple):
    """Where rows (n,) end: float32 logits, and the token before which equal ones are kept."""

    cut: Tensor
    tie_end: Tensor

    def raised(self, cut: Tensor, where: Tensor) -> _Cut:
        """Return the cut raised to another one in some rows."""
        rises = where & (cut > self.cut)
        return _Cut(torch.where(rises, cut, self.cut), torch.where(rises, ANY_TIE, self.tie_end))


def shape(logits: Logits, *, truncates: bool, workspace: Workspace) -> Shaped:
    """Describe the shaped rows of some logits; `truncates` where a row may have a cut."""
    count, vocab = len(logits.place), logits.rows.shape[1]
    parts = [
        _shape(logits, part, truncates=truncates, wide=workspace.wide)
        for part in workspace.parts(count, vocab)
    ]
    return Shaped(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def keep(
    logits: Logits, part: slice, *, truncates: bool, wide: torch.dtype
) -> tuple[Shaped, Tensor]:
    """Describe some rows before their weights are summed, and return them scaled, origins off.

    Weights are about 1 at the largest logit; in place of sums stand the largest logits of blocks.
    """
    shaping = logits.shaping._replace(
        **{name: values[part] for name, values in logits.shaping._asdict().items()}
    )
    raw = logits.whole(part)
    y = raw / logits.divisor(part)
    is_infinite = torch.isnan(raw).any(1) | (raw == torch.inf).any(1)
    top = y.amax(1)
    is_empty = ~is_infinite & torch.isinf(top)
    status = torch.where(is_infinite, NOT_FINITE, 0) | torch.where(is_empty, EMPTY, 0)
    # What is no distribution goes on as zeros, so that nothing else has to know of it.
    is_bad = is_infinite | is_empty
    y = torch.where(is_bad[:, None], 0.0, y)
    top = torch.where(is_bad, 0.0, top)

    block_tops = in_blocks(y, -torch.inf).amax(2)
    origin = _origin(block_tops, top, shaping)
    y, top, block_tops = y - origin[:, None], top - origin, block_tops - origin[:, None]
    exponent = around(top, wide)
    kept = _Cut(lowest(exponent, wide), torch.full_like(exponent, ANY_TIE, dtype=torch.int64))
    if truncates:
        kept = _truncate(kept, y, top, exponent, shaping, wide)
    tokens = torch.arange(y.shape[1], device=y.device)
    first = torch.where(y == top[:, None], tokens, y.shape[1]).amin(1)
    rows = Shaped(
        origin=origin,
        exponent=exponent,
        cut=kept.cut,
        tie_end=kept.tie_end,
        only=torch.where(shaping.temperature == 0, first, -1),
        sums=block_tops,
        total=exponent.to(wide),
        status=status.to(torch.int32),
    )
    return rows, y


def _shape(logits: Logits, part: slice, *, truncates: bool, wide: torch.dtype) -> Shaped:
    rows, y = keep(logits, part, truncates=truncates, wide=wide)
    block_tops, greedy = rows.sums, rows.only >= 0
    # Weights around the largest one are summed; a power of two then brings the total to [1, 4).
    sums = block_sums(rows.weights_of_scaled(y))
    total = fold(sums)
    shift = torch.where(greedy, 0, even_exponent(total))
    factor = power_of_two(-shift, wide)
    exponent = rows.exponent + shift
    kept = _Cut(rows.cut, rows.tie_end).raised(lowest(exponent, wide), ~greedy)
    # A block may have had weights below the cut that the row has now; all of them are.
    has_kept = (block_tops >= kept.cut[:, None]) | greedy[:, None]
    return rows._replace(
        exponent=exponent,
        cut=kept.cut,
        tie_end=kept.tie_end,
        sums=torch.where(has_kept, sums * factor[:, None], 0.0),
        total=total * factor,
    )


def _origin(block_tops: Tensor, top: Tensor, shaping: Shaping) -> Tensor:
    """Return what is taken off rows: the largest logit of rows that are out of reach, else 0.

    The core sees the first block that holds anything before it knows the row's largest logit,
    unless top-k or min-p make it look for that one first.
    """
    numbers = torch.arange(block_tops.shape[1], device=top.device)
    is_finite = block_tops > -torch.inf
    first = torch.where(is_finite, numbers, block_tops.shape[1] - 1).amin(1)
    first_top = block_tops.gather(1, first[:, None])[:, 0]
    knows_top = (shaping.top_k > 0) | (shaping.min_p > 0)
    is_far = (top.abs() > _REACH) | (~knows_top & (first_top.abs() > _REACH))
    return torch.where(is_far & (shaping.temperature > 0), top, 0.0)


def _truncate(
    kept: _Cut, y: Tensor, top: Tensor, exponent: Tensor, shaping: Shaping, wide: torch.dtype
) -> _Cut:
    """Raise the cuts of rows (n, V) by top-k, top-p and min-p, in the order that each row has.

    Rows are sorted. The mass before a token of top-p is summed in that order, from the largest
    weight down; the core sums in another one, so the sums agree to about 1e-12.
    """
    vocab = y.shape[1]
    # Zeros of both signs are one logit. A stable sort leaves equal ones by ascending token.
    falling, order = torch.sort(y + 0.0, dim=1, descending=True, stable=True)

    def at(places: Tensor, values: Tensor) -> Tensor:
        return values.gather(1, places.clamp(0, vocab - 1)[:, None])[:, 0]

    min_p = round_up(top.to(wide) + shaping.log_min_p.to(wide))
    has_min_p = shaping.min_p > 0
    kept = kept.raised(min_p, has_min_p & (shaping.min_p_first > 0))

    count = torch.minimum(shaping.top_k.long(), (y > -torch.inf).sum(1))
    has_top_k = (shaping.top_k > 0) & (shaping.top_k < vocab)
    kept = kept.raised(at(count - 1, falling), has_top_k)

    weights = weigh(falling, exponent[:, None], wide).to(wide)
    masses = torch.where(falling >= kept.cut[:, None], weights, 0.0).cumsum(1)
    goal = shaping.top_p.to(wide) * masses[:, -1]
    before = pad(masses, (1, 0))[:, :-1]
    last = ((falling >= kept.cut[:, None]) & (before < goal[:, None])).sum(1) - 1
    has_top_p = shaping.top_p < 1
    kept = _Cut(
        torch.where(has_top_p, at(last, falling), kept.cut),
        torch.where(has_top_p, at(last, order) + 1, kept.tie_end),
    )
    return kept.raised(min_p, has_min_p & (shaping.min_p_first == 0))
