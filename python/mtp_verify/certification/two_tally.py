"""Counts of two samplers behind one prompt, and the tests of those counts.

Cells compare the two, those of whole strings and those of their beginnings: what befalls a token is
seen best where no later ones split its counts. The strings of each are compared with their
neighbours too, since dependent strings would make every figure look more certain than it is. Where
a side serves the law of the first token, first tokens are compared with that: a known law needs
half the samples.
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

__all__ = [
    "SIDES",
    "ServedLaw",
    "TwoTally",
    "checks_of_two",
    "num_checks_of_two",
    "resolved_share",
    "tv_of_two",
]

SIDES = ("one", "other")
# Cells of the independence tests: pairs have that many squared.
_MAX_CLASSES = 8
# Mass of what was not served, at least: log-probabilities are rounded.
_LEAST_REST = 1e-6
_RELATIONS = ("neighbours", "next seed")
_BOUNDS = ("estimate", "low", "high")


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

    `cells` are those of the first token, of the first two, ..., of whole strings at last; `served`
    are the laws of the first token, one a side, None where it is not served.
    """

    kept = ("counts", "pairs", "firsts")

    def __init__(
        self, cells: Sequence[Cells], served: Sequence[ServedLaw | None] = (None, None)
    ) -> None:
        self.cells, self.served = tuple(cells), tuple(served)
        # By length, side, half, cell.
        self.counts = np.zeros((len(cells), 2, 2, max(map(len, cells))), np.int64)
        self._num_classes = min(len(cells[-1]), _MAX_CLASSES)
        # By side and relation: of classes of two strings.
        shape = (2, len(_RELATIONS), self._num_classes, self._num_classes)
        self.pairs = np.zeros(shape, np.int64)
        sizes = [0 if law is None else len(law.probs) for law in self.served]
        # By side, and the law that its first tokens are compared with.
        self.firsts = np.zeros((2, 2, max(sizes)), np.int64)

    @property
    def num_samples(self) -> int:
        """How many strings of each side have been counted."""
        return int(self.counts[0, 0].sum())

    def add(self, side: int, calls: Sequence[NDArray[np.int64]]) -> None:
        """Count two calls of consecutive seeds, int (n, >= length) each."""
        for half, call in enumerate(calls):
            for counts, cells in zip(self.counts, self.cells, strict=True):
                counts[side, half] += np.bincount(cells.of(call), minlength=counts.shape[-1])
        found = [self.cells[-1].of(call) for call in calls]
        classes = [np.minimum(cells, self._num_classes - 1) for cells in found]
        even = len(classes[0]) // 2 * 2
        for rows in classes:
            np.add.at(self.pairs[side, 0], (rows[:even:2], rows[1:even:2]), 1)
        np.add.at(self.pairs[side, 1], (classes[0], classes[1]), 1)
        for known, law in enumerate(self.served):
            if law is not None:
                for call in calls:
                    self.firsts[side, known, : len(law.probs)] += law.counts(call[:, 0])

    def fit(self, place: int) -> stats.Fit:
        """Compare the cells of one length on both sides, `place` being 0 for the first token."""
        return fit_of_two(*self.counts[place].sum(axis=1))

    def independence(self, side: int, relation: int) -> stats.Fit:
        """Test whether strings of one side depend on their neighbours, or on the next seed's."""
        counts = self.counts[-1, side].sum(axis=0)
        last = self._num_classes - 1
        law = np.append(counts[:last], counts[last:].sum()) / max(1, counts.sum())
        return stats.independence(self.pairs[side, relation], law)

    def interval(self) -> stats.Interval:
        """Estimate the total variation between both sides."""
        return tv_of_two([self])

    def most_off(self, count: int) -> list[tuple[str, float, float]]:
        """Return the cells that differ most for their size, and their shares on both sides."""
        shares = self.counts.sum(axis=2) / max(1, self.num_samples)
        total = shares.sum(axis=1)
        off = np.abs(shares[:, 0] - shares[:, 1]) / np.sqrt(np.where(total > 0, total, 1.0))
        found = []
        for index in np.argsort(-off, axis=None, kind="stable")[:count].tolist():
            place, cell = divmod(index, off.shape[1])
            name = self.cells[place].name(cell)
            name += "" if place == len(self.cells) - 1 else ", whatever follows"
            found.append((name, float(shares[place, 0, cell]), float(shares[place, 1, cell])))
        return found


def checks_of_two(tallies: Sequence[TwoTally]) -> list[Check]:
    """Run every test, corrected over all of them: that of all prompts together comes first."""
    found: list[tuple[str, int | None, stats.Fit]] = []
    for place in reversed(range(len(tallies[0].cells))):
        name = f"first {place + 1} tokens" if place else "first token"
        fits = [tally.fit(place) for tally in tallies]
        found.append((name, None, sum(fits[1:], fits[0])))
        found += [(name, prompt, fit) for prompt, fit in enumerate(fits)]
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


def resolved_share(tallies: Sequence[TwoTally], place: int) -> float:
    """Return the share of strings whose cell, of one length, holds nothing else."""
    single = sum(
        int(tally.counts[place][..., : len(cells)][..., cells.is_single()].sum())
        for tally in tallies
        for cells in [tally.cells[place]]
    )
    return single / max(1, 2 * sum(tally.num_samples for tally in tallies))


def tv_of_two(tallies: Sequence[TwoTally], alpha: float = 0.05) -> stats.Interval:
    """Estimate the mean over the prompts of the total variation between both sides.

    That of beginnings is never above that of whole strings, and is measured better: the largest of
    all bounds counts.
    """
    found = []
    for place in range(len(tallies[0].cells)):
        sides = (np.concatenate([t.counts[place, i] for t in tallies], axis=1) for i in range(2))
        found.append(tv_interval_of_two(*sides, alpha=alpha / len(tallies[0].cells)))
    return stats.Interval(*(max(getattr(each, name) for each in found) for name in _BOUNDS))
