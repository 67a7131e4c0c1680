"""Runs the drafters and plain decoding on prompts, in turn."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify import derive_seed
from mtp_verify.decode import Decoder
from mtp_verify.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mtp_verify.benchmark.entrants import Entrant
    from mtp_verify.generation import Stats

__all__ = ["MODES", "PLAIN", "Run", "measure"]

PLAIN = "plain"
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
        entrant: its name, or `PLAIN`.
        stats: the decoder's; the time is that of decoding alone, without the prompt's forward.
    """

    prompt: int
    mode: str
    entrant: str
    stats: Stats


def measure(
    model: Any,
    prompts: Sequence[Sequence[int]],
    entrants: Sequence[Entrant],
    modes: Sequence[str],
    *,
    max_new_tokens: int,
    seed: int = 0,
    tell: Callable[[int, str, str], None] | None = None,
) -> Iterator[Run]:
    """Generate from each prompt in each mode: plainly, and with each drafter.

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
                (entrant.name, entrant.make(model, params)) for entrant in entrants
            ]
            ways.insert(0, (PLAIN, None))
            shift = index % len(ways)
            for name, drafter in ways[shift:] + ways[:shift]:
                if tell is not None:
                    tell(index, mode, name)
                made = Decoder(model, drafter, params).generate(
                    ids,
                    max_new_tokens=max_new_tokens,
                    seed=derive_seed(seed, index),
                    past_key_values=copy.deepcopy(past),
                )
                yield Run(index, mode, name, made.stats)


def _read(model: Any, ids: torch.Tensor) -> Any:
    """Return the cache of all tokens but the last, or None if there is one token only."""
    if ids.shape[1] < 2:
        return None
    return model(input_ids=ids[:, :-1].to(model.device), use_cache=True).past_key_values
