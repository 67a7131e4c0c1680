"""Certify an accept function from inside, by calls with given probabilities and uniforms.

For fixed rows and draft tokens the output is a step function of the uniforms. Its steps along each
uniform are found by bisection, every cell between them is visited once, and the law of the emitted
tokens follows exactly, up to the rounding of the function itself. Edge cases are tried too: their
probability is so small that no sampling test finds them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.errors import ParamsError
from mtp_verify.verifier.intake import as_count

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Accept", "AcceptCertificate", "EdgeCase", "certify_accept", "transformers_accept"]

Accept = Callable[[Any, Any, Any, Any], Any]

_Point = tuple[float, tuple[int, ...]]  # a uniform, and the output there
# The largest uniform that float32 generators return: they never return 1.
_LAST_UNIFORM = 1 - 2.0**-24
# Both the steps and float32 functions are exact to about 1e-7.
_TOLERANCE = 1e-6
_GRID = 24


@dataclass(frozen=True)
class EdgeCase:
    """One call at the border of what can happen.

    Attributes:
        found: The tokens returned, or the error's text.
        problem: What is wrong with them; empty if nothing.
    """

    name: str
    found: str
    problem: str


@dataclass(frozen=True)
class AcceptCertificate:
    """What `certify_accept` found.

    Attributes:
        distances: Total variation between the exact law of the emitted tokens, continued by the
            target, and the target's, for each model.
        edges: The edge cases.
        controls: Whether a right function passed and a wrong one was found.
        num_calls: How often the function was called.
    """

    name: str
    distances: dict[str, float]
    edges: tuple[EdgeCase, ...]
    controls: dict[str, bool]
    num_calls: int

    @property
    def verdict(self) -> str:
        """Either "pass" or "biased"."""
        failed = any(edge.problem for edge in self.edges)
        biased = any(not distance <= _TOLERANCE for distance in self.distances.values())
        return "biased" if failed or biased else "pass"

    @property
    def is_sound(self) -> bool:
        """Whether both controls came out as they must."""
        return all(self.controls.values())


# The golden models: a path's row is entry (length + sum) mod number of rows.
_MODELS: dict[str, tuple[list[list[float]], list[list[float]]]] = {
    "two tokens": ([[1 / 3, 2 / 3]], [[2 / 3, 1 / 3]]),
    "three tokens": (
        [[1 / 2, 1 / 3, 1 / 6], [1 / 6, 1 / 2, 1 / 3], [1 / 4, 1 / 4, 1 / 2]],
        [[1 / 3, 1 / 3, 1 / 3], [1 / 2, 1 / 4, 1 / 4], [1 / 6, 2 / 3, 1 / 6]],
    ),
    "zeros": (
        [[0, 1 / 2, 1 / 2], [3 / 4, 1 / 4, 0], [1, 0, 0]],
        [[1 / 2, 1 / 2, 0], [1 / 4, 0, 3 / 4], [1 / 3, 1 / 3, 1 / 3]],
    ),
    "bad drafter": (
        [[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]],
        [[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]],
    ),
}


def certify_accept(
    accept: Accept, *, num_drafts: int = 2, name: str | None = None
) -> AcceptCertificate:
    """Compute the exact law of what an accept function emits, and try its edge cases.

    Args:
        accept: `accept(p, q, tokens, uniforms) -> tokens`: p float64 (K+1, V), q float64 (K, V) and
            tokens int64 (K,) are the rows along a drafted chain; uniforms float64 (K+1,) in [0, 1)
            are all its noise, the last one for the token that it draws itself. It returns what it
            emits: accepted draft tokens and one more.
        num_drafts: K of the longest chain, 1 or 2 (cost grows steeply).
        name: For the report.

    Returns:
        The certificate.

    Raises:
        ParamsError: `num_drafts` is not 1 or 2, or the function raises on ordinary rows.
    """
    num_drafts = as_count("num_drafts", num_drafts, 1, 2)
    from mtp_verify.testing import mutants

    counted = _Counted(accept)
    distances = _distances(counted, num_drafts)
    edges = tuple(_edges(counted))
    right, wrong = mutants.accept(), mutants.accept("residual_is_p")
    controls = {
        "right function passes": max(_distances(right, 1).values()) <= _TOLERANCE,
        "wrong function is found": max(_distances(wrong, 1).values()) > _TOLERANCE,
    }
    shown = name or str(getattr(accept, "__name__", type(accept).__name__))
    return AcceptCertificate(shown, distances, edges, controls, counted.num_calls)


class _Counted:
    """An accept function that counts its calls and returns plain integers."""

    def __init__(self, accept: Accept) -> None:
        self.accept, self.num_calls = accept, 0

    def __call__(self, p: Any, q: Any, tokens: Any, uniforms: Any) -> tuple[int, ...]:
        self.num_calls += 1
        try:
            found = np.asarray(self.accept(p, q, tokens, uniforms)).reshape(-1)
            return tuple(int(token) for token in found)
        except Exception as error:
            given = {"p": p, "q": q, "tokens": tokens, "uniforms": uniforms}
            shapes = ", ".join(f"{name} {np.shape(value)}" for name, value in given.items())
            what = f"{type(error).__name__}: {error}"
            message = f"the accept function raised {what}; wanted tokens for {shapes}"
            raise ParamsError(message, slug="accept_raised") from error


def _distances(accept: Accept, num_drafts: int) -> dict[str, float]:
    return {
        f"{name}, K={num}": _distance(accept, *models, num)
        for name, models in _MODELS.items()
        for num in range(1, num_drafts + 1)
    }


def _distance(
    accept: Accept, targets: list[list[float]], drafters: list[list[float]], num: int
) -> float:
    """Return the total variation of num + 1 tokens, those behind the emitted ones the target's."""

    def row(table: list[list[float]], path: Sequence[int]) -> NDArray[np.float64]:
        return np.asarray(table[(len(path) + sum(path)) % len(table)], np.float64)

    vocab = len(targets[0])
    law: dict[tuple[int, ...], float] = {}
    for tokens in itertools.product(range(vocab), repeat=num):
        prefixes = [tokens[:i] for i in range(num + 1)]
        q = np.stack([row(drafters, prefix) for prefix in prefixes[:-1]])
        weight = float(np.prod([q[i, token] for i, token in enumerate(tokens)]))
        if weight == 0:
            continue
        p = np.stack([row(targets, prefix) for prefix in prefixes])
        drafted = np.asarray(tokens, np.int64)
        for emitted, share in _integrate(accept, p, q, drafted).items():
            law[emitted] = law.get(emitted, 0.0) + weight * share
    found: dict[tuple[int, ...], float] = {}
    for emitted, weight in law.items():
        if not 1 <= len(emitted) <= num + 1 or not all(0 <= t < vocab for t in emitted):
            return 1.0  # not something that can be emitted at all
        for rest in itertools.product(range(vocab), repeat=num + 1 - len(emitted)):
            string = emitted + rest
            probability = weight * _product(targets, string, row, start=len(emitted))
            found[string] = found.get(string, 0.0) + probability
    strings = itertools.product(range(vocab), repeat=num + 1)
    exact = {string: _product(targets, string, row, start=0) for string in strings}
    return sum(abs(found.get(string, 0.0) - value) for string, value in exact.items()) / 2


