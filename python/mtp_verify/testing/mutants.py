"""Engines with one named mistake each, beside right ones: controls for certification.

Engines are small (a table of rows) and draw many samples at once with NumPy, so that a certifier
can be tried hundreds of times. `ENGINES`, `HIDDEN` and `ACCEPTS` name them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.testing.laws import ENDED
from mtp_verify.verifier.intake import check_word
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = [
    "ACCEPTS",
    "ENGINES",
    "HIDDEN",
    "Follow",
    "TableEngine",
    "TableRun",
    "accept",
    "engine",
    "follow",
    "next_place",
    "place_of",
    "softmax",
    "table_rows",
]

# The mistakes of whole engines, and what is wrong.
ENGINES = {
    "none": "right: token rejection with a chain of drafts",
    "residual_is_p": "after a rejection the token is drawn from the target, not the residual",
    "greedy_claimed_chain": "drafts the most likely token, but declares it drawn from q",
    "bonus_from_draft": "the token after a full acceptance is drawn from the drafter's row",
    "emits_argmax": "commits the target's most likely token although sampling was asked for",
    "noise_reused": "the uniform of a token serves the next one too",
    "rows_share_noise": "consecutive seeds share their noise",
    "biased": "moves a stated mass from the most to the least likely token, at one place",
}

# Mistakes that the joint law of the first three tokens, one string after the other, does not show.
HIDDEN = {
    "even_seeds": "as late_bonus, for seeds of even number only",
    "late_bonus": "as bonus_from_draft, from the fourth token on",
    "late_noise": "as noise_reused, from the fourth token on",
    "late_rows": "neighbouring rows share their noise from the fourth token on",
    "late_seeds": "consecutive seeds share their noise from the fourth token on",
    "odd_seeds": "a seed of odd number shares all noise with the next one",
    "late_drop": "near the end of its space it drops a draft depending on what was drawn",
    "runs_past_stop": "a stop token inside an accepted draft is noticed after the draft",
    "drops_stop": "a draft that ends with a stop token is dropped",
    "masks_late": "a grammar holds for what is drawn, not for what was drafted",
    "cancels": "one minus what a sibling had, in float32: nothing is left on peaked rows",
}

# What they need to show.
_NEEDS: dict[str, dict[str, Any]] = {
    "runs_past_stop": {"eos": 3},
    "drops_stop": {"eos": 3},
    "masks_late": {"grammar": "pairs"},
    "cancels": {"temperature": 0.04},
}
_LATE = 3
_NUM_PLACES = 211
_LIKENESS = 0.6  # correlation of the drafter's logits with the target's
# Those that draw one token a step.
_PLAIN = {"emits_argmax", "noise_reused", "late_noise", "late_rows", "late_seeds"}

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
    table = _table(vocab, seed) * spread
    return lambda path: np.asarray(table[place_of(path)])


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities of rows (..., V) of logits."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


class Follow:
    """A grammar that says which token may follow which.

    Args:
        name: For reports.
        matrix: bool (V + 1, V): row t of what may follow token t, the last of what may come first.
            A row without any ends the string.
    """

    def __init__(self, name: str, matrix: Any) -> None:
        self.name, self.matrix = name, np.asarray(matrix, bool)

    def __call__(self, string: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return which tokens (V,) may follow a string."""
        return np.asarray(self.matrix[string[-1] if string else -1])

    @classmethod
    def pairs(cls, vocab: int) -> Follow:
        """Allow after a token all but its neighbours in a circle; there is always one."""
        distance = np.abs(np.subtract.outer(np.arange(vocab), np.arange(vocab)))
        matrix = np.minimum(distance, vocab - distance) != 1
        return cls("pairs", np.append(matrix, np.ones((1, vocab), bool), axis=0))

    @classmethod
    def dead_ends(cls, vocab: int) -> Follow:
        """Allow the same, but nothing after the last token."""
        matrix = cls.pairs(vocab).matrix.copy()
        matrix[vocab - 1] = False
        return cls("dead-ends", matrix)


def follow(grammar: str, vocab: int) -> Follow | None:
    """Return the grammar of a name, "pairs" or "dead-ends", over V tokens; None for ""."""
    made = {"pairs": Follow.pairs, "dead-ends": Follow.dead_ends}
    return made[grammar](vocab) if grammar else None


