"""Engines with one named mistake each, beside right ones: controls for whoever certifies.

Engines are small (a table of rows) and draw many samples at once with NumPy, so that a certifier
can be tried hundreds of times. `ENGINES` and `ACCEPTS` name them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.errors import ParamsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["ACCEPTS", "ENGINES", "TableEngine", "accept", "engine", "table_rows"]

# The mistakes of whole engines, and what is wrong.
ENGINES = {
    "none": "right: token rejection with a chain of drafts",
    "residual_is_p": "after a rejection the token is drawn from the target, not the residual",
    "greedy_claimed_chain": "drafts the most likely token, but declares it drawn from q",
    "bonus_from_draft": "the token after a full acceptance is drawn from the drafter's row",
    "emits_argmax": "commits the target's most likely token although sampling was asked for",
    "noise_reused": "the uniform of a token serves the next one too",
    "rows_share_noise": "consecutive seeds share their noise",
    "biased": "moves a stated mass from the most to the least likely first token",
}

# The mistakes of accept functions.
ACCEPTS = {
    "none": "right: accept if u q < p, else draw from (p - q)+",
    "le_at_zero": "accepts u q <= p: at u = 0 a token of target probability 0",
    "inverted_ratio": "accepts with probability q / p",
    "residual_is_p": "draws from the target after a rejection",
    "shared_uniform": "one uniform for all draft tokens",
    "runs_past_last_positive": "a draw that ends by rounding gives the last token, possible or not",
}


def table_rows(vocab: int, seed: int, spread: float = 1.0) -> Callable[[tuple[int, ...]], Any]:
    """Return random logits (V,) as a function of the whole path: a wrong path or order shows."""
    table = np.random.default_rng(seed).normal(size=(211, vocab)) * spread

    def rows(path: tuple[int, ...]) -> NDArray[np.float64]:
        place = 0
        for token in path:
            place = (place * 31 + int(token) + 1) % 211
        return np.asarray(table[place])

    return rows


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


@lru_cache(maxsize=32)
def _tables(
    vocab: int, seed: int, prompt: tuple[int, ...], depth: int
) -> tuple[NDArray[np.float64], ...]:
    """The rows after every string of 0 .. depth - 1 tokens: each (V**d, V).

    Raises:
        ParamsError: Too many strings to keep.
    """
    if vocab ** (depth - 1) > 1 << 16:
        message = f"{vocab}**{depth - 1} strings are too many; take a smaller vocabulary or length"
        raise ParamsError(message, slug="law_too_large")
    rows = table_rows(vocab, seed)
    strings: list[tuple[int, ...]] = [()]
    tables = []
    for _ in range(depth):
        tables.append(_softmax(np.array([rows((*prompt, *string)) for string in strings])))
        strings = [(*string, token) for string in strings for token in range(vocab)]
    return tuple(tables)


@dataclass(frozen=True)
class TableEngine:
    """A sampler `f(prompt, n, seed) -> int (n, length)`; `rows` is the target it claims to keep.

    Attributes:
        vocab: V.
        length: Tokens that it generates; more than are compared, as engines shorten late drafts.
        num_drafts: Length of a draft.
        mistake: A key of `ENGINES`.
        tv: The total variation of the mistake "biased".
    """

    vocab: int = 4
    length: int = 5
    num_drafts: int = 2
    mistake: str = "none"
    tv: float = 0.02
    table_seed: int = 7

    @property
    def rows(self) -> Callable[[tuple[int, ...]], Any]:
        """The target's logits after a path."""
        return table_rows(self.vocab, self.table_seed)

    def __call__(self, prompt: Sequence[int], n: int, seed: int) -> NDArray[np.int64]:
        """Draw n independent strings that follow `prompt`."""
        rng = np.random.default_rng(seed)
        depth = self.length + self.num_drafts + 1
        start = tuple(int(token) for token in prompt)
        target, draft = (
            _tables(self.vocab, seed, start, depth)
            for seed in (self.table_seed, self.table_seed + 1)
        )
        shared = self.mistake == "rows_share_noise"
        out = _Run(self, target, draft, -(-n // 2) if shared else n, rng).tokens()
        return np.repeat(out, 2, axis=0)[:n] if shared else out


class _Run:
    """One call of a `TableEngine`: n strings, advanced a step at a time until all are full."""

    def __init__(
        self,
        engine: TableEngine,
        target: tuple[NDArray[np.float64], ...],
        draft: tuple[NDArray[np.float64], ...],
        n: int,
        rng: np.random.Generator,
    ) -> None:
        self.engine, self.mistake, self.rng = engine, engine.mistake, rng
        self.target, self.draft = target, draft
        self.lengths = np.zeros(n, np.int64)
        self.paths = np.zeros(n, np.int64)  # of the tokens so far, as an index into the tables
        self.out = np.zeros((n, engine.length + engine.num_drafts + 1), np.int64)
        self.uniform = rng.random(n)

    def tokens(self) -> NDArray[np.int64]:
        while (rows := np.flatnonzero(self.lengths < self.engine.length)).size:
            for length in np.unique(self.lengths[rows]):
                self._step(rows[self.lengths[rows] == length], int(length))
        return self.out[:, : self.engine.length]

    def _emit(self, rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        self.out[rows, self.lengths[rows]] = tokens
        self.paths[rows] = self.paths[rows] * self.engine.vocab + tokens
        self.lengths[rows] += 1

    def _draw(self, rows: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.int64]:
        if self.mistake == "emits_argmax":
            return np.asarray(weights.argmax(axis=1))
        if self.mistake != "noise_reused" or self.lengths[rows[:1]] % 2 == 0:
            self.uniform[rows] = self.rng.random(len(rows))
        cumulative = weights.cumsum(axis=1)
        place = self.uniform[rows, None] * cumulative[:, -1:]
        return np.asarray((cumulative <= place).sum(axis=1).clip(max=weights.shape[1] - 1))

    def _step(self, rows: NDArray[np.int64], length: int) -> None:
        """One step of the strings `rows`, all of which have `length` tokens."""
        if self.mistake == "biased" and length == 0:
            row = self.target[0][0].copy()
            source, sink = int(row.argmax()), int(row.argmin())
            row[source] -= self.engine.tv
            row[sink] += self.engine.tv
            self._emit(rows, self._draw(rows, np.tile(row, (len(rows), 1))))
            return
        if self.mistake in {"emits_argmax", "noise_reused"}:
            self._emit(rows, self._draw(rows, self.target[length][self.paths[rows]]))
            return
        for depth in range(length, length + self.engine.num_drafts):
            p, q = self.target[depth][self.paths[rows]], self.draft[depth][self.paths[rows]]
            greedy = self.mistake == "greedy_claimed_chain"
            drafted = q.argmax(axis=1) if greedy else self._draw(rows, q)
            each = np.arange(len(rows))
            kept = self.rng.random(len(rows)) * q[each, drafted] < p[each, drafted]
            residual = p if self.mistake == "residual_is_p" else np.maximum(p - q, 0)
            lost = ~kept
            if lost.any():
                self._emit(rows[lost], self._draw(rows[lost], residual[lost]))
            rows = rows[kept]
            if not rows.size:
                return
            self._emit(rows, drafted[kept])
        table = self.draft if self.mistake == "bonus_from_draft" else self.target
        last = length + self.engine.num_drafts
        self._emit(rows, self._draw(rows, table[last][self.paths[rows]]))


def engine(mistake: str = "none", **options: Any) -> TableEngine:
    """Return the engine with a mistake of `ENGINES`.

    Raises:
        ParamsError: No such mistake; lists the known ones.
    """
    if mistake not in ENGINES:
        message = f"mistake: found {mistake!r}, wanted one of: {', '.join(ENGINES)}"
        raise ParamsError(message, slug="param_out_of_range")
    return TableEngine(mistake=mistake, **options)


def accept(mistake: str = "none") -> Callable[..., list[int]]:
    """Return the accept function `accept(p, q, tokens, uniforms) -> tokens` with a mistake.

    The rule is token rejection: p (K+1, V), q (K, V), tokens (K,), uniforms (K+1,) of which the
    last one draws the final token.

    Raises:
        ParamsError: No such mistake in `ACCEPTS`; lists the known ones.
    """
    if mistake not in ACCEPTS:
        message = f"mistake: found {mistake!r}, wanted one of: {', '.join(ACCEPTS)}"
        raise ParamsError(message, slug="param_out_of_range")

    def run(p: Any, q: Any, tokens: Any, uniforms: Any) -> list[int]:
        out: list[int] = []
        for i, token in enumerate(tokens):
            u = uniforms[0 if mistake == "shared_uniform" else i]
            num, den = p[i][token], q[i][token]
            if mistake == "inverted_ratio":
                num, den = den, num
            if not (u * den <= num if mistake == "le_at_zero" else u * den < num):
                rest = p[i] if mistake == "residual_is_p" else np.maximum(p[i] - q[i], 0)
                return [*out, _pick(rest if rest.sum() > 0 else p[i], uniforms[-1], mistake)]
            out.append(int(token))
        return [*out, _pick(p[len(out)], uniforms[-1], mistake)]

    return run


def _pick(weights: NDArray[np.float64], u: float, mistake: str) -> int:
    cumulative = np.cumsum(weights)
    # The mistake: sums in half precision, as kernels do, may end below the uniform.
    total = cumulative[-1] * (1.001 if mistake == "runs_past_last_positive" else 1.0)
    place = int((cumulative <= u * total).sum())
    if mistake == "runs_past_last_positive":
        return min(place, len(weights) - 1)
    return min(place, int(np.flatnonzero(weights)[-1]))