def _product(
    table: list[list[float]], string: tuple[int, ...], row: Callable[..., Any], *, start: int
) -> float:
    places = range(start, len(string))
    return float(np.prod([row(table, string[:i])[string[i]] for i in places]))


def _integrate(accept: Accept, p: Any, q: Any, tokens: Any) -> dict[tuple[int, ...], float]:
    """Return the law of the emitted tokens over independent uniforms."""
    num = len(tokens) + 1

    def call(uniforms: Sequence[float]) -> tuple[int, ...]:
        return tuple(accept(p, q, tokens, np.asarray(uniforms)))

    # Steps along one uniform show only for some values of the others: low (all accepted), high
    # (all rejected) and between.
    probes = list(itertools.product((0.0, 0.37, 0.81, _LAST_UNIFORM), repeat=num - 1))
    edges = [_steps(call, axis, probes) for axis in range(num)]
    cells = [list(itertools.pairwise(axis)) for axis in edges]
    law: dict[tuple[int, ...], float] = {}
    for cell in itertools.product(*cells):
        emitted = call([(low + high) / 2 for low, high in cell])
        volume = float(np.prod([high - low for low, high in cell]))
        law[emitted] = law.get(emitted, 0.0) + volume
    return law


def _steps(
    call: Callable[[Sequence[float]], tuple[int, ...]], axis: int, probes: list[tuple[float, ...]]
) -> list[float]:
    """Return where the output changes along one uniform, 0 and 1 included."""
    found: list[float] = []
    ends = [0.0, *((i + 0.5) / _GRID for i in range(_GRID)), _LAST_UNIFORM]
    for probe in probes:

        def at(u: float, probe: tuple[float, ...] = probe) -> tuple[int, ...]:
            return call([*probe[:axis], u, *probe[axis:]])

        for one, other in itertools.pairwise([(u, at(u)) for u in ends]):
            found += _bisect(at, one, other)
    return [0.0, *_merge(found), 1.0]


