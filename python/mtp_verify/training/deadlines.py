"""When a run must end: the clock that its parts share, and how generation stops for it."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["LEAST", "criteria"]

LEAST = 8  # tokens of a text, however late it is: fewer teach nothing


def criteria(prompts: Sequence[Sequence[int]], deadline: float) -> Any:
    """What ends each text at its first token behind the deadline, but not before `LEAST` tokens.

    Args:
        prompts: token ids of each.
        deadline: of `time.monotonic()`, which all processes of a machine share.

    Returns:
        A list of stopping criteria for each prompt, as `Decoder.generate` takes them.
    """

    def ends(least: int) -> Callable[[Any, Any], bool]:
        return lambda ids, _: ids.shape[1] >= least and monotonic() >= deadline

    return [[ends(len(prompt) + LEAST)] for prompt in prompts]
