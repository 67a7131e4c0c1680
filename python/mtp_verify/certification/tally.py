"""Counts of sampled strings, and the tests of those counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.certification.kept import Kept, fit_of_ranks
from mtp_verify.errors import ParamsError
from mtp_verify.testing import stats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mtp_verify.certification.paths import PathTally
    from mtp_verify.testing.laws import JointLaw

__all__ = ["Check", "Tally", "checks", "mean_interval", "num_checks", "power_of", "samples_needed"]

# Cells of the first-token law in the independence tests: pairs have that many squared.
_MAX_CLASSES = 8
# The tests of strings over all prompts.
_OVER_PROMPTS = ("joint", "joint, every other seed", "joint, the other seeds", "joint, by rank")


@dataclass(frozen=True)
class Check:
    """One test of a certificate.

    Attributes:
        name: What is compared: "joint", "token 1", "next seed", "token 1 given those before", ...
        prompt: Which prompt, or None for all together.
        fit: Statistic and p-value.
        adjusted: The p-value after Holm's correction over all checks.
    """

    name: str
    prompt: int | None
    fit: stats.Fit
    adjusted: float


class Tally(Kept):
    """Counts for one prompt: of whole strings, and of pairs of first tokens.

    Samples come as pairs of calls with consecutive seeds. The two calls are the halves from which
    the total variation is estimated, one of even and one of odd seeds; their rows side by side, and
    neighbouring rows of one call, show engines that reuse noise: the members of a pair then depend
    on each other.
    """

    kept = ("halves", "neighbours", "next_seed")

    def __init__(self, law: JointLaw) -> None:
        self.law = law
        self.halves = np.zeros((2, len(law.probs)), np.int64)
        first = law.marginal(0)
        # The likeliest tokens have a class of their own; the others share the last.
        ranks = np.argsort(np.argsort(-first, kind="stable"), kind="stable")
        self.classes = np.minimum(ranks, _MAX_CLASSES - 1)
        num = int(self.classes.max()) + 1
        self.class_law = np.bincount(self.classes, first, num)
        self.neighbours = np.zeros(num * num, np.int64)
        self.next_seed = np.zeros(num * num, np.int64)

    @property
    def num_samples(self) -> int:
        """How many strings have been counted."""
        return int(self.halves.sum())

    def add(self, one: Any, other: Any) -> None:
        """Count the results of two calls: int (n, >= k) each.

        Raises:
            ParamsError: The shapes differ, or are not what a sampler returns.
        """
        indices = self.law.indices(one), self.law.indices(other)
        if len(indices[0]) != len(indices[1]):
            message = f"the engine returned {len(indices[0])}, then {len(indices[1])} samples"
            raise ParamsError(message, slug="shape_mismatch")
        for half, found in zip(self.halves, indices, strict=True):
            half += np.bincount(found, minlength=len(half))
        power = self.law.vocab ** (self.law.length - 1)
        classes = [self.classes[found // power] for found in indices]
        num = len(self.class_law)
        for rows in classes:
            even = len(rows) // 2 * 2
            pairs = rows[:even:2] * num + rows[1:even:2]
            self.neighbours += np.bincount(pairs, minlength=num * num)
        self.next_seed += np.bincount(classes[0] * num + classes[1], minlength=num * num)

    def add_counts(self, count: int, probs: Any, rng: np.random.Generator) -> None:
        """Count twice `count` independent strings of a law (V**k,) without drawing each.

        Each table has the law that `add` gives it; between tables there is no dependence, which no
        test looks for.
        """
        firsts = np.asarray(probs).reshape(self.law.vocab, -1).sum(axis=1)
        classes = np.bincount(self.classes, firsts, len(self.class_law))
        pairs = np.outer(classes, classes).reshape(-1)
        tables = [(half, count, probs) for half in self.halves]
        tables += [(self.neighbours, count // 2 * 2, pairs), (self.next_seed, count, pairs)]
        for table, num, law in tables:
            possible = np.flatnonzero(law)  # rounding puts no draw where nothing can be
            weights = np.asarray(law)[possible]
            table[possible] += rng.multinomial(num, weights / weights.sum())

    def fits(self) -> list[tuple[str, stats.Fit]]:
        """Return the tests of this prompt; the joint law first."""
        counts, law = self.halves.sum(axis=0), self.law
        found = [("joint", stats.fit(counts, law.probs))]
        shape = (law.vocab,) * law.length
        for depth in range(law.length):
            others = tuple(i for i in range(law.length) if i != depth)
            marginal = counts.reshape(shape).sum(axis=others)
            found.append((f"token {depth + 1}", stats.fit(marginal, law.marginal(depth))))
        square = (len(self.class_law),) * 2
        for name, pairs in (("neighbours", self.neighbours), ("next seed", self.next_seed)):
            found.append((name, stats.independence(pairs.reshape(square), self.class_law)))
        return found


def checks(tallies: Sequence[Tally], paths: PathTally | None = None) -> list[Check]:
    """Run every test, corrected over all of them: the combined joint law comes first.

    `tallies` are one for each prompt, `paths` of all prompts.
    """
    found: list[tuple[str, int | None, stats.Fit]] = []
    for prompt, tally in enumerate(tallies):
        found += [(name, prompt, fit) for name, fit in tally.fits()]
    # A fault of every other seed is half as large in the mean of all.
    parts = [[fit for name, _, fit in found if name == "joint"]]
    parts += [[stats.fit(t.halves[half], t.law.probs) for t in tallies] for half in range(2)]
    fits = [*(sum(part[1:], part[0]) for part in parts), _fit_of_ranks(tallies)]
    found[:0] = [(name, None, fit) for name, fit in zip(_OVER_PROMPTS, fits, strict=True)]
    if paths is not None:
        found += [(name, None, fit) for name, fit in paths.fits()]
    adjusted = stats.holm([fit.p_value for _, _, fit in found])
    return [Check(*test, value) for test, value in zip(found, adjusted, strict=True)]


def _fit_of_ranks(tallies: Sequence[Tally]) -> stats.Fit:
    """Test strings by their rank: for peaked rows, of which each string has few samples."""
    seen, expected = np.zeros(_MAX_CLASSES, np.int64), np.zeros(_MAX_CLASSES)
    impossible = 0
    for tally in tallies:
        counts, probs = tally.halves.sum(axis=0), tally.law.probs
        ranks = np.empty(len(probs), np.int64)
        ranks[np.argsort(-probs, kind="stable")] = np.arange(len(probs))
        ranks = np.minimum(ranks, _MAX_CLASSES - 1)
        seen += np.bincount(ranks, counts, _MAX_CLASSES).astype(np.int64)
        expected += np.bincount(ranks, probs, _MAX_CLASSES) * counts.sum()
        impossible += int(counts[probs == 0].sum())
    return fit_of_ranks(seen, expected, impossible)


def mean_interval(tallies: Sequence[Tally], alpha: float = 0.05) -> stats.Interval:
    """Estimate the total variation between the engine's joint law and the exact one.

    That of one token is never above the joint law's, and is measured better: the largest of all
    lower bounds counts. Prompts have equally many samples, so that they are one law over (prompt,
    string).
    """
    length, vocab = tallies[0].law.length, tallies[0].law.vocab
    level = alpha / (1 + length)

    def interval(*axes: int) -> stats.Interval:
        def sums(values: NDArray[Any]) -> NDArray[Any]:
            return np.asarray(values.reshape((vocab,) * length).sum(axis=axes)).reshape(-1)

        first, second = (np.concatenate([sums(t.halves[i]) for t in tallies]) for i in range(2))
        law = np.concatenate([sums(tally.law.probs) for tally in tallies]) / len(tallies)
        return stats.tv_interval_of_halves(first, second, law, alpha=level)

    joint = interval()
    tokens = [interval(*(i for i in range(length) if i != depth)) for depth in range(length)]
    best = max([joint, *tokens], key=lambda found: (found.low, found.estimate))
    return stats.Interval(max(joint.estimate, best.estimate), best.low, joint.high)


def num_checks(laws: Sequence[JointLaw], paths: PathTally | None = None) -> int:
    """Return how many tests `checks` runs."""
    along = 0 if paths is None else len(paths.fits())
    return len(_OVER_PROMPTS) + sum(law.length + 3 for law in laws) + along


def samples_needed(
    laws: Sequence[JointLaw],
    paths: PathTally | None = None,
    *,
    min_tv: float,
    alpha: float,
    power: float,
) -> int:
    """Return how many samples let the combined joint test find a bias of `min_tv`.

    No fewer than the test by rank needs, which sees all prompts together; the test of one token
    given those before it has as many cells. Their number depends on that of the samples, as rare
    strings are pooled: a fixed point is looked for from above.
    """
    level = alpha / num_checks(laws, paths)
    total = 0
    least = stats.chi_square_num_samples(_MAX_CLASSES, min_tv, level, power)
    cells = [int(np.count_nonzero(law.probs)) for law in laws]
    for _ in range(4):
        df = sum(count - 1 for count in cells)
        if df < 1:
            # One possible string a prompt: a single other one is a finding.
            return max(total, int(np.ceil(np.log(1 - power) / np.log1p(-min_tv))))
        total = max(least, stats.chi_square_num_samples(df + 1, min_tv, level, power))
        share = total / len(laws)
        cells = [int(stats.pool(law.probs * share).max(initial=0)) + 1 for law in laws]
    return total


def power_of(
    laws: Sequence[JointLaw],
    paths: PathTally | None = None,
    *,
    num_samples: int,
    min_tv: float,
    alpha: float,
) -> float:
    """Return the probability that `num_samples` over all prompts show a bias of `min_tv`.

    That of the joint test, or of the test by rank where that is smaller: `samples_needed` the other
    way round.
    """
    level = alpha / num_checks(laws, paths)
    share = num_samples / len(laws)
    if share < 1:
        return 0.0
    df = sum(int(stats.pool(law.probs * share).max(initial=0)) for law in laws)
    if all(np.count_nonzero(law.probs) == 1 for law in laws):
        return float(-np.expm1(num_samples * np.log1p(-min_tv)))
    bias = 4 * num_samples * min_tv * min_tv
    return min(
        stats.noncentral_chi_square_sf(stats.chi_square_quantile(level, df), df, bias)
        for df in (max(1, df), _MAX_CLASSES - 1)
    )