def _bisect(at: Callable[[float], tuple[int, ...]], low: _Point, high: _Point) -> list[float]:
    """Return the steps between two points, however many there are."""
    if low[1] == high[1]:
        return []
    middle = (low[0] + high[0]) / 2
    if high[0] - low[0] < 1e-9:
        return [middle]
    between = middle, at(middle)
    return [*_bisect(at, low, between), *_bisect(at, between, high)]


def _merge(points: list[float]) -> list[float]:
    """Sort points, and take those closer than the bisection's precision once."""
    merged: list[float] = []
    for point in sorted(points):
        if 1e-8 < point < 1 - 1e-8 and (not merged or point - merged[-1] > 1e-8):
            merged.append(point)
    return merged


def _edges(accept: Accept) -> list[EdgeCase]:
    """Try calls at the borders: emitted tokens must have a positive target probability."""
    first, last, half = 0.0, _LAST_UNIFORM, 0.5
    tiny = float(np.finfo(np.float32).smallest_subnormal)
    even, skewed = [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]
    cases = [
        ("u = 0, target probability 0", even, skewed, 2, (first, half)),
        ("u = 0, last uniform 0", even, skewed, 2, (first, first)),
        ("u = 1 - 2^-24, target probability 0", even, skewed, 2, (last, last)),
        ("last uniform 1 - 2^-24", even, skewed, 0, (half, last)),
        ("target = drafter, u = 1 - 2^-24", even, even, 1, (last, last)),
        ("target one-hot, drafted token wrong", [0, 1.0, 0], skewed, 2, (half, half)),
        ("target one-hot, drafted token right", [0, 1.0, 0], skewed, 1, (last, half)),
        ("drafter one-hot", even, [0, 0, 1.0], 2, (half, half)),
        ("subnormal target probability", [0.5, 0.5, tiny], skewed, 2, (half, half)),
        ("subnormal draft probability", even, [1.0, tiny, 0], 1, (half, half)),
    ]
    return [_edge(accept, name, [p, even], [q], *case) for name, p, q, *case in cases]


def _edge(
    accept: Accept, name: str, target: Any, drafter: Any, token: Any, uniforms: Any
) -> EdgeCase:
    p, q = np.asarray(target, np.float64), np.asarray(drafter, np.float64)
    try:
        found = accept(p, q, np.asarray([token]), np.asarray(uniforms))
    except Exception as error:  # noqa: BLE001 - whatever the engine raises is what is reported
        return EdgeCase(name, str(error), "raises")
    emitted = [int(t) for t in found]
    problem = ""
    if not 1 <= len(emitted) <= 2 or (len(emitted) == 2 and emitted[0] != token):
        problem = "not the accepted draft and one more token"
    elif not all(0 <= t < p.shape[1] for t in emitted):
        problem = "a token outside the vocabulary"
    elif any(p[i, t] <= 0 for i, t in enumerate(emitted)):
        problem = "emits a token of target probability 0"
    return EdgeCase(name, str(emitted), problem)


def transformers_accept() -> Accept:
    """Return transformers' `_speculative_sampling` with its noise replaced by given uniforms.

    Raises:
        ImportError: transformers or torch is missing.
    """
    from unittest import mock  # with asyncio, which `mtp-verify --help` need not load

    import torch
    from transformers.generation import utils

    def accept(p: Any, q: Any, tokens: Any, uniforms: Any) -> list[int]:
        def rand_like(like: torch.Tensor) -> torch.Tensor:
            return torch.tensor(uniforms[:-1], dtype=like.dtype).reshape(like.shape)

        def multinomial(weights: torch.Tensor, num_samples: int) -> torch.Tensor:
            del num_samples
            cumulative = weights.double().cumsum(-1)
            place = int((cumulative <= float(uniforms[-1]) * cumulative[..., -1:]).sum())
            last = int(weights.reshape(-1).nonzero()[-1])
            return torch.tensor([[min(place, last)]])

        with (
            mock.patch.object(torch, "rand_like", rand_like),
            mock.patch.object(torch, "multinomial", multinomial),
        ):
            drafted = torch.as_tensor(np.asarray(tokens))[None]
            rows = [torch.as_tensor(np.asarray(row)).float().log()[None] for row in (q, p)]
            valid, _ = utils._speculative_sampling(drafted, rows[0], len(tokens), rows[1])
        return [int(token) for token in valid[0]]

    return accept
