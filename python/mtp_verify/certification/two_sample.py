"""Compare two samplers of which no exact law is known: does speculation change what is said?

Two servers, or one with speculation off and on. Vocabularies are large and strings sparse, so a
pilot sample chooses cells (`mtp_verify.certification.cells`), and the counts of the cells are
compared.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.certification.cells import Cells
from mtp_verify.certification.kept import bad_file, read_file, write_file
from mtp_verify.certification.runs import Sampler, check_call
from mtp_verify.certification.two_tally import (
    ServedLaw,
    TwoTally,
    checks_of_two,
    num_checks_of_two,
    resolved_share,
    tv_of_two,
)
from mtp_verify.console.terminal import Progress
from mtp_verify.errors import ParamsError, ServerError
from mtp_verify.testing import stats
from mtp_verify.testing.two_samples import num_samples_of_two
from mtp_verify.verifier.intake import as_count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mtp_verify.certification.tally import Check

__all__ = ["Comparison", "compare"]

_NUM_LOOKS = 4
_NUM_CALLS = 2  # of one side, with consecutive seeds, that are counted together
# Cells of a prompt at most, beside those of rare first tokens, and strings of its pilot for each.
_MOST_CELLS = 48
_PILOT_PER_CELL = 16
_LEAST_ROWS, _MOST_ROWS = 16, 512  # strings of a call
_SAVE_SECONDS = 5.0


@dataclass(frozen=True)
class Comparison:
    """What a comparison of two samplers found.

    Attributes:
        verdict: "pass" (no difference of `min_tv` or more found, with the stated power), "biased",
            "not enough data", or "too rare": less than `min_tv` of the first tokens have a cell of
            their own, so that nearly any difference would hide in one cell.
        min_tv: The total variation of the cells that was looked for.
        alpha: Probability that two samplers of one law are called biased.
        power: Probability that a difference of `min_tv` is found with all the samples needed.
        num_samples: Strings drawn of each side over all prompts, the pilot's aside; `num_needed`
            for a pass.
        num_pilot: Strings of each side that chose the cells.
        checks: Every test, that of all prompts together first.
        tv: Total variation between the sides, the mean over the prompts; 95 %. Its lower bound
            holds for whole strings, estimate and upper bound for the cells alone.
        intervals: The same of each prompt alone.
        num_cells: Cells of whole strings over all prompts.
        resolved: Share of the strings that have a cell of their own.
        resolved_first: Share of the strings whose first token has one.
        served_tv: Total variation of the first token's law as both sides serve it, the largest over
            the prompts; None where one does not serve it.
        seeds: First and last seed used; the two sides never share one.
    """

    name: str
    verdict: str
    min_tv: float
    alpha: float
    power: float
    num_samples: int
    num_needed: int
    num_pilot: int
    prompts: tuple[tuple[int, ...], ...]
    length: int
    checks: tuple[Check, ...]
    tv: stats.Interval
    intervals: tuple[stats.Interval, ...]
    num_cells: int
    resolved: float
    resolved_first: float
    served_tv: float | None
    seeds: tuple[int, int]
    seconds: float
    samples_per_second: float
    details: dict[str, Any] = field(default_factory=dict)
    tallies: tuple[TwoTally, ...] = field(default=(), repr=False)

    @property
    def num_missing(self) -> int:
        """How many more samples of each side a pass needs."""
        return max(0, self.num_needed - self.num_samples)


def compare(
    one: Sampler,
    other: Sampler,
    prompts: Sequence[Sequence[int]],
    *,
    length: int = 3,
    min_tv: float = 0.05,
    alpha: float = 0.01,
    power: float = 0.99,
    seed: int = 0,
    max_samples: int | None = None,
    max_seconds: float | None = None,
    resume: str | Path | None = None,
    name: str | None = None,
    details: dict[str, Any] | None = None,
) -> Comparison:
    """Test whether two samplers have one distribution.

    The first `length` tokens behind each prompt are put into some 50 cells: strings that a pilot
    sample shows to be frequent have one each, rarer ones share; so are the first token, the first
    two, and so on. A chi-square test compares the counts of both sides, over all prompts and for
    each; neighbouring strings and consecutive seeds of each side are tested for independence. The
    samples are looked at four times, so that a clear difference ends early; Holm's correction over
    the tests and the split of `alpha` over the looks keep the probability of a false alarm below
    `alpha`.

    What it cannot see: a difference inside a cell (between strings too rare for one of their own),
    behind the first `length` tokens, behind prompts that were not asked, and below `min_tv`.

    Args:
        one: `f(prompt_ids, n, seed) -> int (n, >= length)`: n independent continuations; strings
            that have ended are filled up with -1. An attribute `first_law`, a function from a
            prompt to a mapping from tokens to probabilities, is the law of the first token as that
            side serves it, shaped as its samples are; it may leave out unlikely tokens. The first
            tokens of both sides are then compared with it, and two served laws with each other:
            apart by `min_tv` or more they are a difference.
        other: The same of the other side.
        prompts: Token ids of each; at least one.
        length: Tokens whose joint law is compared.
        min_tv: The difference to look for: total variation of the cells, root mean square over the
            prompts.
        alpha: Probability that two samplers of one law are called biased.
        power: Probability that a difference of `min_tv` is found.
        seed: The first seed; the sides take different ones, so that they are independent.
        max_samples: Most samples of each side over all prompts; None means as many as needed.
        max_seconds: Most time; None means no limit. The pilot is drawn in any case; the limit is
            checked before each prompt's calls.
        resume: A file that keeps the counts: an interrupted run goes on where it was.
        name: For the report.
        details: What else the report should say (versions, settings).

    Returns:
        The comparison; `mv.certification.comparison_report` renders it.

    Raises:
        ParamsError: No prompt, a rate outside 0 to 1, or a sampler that returns something else than
            such strings.
    """
    started = time.monotonic()
    deadline = math.inf if max_seconds is None else started + max_seconds
    for what, value in (("alpha", alpha), ("power", power), ("min_tv", min_tv)):
        if not 0 < value < 1:
            message = f"{what}: found {value}, wanted 0 < {what} < 1"
            raise ParamsError(message, slug="param_out_of_range")
    length = as_count("length", length)
    asked = tuple(tuple(int(token) for token in prompt) for prompt in prompts)
    if not asked:
        message = "prompts: found none, wanted at least one"
        raise ParamsError(message, slug="shape_mismatch")
    shown = name or f"{_name(one)} and {_name(other)}"
    identity = {"name": shown, "prompts": asked, "length": length, "seed": seed, "two": True}
    identity |= {"min_tv": min_tv, "alpha": alpha, "power": power}
    levels = stats.spend(alpha, _NUM_LOOKS)
    with Progress() as progress:
        run = _Run((one, other), asked, length, seed, progress)
        run.begin(None if resume is None else Path(resume), identity)
        needed = _needed(run.tallies, min_tv, levels[-1], power)
        most = math.inf if max_samples is None else max_samples
        is_biased = False
        for look, level in enumerate(levels):
            goal = -(-needed // 2 ** (_NUM_LOOKS - 1 - look))
            try:
                run.sample(min(goal, most), needed, deadline)
            except ServerError:  # gone or busy: what was counted is kept, and the run can continue
                run.save()
                raise
            found = checks_of_two(run.tallies)
            is_last = run.num_samples < goal or look == _NUM_LOOKS - 1
            # A sample that ends early takes the last look's level: looks already spent stay spent.
            is_biased = min(c.adjusted for c in found) < (levels[-1] if is_last else level)
            if is_biased or is_last:
                break
        run.save()
    served = run.served_tv()
    is_biased = is_biased or (served is not None and served >= min_tv)
    is_whole = run.num_samples >= needed
    resolved_first = resolved_share(run.tallies, 0)
    passed = "pass" if resolved_first >= min_tv else "too rare"
    seconds = time.monotonic() - started
    return Comparison(
        name=shown,
        verdict="biased" if is_biased else passed if is_whole else "not enough data",
        min_tv=min_tv,
        alpha=alpha,
        power=power,
        num_samples=run.num_samples,
        num_needed=needed,
        num_pilot=len(asked) * run.num_pilot,
        prompts=asked,
        length=length,
        checks=tuple(found),
        tv=tv_of_two(run.tallies),
        intervals=tuple(tally.interval() for tally in run.tallies),
        num_cells=sum(len(tally.cells[-1]) for tally in run.tallies),
        resolved=resolved_share(run.tallies, -1),
        resolved_first=resolved_first,
        served_tv=served,
        seeds=(seed, run.next_seed - 1),
        seconds=seconds,
        samples_per_second=run.num_drawn / max(1e-9, seconds),
        details=dict(details or {}),
        tallies=tuple(run.tallies),
    )


def _name(sampler: Sampler) -> str:
    return str(getattr(sampler, "name", getattr(sampler, "__name__", type(sampler).__name__)))


def _needed(tallies: Sequence[TwoTally], min_tv: float, alpha: float, power: float) -> int:
    """Return the samples of each side with which the test of all prompts finds `min_tv`."""
    df = sum(len(tally.cells[-1]) - 1 for tally in tallies)
    level = alpha / num_checks_of_two(tallies)
    return num_samples_of_two(df + 1, min_tv, level, power)


class _Run:
    """The calls of one comparison: the pilot, then rounds of two calls a side and prompt."""

    def __init__(
        self,
        samplers: tuple[Sampler, Sampler],
        prompts: tuple[tuple[int, ...], ...],
        length: int,
        seed: int,
        progress: Progress,
    ) -> None:
        self.samplers, self.prompts, self.length = samplers, prompts, length
        self.next_seed = seed
        self.num_pilot = _MOST_CELLS * _PILOT_PER_CELL // 2
        self.num_drawn = 0  # by this process, of both sides
        self.tallies: list[TwoTally] = []
        self._progress = progress
        self._path: Path | None = None
        self._identity: dict[str, Any] = {}
        self._saved = time.monotonic()

    @property
    def num_samples(self) -> int:
        """How many strings of each side have been counted, over all prompts."""
        return sum(tally.num_samples for tally in self.tallies)

    def begin(self, path: Path | None, identity: dict[str, Any]) -> None:
        """Choose cells by a pilot sample, or go on from a file."""
        self._path, self._identity = path, identity
        state = None if path is None else read_file(path, identity)
        if path is not None and state is not None:
            self._restore(path, state)
            return
        for index, prompt in enumerate(self.prompts):
            self._progress.show(f"pilot, prompt {index + 1} of {len(self.prompts)}")
            served = [self._law(sampler, prompt) for sampler in self.samplers]
            # Half of it from each side, so that what is frequent on either has a cell.
            calls = [self._call(side, prompt, self.num_pilot) for side in range(2)]
            pilot, ends = np.concatenate(calls), range(1, self.length + 1)
            cells = [Cells.of_pilot(pilot[:, :end], _MOST_CELLS) for end in ends]
            self.tallies.append(TwoTally(cells, served))
        self.save()

    @staticmethod
    def _law(sampler: Sampler, prompt: tuple[int, ...]) -> ServedLaw | None:
        first_law = getattr(sampler, "first_law", None)
        return None if first_law is None else ServedLaw.of(first_law(prompt))

    def _call(self, side: int, prompt: tuple[int, ...], count: int) -> NDArray[np.int64]:
        """Make one call with a seed of its own."""
        found = np.asarray(self.samplers[side](prompt, count, self.next_seed))
        self.next_seed += 1
        check_call(found, count, self.length)
        self.num_drawn += count
        return found[:, : self.length]

    def sample(self, goal: float, needed: int, deadline: float) -> None:
        """Draw until each side has `goal` samples or the time is over; whole rounds only.

        When a round ends depends on the clock and never on what was drawn.
        """
        began, at_start = time.monotonic(), self.num_samples
        share = needed // (16 * _NUM_CALLS * len(self.prompts))
        count = 2 * min(_MOST_ROWS // 2, max(_LEAST_ROWS // 2, share // 2))
        while self.num_samples < goal and time.monotonic() < deadline:
            drawn = []
            for prompt in self.prompts:
                if time.monotonic() >= deadline:
                    return
                # Two seeds in a row for each side, and none for both: noise that the sides shared
                # would make them look more alike than they are.
                drawn.append([
                    [self._call(side, prompt, count) for _ in range(_NUM_CALLS)]
                    for side in range(2)
                ])  # fmt: skip
            for tally, calls in zip(self.tallies, drawn, strict=True):
                for side in range(2):
                    tally.add(side, calls[side])
            done = self.num_samples
            rate = (done - at_start) / max(1e-9, time.monotonic() - began)
            left = max(0, needed - done) / max(1e-9, rate)
            text = f"{done:,} of {needed:,} samples each, {2 * rate:,.0f}/s, {left:.0f} s left"
            self._progress.show(text)
            if time.monotonic() - self._saved > _SAVE_SECONDS:
                self.save()

    def served_tv(self) -> float | None:
        """Return how far the served laws of both sides are apart, at the prompt where most."""
        pairs = [tally.served for tally in self.tallies]
        found = [a.distance(b) for a, b in pairs if a is not None and b is not None]
        return max(found, default=None)

    def save(self) -> None:
        """Write the counts, if there is a file for them."""
        self._saved = time.monotonic()
        if self._path is not None:
            tallies = [
                {
                    "cells": [cells.state() for cells in tally.cells],
                    "served": [
                        law and dict(zip(law.tokens.tolist(), law.probs.tolist(), strict=False))
                        for law in tally.served
                    ],
                    "counts": tally.state(),
                }
                for tally in self.tallies
            ]
            state = {"next_seed": self.next_seed, "tallies": tallies}
            write_file(self._path, self._identity, state)

    def _restore(self, path: Path, state: dict[str, Any]) -> None:
        try:
            self.next_seed = int(state["next_seed"])
            for kept in state["tallies"]:
                laws = [
                    law and ServedLaw.of({int(token): p for token, p in law.items()})
                    for law in kept["served"]
                ]
                cells = [Cells(**state) for state in kept["cells"]]
                self.tallies.append(TwoTally(cells, laws))
                self.tallies[-1].restore(kept["counts"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise bad_file(path, f"these are not kept counts ({error!r})") from error
        if len(self.tallies) != len(self.prompts):
            found = f"found {len(self.tallies)} prompts, wanted {len(self.prompts)}"
            raise bad_file(path, found)
