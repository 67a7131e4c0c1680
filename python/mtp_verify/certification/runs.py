"""The calls of one certification: prompts in turn, counts kept in a file, progress shown."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.errors import ParamsError

if TYPE_CHECKING:
    from pathlib import Path

    from mtp_verify.certification.tally import Tally
    from mtp_verify.certification.ties import Ties

__all__ = ["Run", "Sampler"]

Sampler = Callable[[Sequence[int], int, int], Any]

_SAVE_SECONDS = 5.0


class Run:
    """The calls of one certification, two consecutive seeds at a time, prompt after prompt."""

    def __init__(
        self,
        subject: Sampler,
        prompts: tuple[tuple[int, ...], ...],
        tallies: list[Tally],
        needed: int,
        seed: int,
        ties: Ties | None = None,
    ) -> None:
        self.subject, self.prompts, self.tallies = subject, prompts, tallies
        self.ties = ties
        self.needed, self.next_seed = needed, seed
        # About 16 rounds: enough for progress and looks, few enough for engines that batch.
        self.count = 2 * max(1, min(2048, needed // (64 * len(prompts))))
        self.path: Path | None = None
        self.identity: dict[str, Any] = {}
        self.saved = time.monotonic()
        self.is_shown = sys.stderr.isatty()

    @property
    def num_samples(self) -> int:
        """How many strings have been drawn, over all prompts."""
        return sum(tally.num_samples for tally in self.tallies)

    def check_repeats(self) -> bool:
        """Whether one seed gives the same strings twice."""
        calls = [np.asarray(self.subject(self.prompts[0], 4, self.next_seed)) for _ in range(2)]
        for call in calls:
            self._check(call, 4)
        return bool(np.array_equal(calls[0], calls[1]))

    def sample(self, goal: float, deadline: float) -> None:
        """Draw until there are `goal` samples or the time is over; whole rounds only."""
        began, at_start = time.monotonic(), self.num_samples
        while self.num_samples < goal and time.monotonic() < deadline:
            for prompt, tally in zip(self.prompts, self.tallies, strict=True):
                calls = [self.subject(prompt, self.count, self.next_seed + i) for i in range(2)]
                for call in calls:
                    self._check(np.asarray(call), self.count)
                if self.ties is not None:
                    calls = [self.ties.resolve(prompt, call) for call in calls]
                tally.add(*calls)
            self.next_seed += 2
            self._show(began, at_start)
            if time.monotonic() - self.saved > _SAVE_SECONDS:
                self.save()

    def _check(self, call: np.ndarray[Any, Any], count: int) -> None:
        length = self.tallies[0].law.length
        if call.ndim != 2 or call.shape[0] != count or call.shape[1] < length:
            message = (
                f"the engine returned shape {call.shape}, wanted ({count}, {length}) or wider: "
                "n continuations, without the prompt and without stopping early"
            )
            raise ParamsError(message, slug="shape_mismatch")

    def _show(self, began: float, at_start: int) -> None:
        if not self.is_shown:
            return
        done = self.num_samples
        rate = (done - at_start) / max(1e-9, time.monotonic() - began)
        left = max(0.0, self.needed - done) / max(1e-9, rate)
        sys.stderr.write(f"\r\x1b[K{done:,} of {self.needed:,} samples, {left:.0f} s left")
        sys.stderr.flush()

    def load(self, path: Path, identity: dict[str, Any]) -> None:
        """Go on from a file, if there is one.

        Raises:
            ParamsError: It belongs to another certification, or was not written by this class.
        """
        self.path, self.identity = path, json.loads(json.dumps(identity))
        if not path.exists():
            return
        try:
            state = json.loads(path.read_text())
            found = state["identity"]
            next_seed, count = int(state["next_seed"]), int(state["count"])
            kept = [dict(tally) for tally in state["tallies"]]
            num_ties = int(state["num_ties"])
        except (KeyError, TypeError, ValueError) as error:
            message = f"{path}: these are not kept counts ({error!r}): take another file"
            raise ParamsError(message, slug="bad_resume") from error
        if found != self.identity:
            message = (
                f"{path}: found {found}, wanted {self.identity}; another certification was kept "
                "there: take another file"
            )
            raise ParamsError(message, slug="bad_resume")
        if len(kept) != len(self.tallies) or count < 1:
            message = f"{path}: found {len(kept)} prompts of {count} samples: take another file"
            raise ParamsError(message, slug="bad_resume")
        for tally, counts in zip(self.tallies, kept, strict=True):
            tally.restore(counts)
        self.next_seed, self.count = next_seed, count
        if self.ties is not None:
            self.ties.num = num_ties

    def save(self) -> None:
        """Write the counts, so that no moment leaves half a file."""
        self.saved = time.monotonic()
        if self.path is None:
            return
        state = {
            "identity": self.identity,
            "next_seed": self.next_seed,
            "count": self.count,
            "num_ties": 0 if self.ties is None else self.ties.num,
            "tallies": [tally.state() for tally in self.tallies],
        }
        draft = self.path.with_suffix(self.path.suffix + ".part")
        draft.write_text(json.dumps(state))
        draft.replace(self.path)

    def finish(self) -> None:
        """Keep the counts and take the progress line away."""
        self.save()
        if self.is_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
