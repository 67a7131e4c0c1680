"""Runs the drafters and plain decoding on prompts, in turn."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify import derive_seed
from mtp_verify.compare import library_generate
from mtp_verify.decode import Decoder
from mtp_verify.generation import Stats
from mtp_verify.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mtp_verify.benchmark.entrants import Entrant

__all__ = ["LIBRARY", "MODES", "PLAIN", "Run", "measure"]

PLAIN = "plain"
LIBRARY = "transformers"
MODES = {
    "greedy": SamplingParams(temperature=0.0),
    "sampled": SamplingParams(temperature=0.8, top_p=0.95),
}


@dataclass(frozen=True)
class Run:
    """One generation.

    Attributes:
        prompt: index of the prompt.
        mode: of `MODES`.
        entrant: its name, `PLAIN`, or `LIBRARY` for transformers' own loop.
        stats: the decoder's; the time is that of decoding alone, without the prompt's forward.
        tokens: that were emitted.
    """

    prompt: int
    mode: str
    entrant: str
    stats: Stats
    tokens: list[int]


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
    change of the machine's load meets all of them. The target reads the prompt once; every run
    starts from a copy of that cache.

    Args:
        model: a transformers causal language model in evaluation mode.
        prompts: token ids of each.
        entrants: the drafters.
        modes: of `MODES`.
        max_new_tokens: an EOS token may end a run earlier.
        seed: prompt i takes `derive_seed(seed, i)`.
        head: a trained head for the model, where an entrant drafts with one.
        tell: called before each run with prompt, mode and entrant.

    Yields:
        The runs as they end.
    """
    for index, tokens in enumerate(prompts):
        ids = torch.tensor([list(tokens)])
        with torch.inference_mode():
            past = _read(model, ids)
        for mode in modes:
            params = MODES[mode]
            # Fresh drafters: nothing is known from other prompts.
            ways: list[tuple[str, Any]] = [
                (entrant.name, entrant.make(model, params, head)) for entrant in entrants
            ]
            ways[:0] = [(PLAIN, None), (LIBRARY, None)]
            shift = index % len(ways)
            for name, drafter in ways[shift:] + ways[:shift]:
                if tell is not None:
                    tell(index, mode, name)
                own = derive_seed(seed, index)
                cache = copy.deepcopy(past)
                if name == LIBRARY:
                    stats, emitted = _library(model, ids, params, max_new_tokens, own, cache)
                    yield Run(index, mode, name, stats, emitted)
                    continue
                made = Decoder(model, drafter, params).generate(
                    ids,
                    max_new_tokens=max_new_tokens,
                    seed=own,
                    past_key_values=cache,
                )
                yield Run(index, mode, name, made.stats, made.tokens[0])


def _library(
    model: Any, ids: torch.Tensor, params: SamplingParams, count: int, seed: int, cache: Any
) -> tuple[Stats, list[int]]:
    """Generate with transformers' own loop; each of its steps emits a token."""
    start = time.perf_counter()
    output = library_generate(model, ids, params, count, seed, past_key_values=cache)
    seconds = time.perf_counter() - start
    tokens = output[0, ids.shape[1] :].tolist()
    stats = Stats(
        steps=len(tokens), forwards=len(tokens), emitted=len(tokens), total_seconds=seconds
    )
    return stats, tokens


def _read(model: Any, ids: torch.Tensor) -> Any:
    """Return the cache of all tokens but the last, or None if there is one token only."""
    if ids.shape[1] < 2:
        return None
    return model(input_ids=ids[:, :-1].to(model.device), use_cache=True).past_key_values
