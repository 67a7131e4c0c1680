"""Which numbers lead where: the reference divides their space into cells of one outcome."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from mtp_verify.verifier import reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mtp_verify.testing.device.cases import Case
    from mtp_verify.testing.device.drafts import Drafted
    from mtp_verify.testing.device.rows import Rows

__all__ = ["INSET", "SEED", "Asks", "Cell", "cells", "places_in", "points"]

# Where in a cell a device is asked: in its middle; also in the corners where all numbers are near
# their lower ends, or all near their upper ones; or also near both ends of each number.
Asks: TypeAlias = Literal["middle", "corners", "ends"]

# How near to the ends of a cell the device is asked. A threshold is a quotient of what rounding has
# left, so where little is left its error is larger than that of a number.
INSET = 1e-10

# Where numbers are those of the noise: the seed, and the positions that are looked at, so many
# apart that no two of them share a number.
SEED = 20
_POSITIONS = 8 * np.arange(1 << 14)


class Cell(NamedTuple):
    """A set of numbers of one outcome.

    Attributes:
        intervals: Of the numbers that are consulted, by node and purpose; of a race, of a number
            that would decide it alone, by depth and purpose.
        races: By depth, the row that is raced for, and the winner.
        node: Where the rule stops.
        token: What it emits there.
    """

    intervals: dict[tuple[int, int], tuple[float, float]]
    races: dict[int, tuple[NDArray[np.float64], int]]
    node: int
    token: int

    @property
    def weight(self) -> float:
        """The probability of the cell."""
        return math.prod(high - low for low, high in self.intervals.values())


class _Splitter(reference.Noise):
    """Noise that takes one piece of the interval of a number at each open question."""

    def __init__(self, script: list[list[int]]) -> None:
        super().__init__(seed=0, position=0)
        self._script = script  # The piece taken and how many there were, of each open question.
        self._asked = 0
        self.intervals: dict[tuple[int, int], tuple[float, float]] = {}
        self.races: dict[int, tuple[NDArray[np.float64], int]] = {}

    def accept(self, node: int, probability: float) -> bool:
        """Answer by the part of the interval below the probability, or by that above."""
        if probability <= 0 or probability >= 1:
            return probability >= 1
        return self._take((node, reference.ACCEPT), [probability]) == 0

    def draw(self, node: int, row: Any, purpose: int = reference.SAMPLE) -> int:
        """Answer by the cell of one token."""
        positive = np.flatnonzero(row > 0)
        ends = np.cumsum(row[positive])
        return int(positive[self._take((node, purpose), (ends[:-1] / ends[-1]).tolist())])

    def race(self, depth: int, row: Any) -> int:
        """Answer as a draw: the first of exponential times wins as often as its rate says."""
        token = self.draw(depth, row, reference.GUMBEL)
        self.races[depth] = row, token
        return token

    def _take(self, address: tuple[int, int], thresholds: list[float]) -> int:
        """Take one of the pieces into which thresholds divide the number's interval."""
        low, high = self.intervals.get(address, (0.0, 1.0))
        edges = [low, *(min(max(edge, low), high) for edge in thresholds), high]
        live = [i for i in range(len(edges) - 1) if edges[i] < edges[i + 1]]
        if len(live) > 1:
            if self._asked == len(self._script):
                self._script.append([0, len(live)])
            live = [live[self._script[self._asked][0]]]
            self._asked += 1
        taken = live[0]
        self.intervals[address] = edges[taken], edges[taken + 1]
        return taken


def cells(case: Case, rows: Rows, draft: Drafted) -> Iterator[Cell]:
    """List the cells of numbers by which the reference decides a draft."""
    tree = reference.Tree(
        parents=draft.parents,
        tokens=draft.tokens,
        target=np.array([rows.p(path) for path in draft.paths]),
        drafter=np.array([rows.q(path) for path in draft.paths]),
        sampled=draft.sampled,
        law=case.law,
    )
    # All rules decide alike where rows have one token.
    rule = "target_only" if case.core == "greedy" else case.core
    script: list[list[int]] = []
    while True:
        noise = _Splitter(script)
        node, token = reference.decide(tree, rule, noise)
        yield Cell(noise.intervals, noise.races, node, token)
        while script and script[-1][0] + 1 == script[-1][1]:
            script.pop()
        if not script:
            return
        script[-1][0] += 1


def points(cell: Cell, asks: Asks) -> Iterator[dict[tuple[int, int], float]]:
    """List numbers in a cell: its middle first, then those near ends of intervals."""
    middle = {address: (low + high) / 2 for address, (low, high) in cell.intervals.items()}
    lower = {at: low + INSET * (low > 0) for at, (low, _) in cell.intervals.items()}
    upper = {at: high - INSET for at, (_, high) in cell.intervals.items()}
    yield middle
    if asks == "corners":
        yield from (lower, upper)
    elif asks == "ends":
        for at in middle:
            yield from ({**middle, at: lower[at]}, {**middle, at: upper[at]})


def places_in(cell: Cell, asks: Asks) -> list[int]:
    """Return positions whose numbers lie in a cell: the farthest from its ends, and the nearest.

    There is none if the cell is too small for the positions that are looked at.
    """
    margin = np.ones(len(_POSITIONS))
    for (node, purpose), (low, high) in cell.intervals.items():
        if purpose == reference.GUMBEL:
            continue
        u = _numbers(0, node, purpose)[:, 0]
        below, above = u - low, high - u
        margin = np.minimum(margin, np.minimum(below if low > 0 else 1, above if high < 1 else 1))
        margin[(below < 0) | (above <= 0)] = 0
    for depth, (row, token) in cell.races.items():
        margin = np.minimum(margin, _leads(depth, row.tobytes())[token])
    inside = np.flatnonzero(margin > 0)
    if not len(inside):
        return []
    farthest = inside[margin[inside].argmax()]
    nearest = [] if asks == "middle" else [inside[margin[inside].argmin()]]
    return [int(_POSITIONS[place]) for place in (farthest, *nearest)]


@cache
def _leads(depth: int, row: bytes) -> NDArray[np.float64]:
    """Return by which part of its time a token of a row leads the race: (V, positions)."""
    weights = np.frombuffer(row)
    pairs = range((len(weights) + 1) // 2)
    u = np.concatenate([_numbers(1 + depth, pair, reference.GUMBEL) for pair in pairs], axis=1)
    with np.errstate(divide="ignore"):
        times = (-np.log1p(-u[:, : len(weights)]) / weights).T
    others = [np.delete(times, token, axis=0).min(axis=0) for token in range(len(weights))]
    leads: NDArray[np.float64] = np.array(others) / times - 1
    return leads


@cache
def _numbers(offset: int, which: int, purpose: int) -> NDArray[np.float64]:
    """Return the two numbers of an address at all positions: (positions, 2)."""
    counter = np.zeros((len(_POSITIONS), 4), np.uint32)
    counter[:, 0], counter[:, 1], counter[:, 2] = _POSITIONS + offset, which, purpose
    words = reference.philox((SEED, 0), counter).astype(np.uint64)
    bits = (words[:, 0::2] << np.uint64(32) | words[:, 1::2]) >> np.uint64(11)
    numbers: NDArray[np.float64] = bits.astype(np.float64) * 2.0**-53
    return numbers
