"""Prompts that the target makes up: it writes what a user would say, and then answers that.

A model for chats has learned what stands between the marks of a user's turn. Left to go on after
the opening one it writes messages on anything, far more kinds of them than templates hold.

References:
    Magpie, arXiv 2406.08464.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from mtp_verify.decoder.decode import Decoder
from mtp_verify.training.deadlines import criteria
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Frame", "finish_messages", "frame_of"]

_PROBES = ("Xylophone", "2 apples")  # nothing in common, at either end
_TEMPERATURE = 0.8
_LONGEST = 48  # tokens of a message; one that is longer ends there


@dataclass(frozen=True)
class Frame:
    """What stands around a user's message in a prompt.

    Attributes:
        opening: token ids before it.
        closing: token ids after it; the first of them ends the message.
    """

    opening: tuple[int, ...]
    closing: tuple[int, ...]


def frame_of(encode: Callable[[str], list[int]]) -> Frame | None:
    """The frame that `encode` puts around messages, or None if it puts nothing before or behind.

    Example:
        >>> frame_of(lambda text: [1, 2, *text.encode(), 3, 4])
        Frame(opening=(1, 2), closing=(3, 4))
    """
    one, two = (encode(probe) for probe in _PROBES)
    before, behind = _num_common(one, two), _num_common(one[::-1], two[::-1])
    if not before or not behind:
        return None
    return Frame(tuple(one[:before]), tuple(one[len(one) - behind :]))


def finish_messages(
    model: Any,
    openings: Sequence[Sequence[int]],
    closing: Sequence[int],
    seed: int,
    deadline: float = inf,
) -> list[list[int]]:
    """Let the target write the rest of messages.

    Args:
        model: the target.
        openings: token ids of each, up to where it goes on.
        closing: what then follows; the target ends a message with the first of them.
        seed: of the draws.
        deadline: of `time.monotonic()`: the messages end there, as `writing.write_texts`.

    Returns:
        The prompts, ready to be answered.
    """
    params = SamplingParams(temperature=_TEMPERATURE, stop_ids=[closing[0]])
    decoder = Decoder(model, params=params, max_batch=len(openings))
    written = decoder.generate(
        [list(opening) for opening in openings],
        max_new_tokens=_LONGEST,
        seed=seed,
        stopping_criteria=criteria(openings, deadline),
    )
    ends = {closing[0], *decoder.target.eos_ids}
    return [
        [*opening, *(token for token in message if token not in ends), *closing]
        for opening, message in zip(openings, written.tokens, strict=True)
    ]


def _num_common(one: Sequence[int], two: Sequence[int]) -> int:
    """How many ids two sequences begin with alike."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, two, strict=False)) if a != b),
        min(len(one), len(two)),
    )
