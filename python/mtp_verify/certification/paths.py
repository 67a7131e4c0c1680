"""Counts along sampled strings: each token against its law given those before it.

The joint law of whole strings can be compared for a few tokens only, as there are too many strings.
The law of one token given those that were sampled before it is known at any length. Tokens are
ranked by it, the likeliest first: how often each rank should occur is the sum of its probabilities
over the strings that were seen. And the place of a token in its law, made continuous by noise of
our own, is uniform and independent of all others: what two tokens share shows in pairs of places.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mtp_verify.certification.kept import Kept, fit_of_ranks
from mtp_verify.errors import ParamsError
from mtp_verify.testing import stats
from mtp_verify.testing.laws import ENDED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mtp_verify.testing.laws import TokenLaws

__all__ = ["NUM_CALLS", "PathTally"]

# Calls with consecutive seeds that are counted together.
NUM_CALLS = 4
# The likeliest tokens have a rank of their own; the others share the last.
_MAX_RANKS = 8
_MOST_TOKENS = 16  # of a vocabulary whose tokens are counted by the one before
# Tokens are counted by their number too, those of a larger vocabulary by its remainder.
_NUM_CLASSES = 16
# Strings of one length whose laws are kept: longer ones are too many, and seldom occur twice.
_MOST_KEPT = 4096
# Parts of the unit interval that places are put into.
_NUM_PLACES = 4
# What the noise of two tokens is compared by; no token is in two pairs of one name at one place.
_PAIRS = (
    "next token",
    "token after the next",
    "third token on",
    "next row",
    "next row, odd to even",
    "next row, one token on",
    "next seed",
    "next seed, odd to even",
    "next seed, one token on",
    "seed after the next",
)


class PathTally(Kept):
    """Counts along the first `horizon` tokens of the strings of all prompts.

    At temperature 0, logits as close as `tie` to the largest are as good.
    """

    kept = (
        "seen",
        "expected",
        "seen_class",
        "expected_class",
        "seen_after",
        "expected_after",
        "impossible",
        "pairs",
    )

    def __init__(self, laws: TokenLaws, vocab: int, horizon: int, tie: float) -> None:
        self.laws, self.horizon, self.tie = laws, horizon, tie
        self._vocab = vocab
        self._num_ranks = min(vocab, _MAX_RANKS)
        # By parity of the seed, parity of the row, token, rank.
        shape = (2, 2, horizon, self._num_ranks)
        self.seen = np.zeros(shape, np.int64)
        self.expected = np.zeros(shape)
        # By token, class of its number: what befalls one token, of whatever rank, is seen here.
        self._classes = np.arange(vocab) % _NUM_CLASSES
        self.seen_class = np.zeros((horizon, min(vocab, _NUM_CLASSES)), np.int64)
        self.expected_class = np.zeros(self.seen_class.shape)
        # By half of the string, token, token that follows it.
        follows = (2, vocab, vocab) if vocab <= _MOST_TOKENS else (2, 0, 0)
        self.seen_after = np.zeros(follows, np.int64)
        self.expected_after = np.zeros(follows)
        # Tokens that could not have followed, and ends where none could be.
        self.impossible = np.zeros((2, 2, horizon), np.int64)
        self.pairs = np.zeros((len(_PAIRS), _NUM_PLACES, _NUM_PLACES), np.int64)
        self._known: dict[Any, NDArray[np.float64] | None] = {}

    def add(self, prompt: tuple[int, ...], calls: Sequence[NDArray[np.int64]], seed: int) -> None:
        """Count the results, int (n, >= horizon), of `NUM_CALLS` calls with seeds from `seed` on.

        Raises:
            ParamsError: A token outside the vocabulary.
        """
        strings = np.array([call[:, : self.horizon] for call in calls])
        least = ENDED if self.laws.may_end else 0
        wrong = np.argwhere((strings < least) | (strings >= self._vocab))
        if len(wrong):
            call, row, depth = wrong[0].tolist()
            message = (
                f"sample {row}: found token {strings[call, row, depth]} at place {depth}, wanted "
                f"tokens of {least} to {self._vocab - 1}"
            )
            raise ParamsError(message, slug="token_out_of_vocab", row=row)
        self.laws.prefetch(prompt, np.concatenate(strings))
        places = self._count(prompt, strings, seed)
        if not self.laws.params.is_greedy:
            self._pair(places)

    def _count(
        self, prompt: tuple[int, ...], calls: NDArray[np.int64], seed: int
    ) -> NDArray[np.int64]:
        """Count calls; return the places of their tokens, -1 where there is none."""
        strings = calls.reshape(-1, self.horizon)
        places = np.full(strings.shape, -1)
        noise = np.random.default_rng((seed, *prompt)).random(strings.shape)
        seeds, rows = (index.reshape(-1) for index in np.indices(calls.shape[:2]))
        part: tuple[NDArray[np.int64], NDArray[np.int64]] = (seed + seeds) % 2, rows % 2
        # Strings that begin alike are a group, and have one law.
        groups: list[tuple[int, ...]] = [()]
        which = np.zeros(len(strings), np.int64)
        for depth in range(self.horizon):
            tokens = strings[:, depth]
            laws, weights, starts, ranks = self._rankings(prompt, groups)
            # The end has a rank like a token; behind it nothing else has.
            rank = ranks[which, tokens]
            where: Any = (*part, depth)
            np.add.at(self.impossible, where, rank < 0)
            np.add.at(self.expected, where, weights[which])
            sizes = np.bincount(which, minlength=len(groups))
            self.expected_class[depth] += np.bincount(self._classes, sizes @ laws)
            mine = np.flatnonzero((rank >= 0) & (tokens != ENDED))
            rank, group, token = rank[mine], which[mine], tokens[mine]
            cells: Any = (*(parity[mine] for parity in part), depth)
            np.add.at(self.seen, (*cells, np.minimum(rank, self._num_ranks - 1)), 1)
            np.add.at(self.seen_class[depth], self._classes[token], 1)
            if self.seen_after.size:
                half = int(2 * depth >= self.horizon)
                last = strings[mine, depth - 1] if depth else np.full(len(mine), prompt[-1])
                np.add.at(self.seen_after[half], (last, token), 1)
                np.add.at(self.expected_after[half], last, laws[group])
            start, end = starts[group, rank], starts[group, rank + 1]
            place = (start + noise[mine, depth] * (end - start)) * _NUM_PLACES
            places[mine, depth] = np.minimum(place.astype(np.int64), _NUM_PLACES - 1)
            grown, which = np.unique(which * (self._vocab + 1) + tokens + 1, return_inverse=True)
            before, added = np.divmod(grown, self._vocab + 1)
            groups = [
                (*groups[group], token - 1)
                for group, token in zip(before.tolist(), added.tolist(), strict=True)
            ]
        return places.reshape(calls.shape)

    def _rankings(self, prompt: tuple[int, ...], strings: Sequence[tuple[int, ...]]) -> _Rankings:
        """Return the laws behind strings of one length, with their tokens ranked."""
        laws = np.zeros((len(strings), self._vocab))
        has_law = np.zeros(len(strings), bool)
        ranks = np.full((len(strings), self._vocab + 1), -1)
        for group, string in enumerate(strings):
            if (law := self._law(prompt, string)) is not None:
                laws[group], has_law[group] = law, True
        # Behind the end of a string there is only that.
        ranks[~has_law, ENDED] = 0
        order = np.argsort(-laws, axis=1, kind="stable")
        falling = np.take_along_axis(laws, order, axis=1)
        np.put_along_axis(ranks, order, np.arange(self._vocab)[None], axis=1)
        ranks[:, :-1][laws == 0] = -1
        if self.laws.params.is_greedy:
            for group in np.flatnonzero(has_law).tolist():
                tied = self.laws.tied(prompt, strings[group], self.tie)
                ranks[group, :-1] = np.where(tied, 0, -1)
        last = self._num_ranks - 1
        rest = falling[:, last:].sum(axis=1, keepdims=True)
        starts = np.concatenate([np.zeros((len(laws), 1)), falling.cumsum(axis=1)], axis=1)
        return _Rankings(laws, np.concatenate([falling[:, :last], rest], axis=1), starts, ranks)

    def _law(self, prompt: tuple[int, ...], string: tuple[int, ...]) -> NDArray[np.float64] | None:
        """Return the law behind a string, None behind its end; those of short ones are kept."""
        if ENDED in string:
            return None
        if self._vocab ** len(string) > _MOST_KEPT:
            return self.laws.after(prompt, string)  # which hardly occurs again
        key = prompt, string
        if key not in self._known:
            self._known[key] = self.laws.after(prompt, string)
        return self._known[key]

    def _pair(self, places: NDArray[np.int64]) -> None:
        """Count pairs of places (NUM_CALLS, n, horizon)."""
        token = np.arange(self.horizon)
        even = places.shape[1] // 2 * 2
        rows = places[:, 0:even:2], places[:, 1:even:2]
        odd_rows = places[:, 1 : even - 1 : 2], places[:, 2:even:2]
        seeds, odd_seeds = (places[0::2], places[1::2]), (places[1:2], places[2:3])
        found: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {
            "next row": rows,
            "next row, odd to even": odd_rows,
            "next row, one token on": (rows[0][..., :-1], rows[1][..., 1:]),
            "next seed": seeds,
            "next seed, odd to even": odd_seeds,
            "next seed, one token on": (seeds[0][..., :-1], seeds[1][..., 1:]),
            "seed after the next": (places[:2], places[2:]),
        }
        for name, lag in (("next token", 1), ("token after the next", 2), ("third token on", 3)):
            first = token[(token // lag % 2 == 0) & (token + lag < self.horizon)]
            found[name] = places[..., first], places[..., first + lag]
        for table, name in zip(self.pairs, _PAIRS, strict=True):
            one, other = (half.reshape(-1) for half in found[name])
            both = (one >= 0) & (other >= 0)
            np.add.at(table, (one[both], other[both]), 1)

    def fits(self) -> list[tuple[str, stats.Fit]]:
        """Return the tests: of each token, of all together, both by parity, and of pairs."""
        found = []
        for depth in range(self.horizon):
            name = f"token {depth + 1} given those before"
            found.append((name, self._fit(np.s_[:, :, depth])))
            # A fault of every other seed is half as large in the mean of all.
            for parity, word in enumerate(("even", "odd")):
                found.append((f"{name}, {word} seeds", self._fit(np.s_[parity, :, depth])))
        for parity, word in enumerate(("even", "odd")):
            found.append((f"tokens of {word} seeds", self._fit(np.s_[parity])))
            found.append((f"tokens of {word} rows", self._fit(np.s_[:, parity])))
        if not self.laws.params.is_greedy:
            for depth in range(self.horizon):
                counts = self.seen_class[depth], self.expected_class[depth]
                impossible = int(self.impossible[:, :, depth].sum())
                fit = fit_of_ranks(*counts, impossible)
                found.append((f"token {depth + 1} by its number", fit))
            for half, word in enumerate(("first", "second")):
                found.append((f"tokens by the one before, {word} half", self._fit_after(half)))
            uniform = np.full(_NUM_PLACES, 1 / _NUM_PLACES)
            for name, table in zip(_PAIRS, self.pairs, strict=True):
                found.append((f"noise of the {name}", stats.independence(table, uniform)))
        return found

    def ranks(self, depth: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return how often each rank was seen and expected at a token, 0 being the first."""
        return self.seen[:, :, depth].sum(axis=(0, 1)), self.expected[:, :, depth].sum(axis=(0, 1))

    def _fit(self, part: Any) -> stats.Fit:
        """Test the counts of a part of the tokens."""
        seen = self.seen[part].reshape(-1, self._num_ranks).sum(axis=0)
        expected = self.expected[part].reshape(-1, self._num_ranks).sum(axis=0)
        # Each token has a law of its own, so that ranks vary less than those of one law would: the
        # test errs on the safe side.
        return fit_of_ranks(seen, expected, int(self.impossible[part].sum()))

    def _fit_after(self, half: int) -> stats.Fit:
        """Test tokens by the one before."""
        total = stats.Fit(0.0, 0, 1.0, 0, 0)
        for seen, expected in zip(self.seen_after[half], self.expected_after[half], strict=True):
            if expected.sum() > 0:
                total += stats.fit(seen, expected / expected.sum(), statistic="g")
        return total


class _Rankings(NamedTuple):
    """Laws (G, V) of the tokens behind G beginnings, with their tokens ranked."""

    laws: NDArray[np.float64]  # (G, V)
    weights: NDArray[np.float64]  # (G, R) of each rank, the last one's with all that follow
    starts: NDArray[np.float64]  # (G, V + 1) what is likelier than each token, by rank, and 1
    ranks: NDArray[np.int64]  # (G, V + 1) of each token, and of the end; -1: impossible
