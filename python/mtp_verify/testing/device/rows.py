"""The rows of a case: as a device is given them, and as the core reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mtp_verify import _core
from mtp_verify.verifier import reference
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mtp_verify.testing.device.cases import Case

__all__ = ["ROOT", "Rows"]

# The token of every root: all that a sequence has before its draft.
ROOT = 0
# Where tokens lie in a long row, and its width: two in one block, the last in a group of its own.
_PLACES = (5, 2050, 2060, 9000)
_WIDTH = 9001


class Rows:
    """The rows of a case.

    The core's are those of `mtp_verify._core.shaped_row`, so that nothing but the decisions is
    compared where rows are read alike.

    Attributes:
        places: Where the model's tokens lie in a row of the target.
        width: Of a row of the target.
        drafter_params: How the drafter's logits are shaped.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self._target: dict[tuple[int, ...], NDArray[np.float64]] = {}
        num_tokens = case.model.target.shape[1]
        self.places = np.array(_PLACES if case.is_spread else range(num_tokens))[:num_tokens]
        self.width = _WIDTH if case.is_spread else num_tokens
        with np.errstate(divide="ignore"):
            self._logits = np.log(case.model.target).astype(np.float32)
            drafter = np.log(case.model.drafter).astype(np.float32)
        self._plain = replace(case.params, presence_penalty=0.0, logit_bias=None)
        # Greedy decoding is lossless for any draft.
        is_greedy = case.params.temperature == 0
        self.drafter_params = SamplingParams() if is_greedy else self._plain
        if case.vocab is not None:
            unknown = np.setdiff1d(np.arange(num_tokens), case.vocab)
            drafter[:, unknown] = -np.inf
        if case.is_logits:
            self._drafter = drafter
            self._q = [_core.shaped_row(row[None], self.drafter_params) for row in drafter]
        else:
            shaped = [reference.shaped(row, self.drafter_params) for row in drafter]
            self._drafter = np.array(shaped, np.float32)
            self._q = [row / row.sum() for row in self._drafter.astype(np.float64)]

    def p(self, path: tuple[int, ...]) -> NDArray[np.float64]:
        """Return the target's row after a path, shaped."""
        if path not in self._target:
            case = self._case
            row = self._logits[_number(path, self._logits)]
            row = reference.penalise(row, [ROOT, *path], 1, case.params)
            row[list(case.forbidden)] = -np.inf
            self._target[path] = _core.shaped_row(row[None], self._plain)
        return self._target[path]

    def q(self, path: tuple[int, ...]) -> NDArray[np.float64]:
        """Return the drafter's row after a path, shaped."""
        return self._q[self.number(path)]

    def number(self, path: tuple[int, ...]) -> int:
        """Return which row of the drafter follows a path."""
        return _number(path, self._drafter)

    def logits(self, path: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the row of the target after a path, as the device is given it."""
        return self._spread(self._logits[_number(path, self._logits)], -np.inf)

    @property
    def vocab(self) -> NDArray[np.int64] | None:
        """The tokens that the drafter's columns stand for; None for all."""
        return None if self._case.vocab is None else self.places[list(self._case.vocab)]

    def drafter(self) -> NDArray[np.float32]:
        """Return the drafter's rows, as the device is given them."""
        if self._case.vocab is not None:
            return np.ascontiguousarray(self._drafter[:, self._case.vocab])
        fill = -np.inf if self._case.is_logits else 0.0
        return np.array([self._spread(row, fill) for row in self._drafter])

    def mask(self) -> NDArray[np.int32] | None:
        """Return the words of the bitmask of a node; None without."""
        if not self._case.forbidden:
            return None
        bits = np.ones(-(-self.width // 32) * 32, np.uint8)
        bits[self.places[list(self._case.forbidden)]] = 0
        return np.packbits(bits, bitorder="little").view(np.int32)

    def _spread(self, row: NDArray[np.float32], fill: float) -> NDArray[np.float32]:
        spread = np.full(self.width, fill, np.float32)
        spread[self.places] = row
        return spread


def _number(path: tuple[int, ...], rows: NDArray[np.float32]) -> int:
    return (len(path) + sum(path)) % len(rows)
