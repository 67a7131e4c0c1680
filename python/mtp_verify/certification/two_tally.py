"""Counts of two samplers behind one prompt, and the tests of those counts.

Cells compare the two; the strings of each are compared with their neighbours too, since dependent
strings would make every figure look more certain than it is. Where a side serves the law of the
first token, first tokens are compared with that: a known law needs half the samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mtp_verify.certification.kept import Kept
from mtp_verify.certification.tally import Check
from mtp_verify.errors import ParamsError
from mtp_verify.testing import stats
from mtp_verify.testing.two_samples import fit_of_two, tv_interval_of_two

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mtp_verify.certification.cells import Cells

__all__ = ["SIDES", "ServedLaw", "TwoTally", "checks_of_two", "num_checks_of_two", "tv_of_two"]

SIDES = ("one", "other")
# Cells of the independence tests: pairs have that many squared.
_MAX_CLASSES = 8
# Mass of what was not served, at least: log-probabilities are rounded.
_LEAST_REST = 1e-6
_RELATIONS = ("neighbours", "next seed")


class ServedLaw(NamedTuple):
    """The law of a first token as a side serves it: of listed tokens, and all others together."""

    tokens: NDArray[np.int64]  # (K,), rising
    probs: NDArray[np.float64]  # (K + 1,), the last that of all others

    @classmethod
    def of(cls, served: Any) -> ServedLaw:
        """Read a mapping from tokens to probabilities.

        Raises:
            ParamsError: Not such a mapping, or its probabilities exceed 1 by more than rounding.
        """
        is_law = isinstance(served, Mapping) and len(served) > 0
        tokens = sorted(served) if is_law else []
        probs = np.array([served[token] for token in tokens], np.float64)
        if not is_law or not (probs >= 0).all() or not probs.sum() < 1 + 1e-3:
            found = f"{len(probs)} tokens of sum {probs.sum():.4f}" if is_law else repr(served)
            message = f"first_law: found {found}, wanted tokens with probabilities of at most 1"
            raise ParamsError(message, slug="bad_law")
        law = np.append(probs, max(_LEAST_REST, 1 - probs.sum()))
        return cls(np.array(tokens, np.int64), law / law.sum())

    def counts(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count tokens (n,): int64 (K + 1,)."""
        place = np.searchsorted(self.tokens, tokens).clip(max=len(self.tokens) - 1)
        place = np.where(self.tokens[place] == tokens, place, len(self.tokens))
        return np.bincount(place, minlength=len(self.probs))

    def distance(self, other: ServedLaw) -> float:
        """Return the total variation of two served laws, on the tokens that both list."""
        _, mine, theirs = np.intersect1d(self.tokens, other.tokens, return_indices=True)
        both = [law[:-1][i] for law, i in ((self.probs, mine), (other.probs, theirs))]
        rests = abs(both[0].sum() - both[1].sum())
        return float((np.abs(both[0] - both[1]).sum() + rests) / 2)


class TwoTally(Kept):
    """Counts behind one prompt: of cells by side and half, of pairs, and of first tokens.

    `served` are the laws of the first token, one a side, None where it is not served.
    """

    kept = ("counts", "pairs", "firsts")

    def __init__(self, cells: Cells, served: Sequence[ServedLaw | None] = (None, None)) -> None:
        self.cells, self.served = cells, tuple(served)
        self.counts = np.zeros((2, 2, len(cells)), np.int64)
        self._num_classes = min(len(cells), _MAX_CLASSES)
        # By side and relation: of classes of two strings.
        shape = (2, len(_RELATIONS), self._num_classes, self._num_classes)
        self.pairs = np.zeros(shape, np.int64)
        sizes = [0 if law is None else len(law.probs) for law in self.served]
        # By side, and the law that its first tokens are compared with.
        self.firsts = np.zeros((2, 2, max(sizes)), np.int64)

    @property
    def num_samples(self) -> int:
        """How many strings of each side have been counted."""
        return int(self.counts[0].sum())

    def add(self, side: int, calls: Sequence[NDArray[np.int64]]) -> None:
        """Count two calls of consecutive seeds, int (n, >= length) each."""
        cells = [self.cells.of(call) for call in calls]
        for half, found in enumerate(cells):
            self.counts[side, half] += np.bincount(found, minlength=len(self.cells))
        classes = [np.minimum(found, self._num_classes - 1) for found in cells]
        even = len(classes[0]) // 2 * 2
        for rows in classes:
            np.add.at(self.pairs[side, 0], (rows[:even:2], rows[1:even:2]), 1)
        np.add.at(self.pairs[side, 1], (classes[0], classes[1]), 1)
        for known, law in enumerate(self.served):
            if law is not None:
                counts = sum(law.counts(call[:, 0]) for call in calls)
                self.firsts[side, known, : len(law.probs)] += counts

    def fit(self) -> stats.Fit:
        """Compare the cells of both sides."""
        return fit_of_two(*self.counts.sum(axis=1))

    def independence(self, side: int, relation: int) -> stats.Fit:
        """Test whether strings of one side depend on their neighbours, or on the next seed's."""
        counts = self.counts[side].sum(axis=0)
        last = self._num_classes - 1
        law = np.append(counts[:last], counts[last:].sum()) / max(1, counts.sum())
        return stats.independence(self.pairs[side, relation], law)

    def interval(self) -> stats.Interval:
        """Estimate the total variation between both sides."""
        return tv_interval_of_two(*self.counts)

    def most_off(self, count: int) -> list[tuple[int, float, float]]:
        """Return the cells that differ most for their size, and their shares on both sides."""
        shares = self.counts.sum(axis=1) / max(1, self.num_samples)
        total = shares.sum(axis=0)
        off = np.abs(shares[0] - shares[1]) / np.sqrt(np.where(total > 0, total, 1.0))
        cells = np.argsort(-off, kind="stable")[:count].tolist()
        return [(cell, float(shares[0, cell]), float(shares[1, cell])) for cell in cells]


def checks_of_two(tallies: Sequence[TwoTally]) -> list[Check]:
    """Run every test, corrected over all of them: that of all prompts together comes first."""
    fits = [tally.fit() for tally in tallies]
    found: list[tuple[str, int | None, stats.Fit]] = [("strings", None, sum(fits[1:], fits[0]))]
    found += [("strings", prompt, fit) for prompt, fit in enumerate(fits)]
    for side, word in enumerate(SIDES):
        for relation, name in enumerate(_RELATIONS):
            parts = [tally.independence(side, relation) for tally in tallies]
            found.append((f'{name} of "{word}"', None, sum(parts[1:], parts[0])))
    for known, whose in enumerate(SIDES):
        for side, word in enumerate(SIDES):
            parts = [
                stats.fit(tally.firsts[side, known, : len(law.probs)], law.probs)
                for tally in tallies
                if (law := tally.served[known]) is not None
            ]
            if parts:
                name = f'first token of "{word}" by the law that "{whose}" serves'
                found.append((name, None, sum(parts[1:], parts[0])))
    adjusted = stats.holm([fit.p_value for _, _, fit in found])
    return [Check(*test, value) for test, value in zip(found, adjusted, strict=True)]


def num_checks_of_two(tallies: Sequence[TwoTally]) -> int:
    """Return how many tests `checks_of_two` runs."""
    return len(checks_of_two(tallies))


def tv_of_two(tallies: Sequence[TwoTally], alpha: float = 0.05) -> stats.Interval:
    """Estimate the mean over the prompts of the total variation between both sides."""
    first, second = (np.concatenate([t.counts[side] for t in tallies], axis=1) for side in range(2))
    return tv_interval_of_two(first, second, alpha=alpha)
