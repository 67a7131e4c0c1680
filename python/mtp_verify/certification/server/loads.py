"""How a server is loaded while it is certified: a bias may show under one load alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.errors import ParamsError
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LOADS", "Case", "Load", "matrix", "words_of"]

_SHOWN = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty",
)  # fmt: skip
_PREFIX_TOKENS = 4  # different ones, as in `make_prompts`


@dataclass(frozen=True)
class Load:
    """A load.

    Attributes:
        name: A key of `LOADS`.
        words: What it is, for reports.
        concurrency: Requests at a time, at most.
        n: Continuations of a request.
        stream: Whether answers are read as streams.
        is_seeded: Whether each request has a seed.
        is_mixed: Whether requests of other prompts, lengths and temperatures run beside those that
            are counted.
        prefix: Tokens that all prompts begin with.
    """

    name: str
    words: str
    concurrency: int = 16
    n: int = 1
    stream: bool = False
    is_seeded: bool = True
    is_mixed: bool = False
    prefix: int = 0

    def lengthened(self, prompts: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
        """Return the prompts behind the common prefix."""
        tokens = np.random.default_rng(0).integers(0, _PREFIX_TOKENS, self.prefix).tolist()
        return tuple((*tokens, *prompt) for prompt in prompts)


LOADS = {
    load.name: load
    for load in (
        Load("batch", "16 requests at a time"),
        Load("alone", "one request at a time", concurrency=1),
        Load("n", "8 continuations of each request", concurrency=4, n=8),
        Load("mixed", "requests of other lengths and temperatures in between", is_mixed=True),
        Load("stream", "answers in streams", stream=True),
        Load("cache", "160 tokens in common, found in the prefix cache", prefix=160),
        Load("long", "480 tokens in common: prefill in chunks, if these are smaller", prefix=480),
        Load("free", "no seeds", is_seeded=False),
    )
}
# Kinds of shaping, each alone: its name is in the report if it is what a bias needs.
_SHAPINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.6},
    {"temperature": 1.4},
    {"temperature": 0.0},
    {"top_k": 3},
    {"top_p": 0.8},
    {"min_p": 0.15},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.8},
    {"frequency_penalty": 0.8},
)


@dataclass(frozen=True)
class Case:
    """One entry of the matrix: a load, and how rows are shaped."""

    load: Load
    params: SamplingParams

    @property
    def name(self) -> str:
        """The load and the shaping, in words."""
        return f"load {self.load.name}, {words_of(self.params)}"


def matrix(
    params: SamplingParams, loads: Sequence[str] = ("batch",), *, is_whole: bool = False
) -> list[Case]:
    """Return the cases to certify.

    Args:
        params: How rows are shaped under each load.
        loads: Keys of `LOADS`.
        is_whole: Take all loads instead, and under the first of them every kind of shaping too.

    Raises:
        ParamsError: There is no such load.
    """
    for name in loads:
        if name not in LOADS:
            message = f"load {name!r}: wanted one of: {', '.join(LOADS)}"
            raise ParamsError(message, slug="unknown_load")
    chosen = list(LOADS if is_whole else dict.fromkeys(loads))
    cases = [Case(LOADS[name], params) for name in chosen]
    if is_whole:
        plain = SamplingParams(preset=params.preset)
        shapings = [replace(plain, **changed) for changed in ({}, *_SHAPINGS)]
        cases += [Case(LOADS[chosen[0]], shaping) for shaping in shapings if shaping != params]
    return cases


def words_of(params: SamplingParams) -> str:
    """Return how rows are shaped, in a few words."""
    plain = SamplingParams()
    own = {name: getattr(params, name) for name in _SHOWN}
    changed = [f"{name} {value:g}" for name, value in own.items() if value != getattr(plain, name)]
    return ", ".join(changed).replace("_", "-") or "temperature 1"