@dataclass(frozen=True)
class TableEngine:
    """A sampler `f(prompt, n, seed) -> int (n, length)`; `rows` is the target it claims to keep.

    Attributes:
        vocab: V.
        length: Tokens that it generates; more than are compared, as engines shorten late drafts.
        num_drafts: Length of a draft.
        mistake: A key of `ENGINES` or `HIDDEN`.
        tv: The total variation of the mistake "biased".
        biased_at: The place of the token, 0 being the first, that the mistake "biased" moves.
        temperature: Of all rows.
        eos: The token at which a string ends, or None.
        grammar: "pairs", "dead-ends", or "" for none: which token may follow which.
    """

    vocab: int = 4
    length: int = 5
    num_drafts: int = 2
    mistake: str = "none"
    tv: float = 0.02
    biased_at: int = 0
    table_seed: int = 7
    temperature: float = 1.0
    eos: int | None = None
    grammar: str = ""

    @property
    def rows(self) -> Callable[[tuple[int, ...]], Any]:
        """The target's logits after a path."""
        return table_rows(self.vocab, self.table_seed)

    @property
    def params(self) -> SamplingParams:
        """How rows are shaped."""
        return SamplingParams(temperature=self.temperature)

    @cached_property
    def allowed(self) -> Follow | None:
        """The grammar that it obeys."""
        return follow(self.grammar, self.vocab)

    def __call__(self, prompt: Sequence[int], n: int, seed: int) -> NDArray[np.int64]:
        """Draw n independent strings that follow `prompt`."""
        shared = self.mistake == "rows_share_noise"
        own = (seed + 1) // 2 if self.mistake == "odd_seeds" else seed
        run = TableRun(self, prompt, -(-n // 2) if shared else n, own)
        if self.mistake == "late_seeds":
            run.late = np.random.default_rng((seed // 2, 1)).random((self.length + 1, n))
        elif self.mistake == "late_rows":
            run.late = np.repeat(run.rng.random((self.length + 1, -(-n // 2))), 2, axis=1)[:, :n]
        out = run.tokens()
        return np.repeat(out, 2, axis=0)[:n] if shared else out


class TableRun:
    """One call of a `TableEngine`: n strings, advanced a step at a time until all are full.

    Attributes:
        target: Rows (places, V) of probabilities of the target.
        draft: The same of the drafter.
        places: The row (n,) behind each string.
        last: The last token (n,) of each, -1 where there is none.
    """

    def __init__(self, engine: TableEngine, prompt: Sequence[int], n: int, seed: int) -> None:
        self.engine, self.mistake = engine, engine.mistake
        self.is_even = seed % 2 == 0
        self.rng = np.random.default_rng(seed)
        target, other = (_table(engine.vocab, engine.table_seed + i) for i in range(2))
        # A drafter that knows something of its target: tokens are accepted and rejected.
        tables = (target, _LIKENESS * target + (1 - _LIKENESS**2) ** 0.5 * other)
        self.target, self.draft = (softmax(table / engine.temperature) for table in tables)
        self.lengths = np.zeros(n, np.int64)
        self.places = np.full(n, place_of(prompt))
        # Row -1 of a grammar says what may come first.
        self.last = np.full(n, -1)
        self.has_ended = np.zeros(n, bool)
        self.out = np.full((n, engine.length + engine.num_drafts + 1), ENDED)
        self.uniform = self.rng.random(n)
        self.late: NDArray[np.float64] | None = None

    def tokens(self) -> NDArray[np.int64]:
        """Return the strings (n, length), once they are full."""
        most = self.engine.length
        while (rows := np.flatnonzero((self.lengths < most) & ~self.has_ended)).size:
            lengths = self.lengths[rows]
            for length in np.unique(lengths):
                self.step(rows[lengths == length], int(length))
        return self.out[:, :most]

    def emit(self, rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """Append a token each to the strings `rows`."""
        self.out[rows, self.lengths[rows]] = tokens
        self.places[rows] = next_place(self.places[rows], tokens)
        self.last[rows] = tokens
        self.lengths[rows] += 1
        if self.engine.eos is not None:
            self.has_ended[rows] |= tokens == self.engine.eos
        if self.engine.allowed is not None:
            self.has_ended[rows] |= ~self.engine.allowed.matrix[tokens].any(axis=1)

    def laws(
        self, table: NDArray[np.float64], rows: NDArray[np.int64], *, is_masked: bool = True
    ) -> NDArray[np.float64]:
        """Return the law of what follows each string, by the target's table or the drafter's."""
        laws: NDArray[np.float64] = table[self.places[rows]]
        if self.engine.allowed is None or not is_masked:
            return laws
        laws = np.where(self.engine.allowed.matrix[self.last[rows]], laws, 0.0)
        return np.asarray(laws / laws.sum(axis=1, keepdims=True))

    def draw(self, rows: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.int64]:
        """Draw a token for each of the strings `rows` from its weights (., V)."""
        if self.mistake == "emits_argmax":
            return np.asarray(weights.argmax(axis=1))
        length = int(self.lengths[rows[0]]) if rows.size else 0
        is_old = (self.mistake == "noise_reused" and length % 2) or (
            self.mistake == "late_noise" and length > _LATE
        )
        if self.late is not None and length >= _LATE:
            self.uniform[rows] = self.late[length, rows]
        elif not is_old:
            self.uniform[rows] = self.rng.random(len(rows))
        cumulative = weights.cumsum(axis=1)
        place = self.uniform[rows, None] * cumulative[:, -1:]
        return np.asarray((cumulative <= place).sum(axis=1).clip(max=weights.shape[1] - 1))

    def step(self, rows: NDArray[np.int64], length: int) -> None:
        """Take one step of the strings `rows`, all of which have `length` tokens."""
        if self.mistake == "biased" and length <= self.engine.biased_at:
            law, each = self.laws(self.target, rows), np.arange(len(rows))
            if length == self.engine.biased_at:
                most, least = law.argmax(axis=1), law.argmin(axis=1)
                moved = np.minimum(self.engine.tv, law[each, most])
                law[each, most] -= moved
                law[each, least] += moved
            self.emit(rows, self.draw(rows, law))
        elif self.mistake in _PLAIN:
            self.emit(rows, self.draw(rows, self.laws(self.target, rows)))
        elif self.mistake == "cancels":
            self._step_with_siblings(rows)
        else:
            self._step_with_chain(rows, length)

    def _step_with_chain(self, rows: NDArray[np.int64], length: int) -> None:
        is_late = length >= _LATE
        is_masked = self.mistake != "masks_late"
        for depth in range(self.engine.num_drafts):
            p = self.laws(self.target, rows, is_masked=is_masked)
            q = self.laws(self.draft, rows, is_masked=is_masked)
            greedy = self.mistake == "greedy_claimed_chain"
            drafted = q.argmax(axis=1) if greedy else self.draw(rows, q)
            each = np.arange(len(rows))
            kept = self.rng.random(len(rows)) * q[each, drafted] < p[each, drafted]
            residual = p if self.mistake == "residual_is_p" else np.maximum(p - q, 0)
            dropped = np.zeros(len(rows), bool)
            if self.mistake == "late_drop" and is_late and depth == 0:
                dropped = drafted == q.argmax(axis=1)
            elif self.mistake == "drops_stop":
                dropped = drafted == self.engine.eos
            residual[dropped] = p[dropped]
            lost = ~kept | dropped
            if lost.any():
                weights = residual[lost]
                if self.engine.allowed is not None:
                    weights = weights * self.engine.allowed.matrix[self.last[rows[lost]]]
                    none = weights.sum(axis=1) == 0
                    weights[none] = self.laws(self.target, rows[lost])[none]
                self.emit(rows[lost], self.draw(rows[lost], weights))
            rows = rows[~lost]
            self.emit(rows, drafted[~lost])
            if self.mistake != "runs_past_stop":
                rows = rows[~self.has_ended[rows]]
            if not rows.size:
                return
        late = self.mistake == "late_bonus" or (self.mistake == "even_seeds" and self.is_even)
        late = late and int(self.lengths[rows[0]]) >= _LATE
        from_draft = late or self.mistake == "bonus_from_draft"
        laws = self.laws(self.draft if from_draft else self.target, rows)
        self.emit(rows, self.draw(rows, laws))

    def _step_with_siblings(self, rows: NDArray[np.int64]) -> None:
        """Draft a sibling drawn outside the drafter's most likely token, then that token."""
        p, q = self.laws(self.target, rows), self.laws(self.draft, rows)
        each, top = np.arange(len(rows)), q.argmax(axis=1)
        left = q.copy()
        left[each, top] = 0
        truth = left / left.sum(axis=1, keepdims=True)
        drafted = self.draw(rows, truth)
        # The mistake.
        rest = np.float32(1) - q[each, top].astype(np.float32)
        claimed = np.where(rest > 0, q[each, drafted] / np.maximum(rest, 1e-30), np.inf)
        kept = self.rng.random(len(rows)) * claimed < p[each, drafted]
        residual = np.maximum(p - truth, 0)
        tokens = self.draw(rows, residual)
        self.emit(rows, np.where(kept, drafted, tokens))


def _table(vocab: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(_NUM_PLACES, vocab))


def next_place(place: Any, token: Any, size: int = _NUM_PLACES) -> Any:
    """Return the place of paths that are one token longer."""
    return (place * 31 + token + 1) % size


def place_of(path: Sequence[int], size: int = _NUM_PLACES) -> int:
    """Return a path's place in a table of rows: a wrong path or order has another one."""
    place = 0
    for token in path:
        place = int(next_place(place, int(token), size))
    return place


def engine(mistake: str = "none", **options: Any) -> TableEngine:
    """Return the engine with a mistake of `ENGINES` or `HIDDEN`, with what it needs to show.

    Raises:
        ParamsError: No such mistake; lists the known ones.
    """
    check_word("mistake", mistake, (*ENGINES, *HIDDEN))
    return TableEngine(**{"mistake": mistake, **_NEEDS.get(mistake, {}), **options})


def accept(mistake: str = "none") -> Callable[..., list[int]]:
    """Return the accept function `accept(p, q, tokens, uniforms) -> tokens` with a mistake.

    The rule is token rejection: p (K+1, V), q (K, V), tokens (K,), uniforms (K+1,) of which the
    last one draws the final token.

    Raises:
        ParamsError: No such mistake in `ACCEPTS`; lists the known ones.
    """
    check_word("mistake", mistake, tuple(ACCEPTS))

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
