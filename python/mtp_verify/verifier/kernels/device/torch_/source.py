"""A drafter's rows as growers see them on a device: likely tokens, draws, races.

The same tokens as the core's growers take from the same rows. A draw's prefix sums are formed in
another order than the core's, so a point within about 2**-50 of a cell's edge may fall beside it.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch

from mtp_verify import _core
from mtp_verify.verifier.kernels.device.layout import Edited, Shaping
from mtp_verify.verifier.kernels.device.torch_.noise import RACE, philox
from mtp_verify.verifier.kernels.device.torch_.rows import Logits
from mtp_verify.verifier.kernels.device.torch_.shaping import keep
from mtp_verify.verifier.kernels.device.torch_.workspace import wide_type

if TYPE_CHECKING:
    from torch import Tensor

    from mtp_verify.verifier.params import SamplingParams

__all__ = ["Source", "draft_noise", "race_noise"]

_DRAFT = 0  # The purpose of drafting, in a noise address.
_WORD = 0xFFFFFFFF
_INTEGERS = {"top_k": torch.int32, "min_p_first": torch.int32, "temperature": torch.float32}


class Source:
    """Rows of a drafter. What is no distribution is read as one in which all tokens are alike.

    Args:
        rows: (F, C) logits of any floating type.
        params: How they are shaped; penalties are for the target's rows.
    """

    def __init__(self, rows: Tensor, params: SamplingParams) -> None:
        """Take the rows; nothing is done yet."""
        self._rows = rows
        self._params = params

    @cached_property
    def _scaled(self) -> tuple[Tensor, Tensor]:
        """Scaled logits (F, C) and weights (F, C)."""
        rows, params = self._rows, self._params
        wide = wide_type(rows.device)
        numbers = _core.tables_of_trees(
            [0, 1], [-1], None, "deterministic", None, params._core, "auto"
        )[2]
        fields = zip(Shaping._fields, numbers[:, 0].tolist(), strict=True)
        shaping = Shaping(
            *(
                torch.full((len(rows),), value, dtype=_INTEGERS.get(name, wide), device=rows.device)
                for name, value in fields
            )
        )
        everywhere = torch.arange(len(rows), device=rows.device)
        logits = Logits(rows, everywhere, shaping, Edited())
        is_cut = params.top_k > 0 or params.top_p < 1 or params.min_p > 0
        shaped, y = keep(logits, slice(None), truncates=is_cut, wide=wide)
        return y, shaped.weights_of_scaled(y)

    @property
    def weights(self) -> Tensor:
        """(F, C) wide, what a token has of its row's `total`."""
        return self._scaled[1]

    @cached_property
    def total(self) -> Tensor:
        """(F,) wide."""
        return self.weights.sum(1)

    @cached_property
    def num_possible(self) -> Tensor:
        """(F,) int64, how many tokens have a weight."""
        return (self.weights > 0).sum(1)

    def probability(self, columns: Tensor) -> Tensor:
        """Return q (F, n), wide, of columns (F, n)."""
        return self.weights.gather(1, columns) / self.total[:, None]

    def best(self, count: int) -> Tensor:
        """Return the `count` most probable columns (F, count), in order; of equal ones the first.

        Where a row has fewer that are possible, what stands behind these is any column.
        """
        if count == 1:  # It is always possible: no weight has to be known.
            y = self._rows.to(torch.float32) / (self._params.temperature or 1.0)
            return y.argmax(1, keepdim=True)
        y, weights = self._scaled
        left = torch.where(weights > 0, y, -torch.inf)
        found: list[Tensor] = []
        for _ in range(count):
            found.append(left.argmax(1, keepdim=True))
            left = left.scatter(1, found[-1], -torch.inf)
        return torch.cat(found, dim=1)

    def draw(self, u: Tensor, without: Tensor | None = None) -> Tensor:
        """Draw columns (F, n) by numbers u (F, n), outside the columns `without` (F, k).

        -1 stands for no column.
        Where nothing is possible there, it is any column.
        """
        weights = self.weights
        if without is not None:
            spare = torch.where(without < 0, weights.shape[1], without)
            weights = torch.nn.functional.pad(weights, (0, 1)).scatter(1, spare, 0.0)[:, :-1]
        ends = weights.cumsum(1)
        total = ends[:, -1:].contiguous()
        place = torch.searchsorted(ends, u.to(ends.dtype) * total, right=True)
        # A point on the last edge belongs to the last possible token.
        return torch.minimum(place, torch.searchsorted(ends, total).clamp(max=ends.shape[1] - 1))

    def race(self, count: int, noise: Tensor) -> Tensor:
        """Return the `count` earliest columns (F, count) of a race whose numbers are `noise` (C,).

        Where a row has fewer that are possible, what stands behind these is any column.
        """
        times = torch.where(self.weights > 0, -torch.log1p(-noise) / self.weights, torch.inf)
        found: list[Tensor] = []
        for _ in range(count):
            found.append(times.argmin(1, keepdim=True))
            times = times.scatter(1, found[-1], torch.inf)
        return torch.cat(found, dim=1)


def draft_noise(seed: int, position: int, count: int) -> Tensor:
    """Return the numbers (count,) on the host by which nodes 1 to `count` of a draft are drawn."""
    nodes = torch.arange(1, count + 1)
    place = nodes.new_tensor(position & _WORD)
    high, low, *_ = philox(_key(seed, nodes), (place, nodes, _DRAFT, 0))
    return _uniform(high, low)


def race_noise(seed: int, position: int, tokens: Tensor) -> Tensor:
    """Return the numbers of tokens (n,) in the race for what stands at a position."""
    place = torch.full_like(tokens[:1], position & _WORD)
    w0, w1, w2, w3 = philox(_key(seed, tokens), (place, tokens >> 1, RACE, 0))
    return torch.where(tokens % 2 == 0, _uniform(w0, w1), _uniform(w2, w3))


def _key(seed: int, like: Tensor) -> tuple[Tensor, Tensor]:
    low, high = (torch.full_like(like[:1], seed >> shift & _WORD) for shift in (0, 32))
    return low, high


def _uniform(high: Tensor, low: Tensor) -> Tensor:
    if wide_type(high.device) == torch.float64:
        return (high << 21 | low >> 11).double() * 2.0**-53
    return (high >> 8).float() * 2.0**-24
