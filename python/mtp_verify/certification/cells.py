"""Cells for strings of a large vocabulary: of too many strings to count each.

A pilot sample says which strings are frequent: each of those is a cell. Rarer ones share a cell
with those that begin like them, or, where that is rare too, with others by their first token. The
pilot is used for nothing else, so that cells do not depend on what is tested.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.errors import ParamsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Cells"]

# Cells of strings whose first token is rare, by that token: what only rare tokens suffer may show.
_NUM_RARE = 4


class Cells:
    """A partition of all strings: by the longest of some beginnings, the rest by first token.

    Attributes:
        beginnings: Tokens that the strings of a cell begin with, cell after cell.
        length: Tokens of a string; a beginning of that many is a string with a cell of its own.
    """

    def __init__(self, beginnings: Sequence[Sequence[int]], length: int) -> None:
        self.beginnings = tuple(tuple(int(token) for token in text) for text in beginnings)
        self.length = length
        if not all(1 <= len(text) <= length for text in self.beginnings):
            message = f"beginnings: found {self.beginnings}, wanted 1 to {length} tokens each"
            raise ParamsError(message, slug="shape_mismatch")
        self._numbers = {text: number for number, text in enumerate(self.beginnings)}

    @classmethod
    def of_pilot(cls, strings: NDArray[np.int64], most: int) -> Cells:
        """Choose cells that hold at least one of `most` parts of a pilot sample (m, length)."""
        least = max(2.0, len(strings) / most)
        chosen: list[tuple[int, ...]] = []
        left = strings
        for depth in range(strings.shape[1], 0, -1):
            found, which, counts = np.unique(
                left[:, :depth], axis=0, return_inverse=True, return_counts=True
            )
            frequent = counts >= least
            order = np.argsort(-counts[frequent], kind="stable")
            chosen += [tuple(text) for text in found[frequent][order].tolist()]
            left = left[~frequent[which.reshape(-1)]]
        return cls(chosen, strings.shape[1])

    def __len__(self) -> int:
        """Return the number of cells, empty ones included."""
        return len(self.beginnings) + _NUM_RARE

    def of(self, strings: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the cell (n,) of each string (n, >= length)."""
        found, which = np.unique(strings[:, : self.length], axis=0, return_inverse=True)
        cells = np.array([self._cell(tuple(text)) for text in found.tolist()], np.int64)
        return np.asarray(cells[which.reshape(-1)])

    def _cell(self, string: tuple[int, ...]) -> int:
        for end in range(len(string), 0, -1):
            if (number := self._numbers.get(string[:end])) is not None:
                return number
        return len(self.beginnings) + string[0] % _NUM_RARE

    def name(self, cell: int) -> str:
        """Return what a cell holds, in words."""
        if cell >= len(self.beginnings):
            part = cell - len(self.beginnings)
            return f"rare first tokens of remainder {part} by {_NUM_RARE}"
        text = self.beginnings[cell]
        tokens = " ".join(map(str, text))
        return tokens if len(text) == self.length else f"{tokens} and any other token"

    def is_single(self) -> NDArray[np.bool_]:
        """Return which cells (K,) hold one string alone."""
        single = [len(text) == self.length for text in self.beginnings]
        return np.array([*single, *[False] * _NUM_RARE])

    def state(self) -> dict[str, Any]:
        """Return what `Cells` is made of, for a file."""
        return {"beginnings": [list(text) for text in self.beginnings], "length": self.length}
