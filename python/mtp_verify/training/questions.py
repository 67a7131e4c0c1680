"""Prompts that the target makes up: it writes what a user would say, and then answers that.

A chat model has learned what comes between the marks of a user's turn. After the opening mark alone
it writes messages on anything, of far more kinds than templates give.

References:
    Magpie, arXiv 2406.08464.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from math import inf
from typing import TYPE_CHECKING, Any

from mtp_verify.decoder.decode import Decoder
from mtp_verify.training.writing import stop_at
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Frame", "finish_messages", "frame_of"]

_PROBES = ("Xylophone", "2 apples")  # nothing in common, at either end
_TEMPERATURE = 0.8
_LONGEST = 48  # tokens of a message; one that is longer ends there


@dataclass(frozen=True)
class Frame:
    """Token ids around a user's message in a prompt; the first of `closing` ends the message."""

    opening: tuple[int, ...]
    closing: tuple[int, ...]


def frame_of(encode: Callable[[str], list[int]]) -> Frame | None:
    """Return what `encode` puts around messages, or None if it puts nothing before or after.

    Example:
        >>> frame_of(lambda text: [1, 2, *text.encode(), 3, 4])
        Frame(opening=(1, 2), closing=(3, 4))
    """
    one, two = (encode(probe) for probe in _PROBES)
    before, after = _num_common(one, two), _num_common(one[::-1], two[::-1])
    if not before or not after:
        return None
    return Frame(tuple(one[:before]), tuple(one[len(one) - after :]))


def finish_messages(
    model: Any,
    openings: Sequence[Sequence[int]],
    closing: Sequence[int],
    seed: int,
    deadline: float = inf,
) -> list[list[int]]:
    """Let the target write the rest of messages; return prompts, ready to be answered.

    `openings` are token ids, up to where it continues. It ends a message with the first id of
    `closing`, which then follows. Messages end at the `deadline`, as in `write_texts`.
    """
    params = SamplingParams(temperature=_TEMPERATURE, stop_ids=[closing[0]])
    decoder = Decoder(model, params=params, max_batch=len(openings))
    written = decoder.generate(
        [list(opening) for opening in openings],
        max_new_tokens=_LONGEST,
        seed=seed,
        stopping_criteria=stop_at(openings, deadline),
    )
    ends = {closing[0], *decoder.target.eos_ids}
    return [
        [*opening, *(token for token in message if token not in ends), *closing]
        for opening, message in zip(openings, written.tokens, strict=True)
    ]


def _num_common(one: Sequence[int], two: Sequence[int]) -> int:
    """Return how many ids two sequences have in common at their start."""
    pairs = zip(one, two, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
