"""Runs the drafters and plain decoding on prompts, in turn."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify.commands.shared.compare import library_generate
from mtp_verify.decoder.decode import Decoder
from mtp_verify.decoder.generation import Stats
from mtp_verify.decoder.planning import MeasuredCosts, Planner
from mtp_verify.models.target import as_target
from mtp_verify.verifier.api import derive_seed
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mtp_verify.commands.shared.entrants import Entrant

__all__ = ["LIBRARY", "MODES", "PLAIN", "Run", "measure"]

PLAIN = "plain"
LIBRARY = "transformers"
MODES = {
    "greedy": SamplingParams(temperature=0.0),
    "sampled": SamplingParams(temperature=0.8, top_p=0.95),
}


@dataclass(frozen=True)
class Run:
    """One generation in one of `MODES` from the prompt of an index.

    Attributes:
        entrant: its name, `PLAIN`, or `LIBRARY` for transformers' own loop.
        late_tokens: emitted after the first step, which reads the prompt, in `late_seconds`.
    """

    prompt: int
    mode: str
    entrant: str
    stats: Stats
    tokens: list[int]
    late_tokens: int
    late_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Of decoding alone; 0 for a run of a single step."""
        return self.late_tokens / self.late_seconds


class _Clock:
    """A streamer that notes when the first tokens were emitted, and how many."""

    def __init__(self) -> None:
        self.first, self.num_first, self._calls = 0.0, 0, 0

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then tokens."""
        self._calls += 1
        if self._calls == 2:
            self.first, self.num_first = time.perf_counter(), value.numel()

    def end(self) -> None:
        """Take no notice."""


def measure(
    model: Any,
    prompts: Sequence[Sequence[int]],
    entrants: Sequence[Entrant],
    modes: Sequence[str],
    *,
    max_new_tokens: int,
    seed: int = 0,
    head: Any | None = None,
    tell: Callable[[int, str, str], None] | None = None,
) -> Iterator[Run]:
    """Generate from each prompt in each mode: plainly, by transformers, and with each drafter.

    Runs on one prompt follow one another, in an order that rotates from prompt to prompt, so that a
    change of the machine's load affects all of them. `tell` is called before each run with prompt,
    mode and entrant; prompt i, of token ids, takes `derive_seed(seed, i)`.
    """
    costs = MeasuredCosts(as_target(model))  # measured when they are first asked for
    for index, tokens in enumerate(prompts):
        ids = torch.tensor([list(tokens)])
        own = derive_seed(seed, index)
        for mode in modes:
            params = MODES[mode]
            ways: list[tuple[str, Any, Planner | None]]
            ways = [(PLAIN, None, None), (LIBRARY, None, None)]
            for entrant in entrants:  # fresh drafters: nothing is known from other prompts
                planner = Planner(costs) if entrant.is_planned else None
                ways.append((entrant.name, entrant.make(model, head), planner))
            shift = index % len(ways)
            for name, drafter, planner in ways[shift:] + ways[:shift]:
                if tell is not None:
                    tell(index, mode, name)
                clock = _Clock()
                if name == LIBRARY:
                    made = library_generate(model, ids, params, max_new_tokens, own, streamer=clock)
                    emitted = made[0, ids.shape[1] :].tolist()
                    stats = Stats(steps=len(emitted), forwards=len(emitted), emitted=len(emitted))
                else:
                    found = Decoder(model, drafter, params, planner=planner).generate(
                        ids, max_new_tokens=max_new_tokens, seed=own, streamer=clock
                    )
                    emitted, stats = found.tokens[0], found.stats
                seconds = time.perf_counter() - clock.first
                late = len(emitted) - clock.num_first
                yield Run(index, mode, name, stats, emitted, late, seconds)
