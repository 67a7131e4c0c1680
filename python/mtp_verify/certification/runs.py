"""The calls of one certification: prompts in turn, counts kept in a file, progress shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.certification.kept import bad_file, read_file, write_file
from mtp_verify.certification.paths import NUM_CALLS
from mtp_verify.errors import ParamsError, ServerError
from mtp_verify.testing.laws import ENDED

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mtp_verify.certification.paths import PathTally
    from mtp_verify.certification.tally import Tally
    from mtp_verify.certification.ties import Ties
    from mtp_verify.console.terminal import Progress

__all__ = ["Run", "Sampler", "TimeOverError", "TimedRows", "check_call"]

Sampler = Callable[[Sequence[int], int, int], Any]

_SAVE_SECONDS = 5.0
# Rows of a call: so that noise that rows share shows, and engines that batch do batch.
_LEAST_ROWS = 16
# Most of the time that there is, for one round: what is under way when it is over is lost.
_ROUND_SHARE = 0.1


def check_call(call: NDArray[np.int64], count: int, width: int) -> None:
    """Refuse what is not `count` strings of at least `width` tokens.

    Raises:
        ParamsError: Another shape, or no integers.
    """
    message = ""
    if call.ndim != 2 or call.shape[0] != count or call.shape[1] < width:
        message = (
            f"found shape {call.shape} from the engine, wanted ({count}, {width}) or wider: n "
            f"continuations, without the prompt; those that have ended are filled up with {ENDED}"
        )
    elif call.dtype.kind not in "iu":
        message = f"found {call.dtype} from the engine, wanted integers"
    if message:
        raise ParamsError(message, slug="shape_mismatch")


class TimeOverError(Exception):
    """The time was over while rows of the target were computed."""


class TimedRows:
    """Rows of a target that raise `TimeOverError` instead, once the time is over.

    Laws are enumerated and strings are counted by asking for row after row: each is a place to end.
    `end` is when the time is over, of `time.monotonic()`, and may be set anew.
    """

    def __init__(self, rows: Callable[[tuple[int, ...]], Any], end: float) -> None:
        self.rows, self.end = rows, end

    def __call__(self, path: tuple[int, ...]) -> Any:
        """Return the logits behind a path."""
        self.check()
        return self.rows(path)

    def prefetch(self, prompt: tuple[int, ...], strings: NDArray[np.int64]) -> None:
        """Compute many rows at once, where the target can do that."""
        self.check()
        many = getattr(self.rows, "prefetch", None)
        if many is not None:
            many(prompt, strings)

    def check(self) -> None:
        """Raise if the time is over."""
        if time.monotonic() >= self.end:
            raise TimeOverError


class Run:
    """The calls of one certification, four consecutive seeds at a time, prompt after prompt."""

    def __init__(
        self,
        subject: Sampler,
        rows: TimedRows,
        prompts: tuple[tuple[int, ...], ...],
        tallies: list[Tally],
        paths: PathTally,
        needed: int,
        seed: int,
        ties: Ties | None,
        progress: Progress,
    ) -> None:
        self.subject, self.rows, self.prompts = subject, rows, prompts
        self.tallies, self.paths, self.ties = tallies, paths, ties
        self.needed, self.next_seed = needed, seed
        # Some 16 rounds: enough for progress and looks, few enough for engines that batch.
        share = needed // (16 * NUM_CALLS * len(prompts))
        self.count = 2 * min(1024, max(_LEAST_ROWS // 2, share // 2))
        self.call_seconds = 0.0  # of the last call, or as far as is known of the next
        self._num_rows = _LEAST_ROWS  # of a call of the next round, where time is limited
        self.path: Path | None = None
        self.identity: dict[str, Any] = {}
        self.saved = time.monotonic()
        self._progress = progress

    @property
    def num_samples(self) -> int:
        """How many strings have been drawn, over all prompts."""
        return sum(tally.num_samples for tally in self.tallies)

    def sample(self, goal: float, deadline: float) -> None:
        """Draw until there are `goal` samples or the time is over; whole rounds only.

        Prompts need equally many samples, and a round that ends after the deadline is not counted:
        that depends on the clock, never on what was drawn. Where there is a deadline, rounds begin
        small and grow while they take a small share of the time. How long it takes to count one
        depends on what was drawn: for that there is a share of the time after the deadline, which
        was enough for the other rounds.
        """
        began, at_start = time.monotonic(), self.num_samples
        self._progress.show(f"{at_start:,} of {self.needed:,} samples")
        width = max(self.tallies[0].law.length, self.paths.horizon)
        most = _ROUND_SHARE * (deadline - began)
        while self.num_samples < goal and time.monotonic() < deadline:
            start = time.monotonic()
            count = self.count if deadline == inf else min(self.count, self._num_rows)
            try:
                drawn = self._draw(count, width, deadline)
            except ServerError:  # gone or busy: what was counted is kept, and the run can continue
                self.save()
                raise
            if drawn is None or not self._count(drawn, deadline + most):
                return
            seconds = time.monotonic() - start
            if seconds < most / 2:
                self._num_rows = min(2 * self._num_rows, self.count)
                self.call_seconds *= self._num_rows / count
            elif seconds > most:
                self._num_rows = max(self._num_rows // 4 * 2, _LEAST_ROWS)
            done = self.num_samples
            rate = (done - at_start) / max(1e-9, time.monotonic() - began)
            left = max(0.0, self.needed - done) / max(1e-9, rate)
            self._progress.show(f"{done:,} of {self.needed:,} samples, {left:.0f} s left")
            if time.monotonic() - self.saved > _SAVE_SECONDS:
                self.save()

    def _draw(
        self, count: int, width: int, deadline: float
    ) -> list[list[NDArray[np.int64]]] | None:
        """Make one round of calls, or return None once it would end behind the deadline."""
        drawn = []
        num_left = NUM_CALLS * len(self.prompts)
        for index in range(len(self.prompts)):
            # Seeds of its own: prompts that share noise would not count as several samples.
            seed = self.next_seed + index * NUM_CALLS
            calls = []
            for number in range(seed, seed + NUM_CALLS):
                start = time.monotonic()
                if start + num_left * self.call_seconds >= deadline:
                    return None
                calls.append(np.asarray(self.subject(self.prompts[index], count, number)))
                check_call(calls[-1], count, width)
                self.call_seconds = time.monotonic() - start
                num_left -= 1
            drawn.append(calls)
        return drawn

    def _count(self, drawn: list[list[NDArray[np.int64]]], end: float) -> bool:
        """Count a round; False, and nothing is counted, if the time is over before all of it is."""
        kept = self._state()
        self.rows.end = end
        try:
            for prompt, tally, calls in zip(self.prompts, self.tallies, drawn, strict=True):
                self.rows.check()
                self.paths.add(prompt, calls, self.next_seed)
                if self.ties is not None:
                    calls = [self.ties.resolve(prompt, call) for call in calls]
                for pair in range(0, NUM_CALLS, 2):
                    tally.add(*calls[pair : pair + 2])
                self.next_seed += NUM_CALLS
        except TimeOverError:
            self._restore(kept)
            return False
        finally:
            self.rows.end = inf
        return True

    def load(self, path: Path, identity: dict[str, Any]) -> None:
        """Go on from a file, if there is one.

        Raises:
            ParamsError: It is of another certification, or was not written by this class.
        """
        self.path, self.identity = path, identity
        if (state := read_file(path, identity)) is None:
            return
        try:
            state |= {name: int(state[name]) for name in ("next_seed", "count", "num_ties")}
            state |= {"tallies": [*map(dict, state["tallies"])], "paths": dict(state["paths"])}
        except (KeyError, TypeError, ValueError) as error:
            raise bad_file(path, f"these are not kept counts ({error!r})") from error
        if (num := len(state["tallies"])) != len(self.tallies) or state["count"] < 1:
            raise bad_file(path, f"found {num} prompts of {state['count']} samples")
        self._restore(state)

    def save(self) -> None:
        """Write the counts to the file of `load`, if there is one."""
        self.saved = time.monotonic()
        if self.path is not None:
            write_file(self.path, self.identity, self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "next_seed": self.next_seed,
            "count": self.count,
            "num_ties": 0 if self.ties is None else self.ties.num,
            "tallies": [tally.state() for tally in self.tallies],
            "paths": self.paths.state(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        for tally, counts in zip(self.tallies, state["tallies"], strict=True):
            tally.restore(counts)
        self.paths.restore(state["paths"])
        self.next_seed, self.count = state["next_seed"], state["count"]
        if self.ties is not None:
            self.ties.num = state["num_ties"]
