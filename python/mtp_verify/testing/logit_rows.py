"""Logits as models give them: recorded rows, and peaked, flat, tied and masked ones.

Rows of normal numbers are easy for a verifier. Rows of models at low temperatures are not: one
token has all but 1e-9 of the mass, many logits are equal, or a grammar has left one token.

`recorded_rows.npy` holds logits of SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0), which
`scripts/record_rows.py` made from texts of our own.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.verifier.intake import as_count, check_word

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["KINDS", "draw_logits", "recorded_logits"]


@lru_cache(maxsize=1)
def recorded_logits() -> NDArray[np.float16]:
    """Load logits of a real model at 48 places of texts, each with and without the text before.

    Returns:
        (48, 2, 512) float16, read-only. `[:, 0]` is what the model gave after the whole text, as a
        target does; `[:, 1]` is what it gave after the last four tokens alone, as a drafter that
        knows less might. 512 of its 49,152 columns, the most likely ones among them, in the order
        of their ids.

    Example:
        >>> from mtp_verify.testing import recorded_logits
        >>> recorded_logits().shape
        (48, 2, 512)
    """
    found: NDArray[np.float16] = np.load(Path(__file__).with_name("recorded_rows.npy"))
    found.flags.writeable = False
    return found


def draw_logits(
    rng: np.random.Generator,
    vocab: int,
    count: int = 1,
    *,
    kind: str | None = None,
    dtype: str = "float32",
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw rows of logits for a target, and rows for its drafter that resemble them.

    Args:
        rng: Where chance comes from.
        vocab: V, at least 1. Of a recorded row that is wider, the most likely half of the columns
            and others at random; for a wider V the unlikely columns are repeated.
        count: How many rows of each.
        kind: "recorded": see `recorded_logits`. "peaked": one token is 8 to 40 nats ahead, mostly
            the same for both. "flat": nearly or exactly uniform. "tied": few values, many tokens of
            each. "masked": a recorded row of which one to three tokens are left, the others -inf;
            half of the drafters do not know the mask. None draws a kind for each row.
        dtype: "float32", "float16", or "bfloat16": float32 numbers that bfloat16 holds exactly.

    Returns:
        Target and drafter: (count, V) each, at least one finite logit in each row.

    Raises:
        ParamsError: No such kind or dtype; `vocab` below 1 or `count` below 0.

    Example:
        >>> import numpy as np
        >>> from mtp_verify.testing import draw_logits
        >>> target, drafter = draw_logits(np.random.default_rng(0), 50, 3, kind="masked")
        >>> bool((np.isfinite(target).sum(axis=1) <= 3).all())
        True
    """
    vocab, count = as_count("vocab", vocab), as_count("count", count, 0)
    check_word("kind", KINDS[0] if kind is None else kind, KINDS)
    check_word("dtype", dtype, tuple(_ROUNDED))
    rows = np.empty((2, count, vocab), np.float32)
    for i in range(count):
        rows[:, i] = _MAKERS[kind or KINDS[rng.integers(len(KINDS))]](rng, vocab)
    target, drafter = _ROUNDED[dtype](rows)
    return target, drafter


def _flat(rng: np.random.Generator, vocab: int) -> NDArray[Any]:
    return np.asarray(rng.choice([0.0, 0.01]) * rng.normal(size=(2, vocab)))


def _tied(rng: np.random.Generator, vocab: int) -> NDArray[Any]:
    return np.asarray(np.round(rng.normal(0, 1.5, (2, vocab))))


def _peaked(rng: np.random.Generator, vocab: int) -> NDArray[Any]:
    rows = rng.normal(size=(2, vocab))
    first = rng.integers(vocab)
    second = first if rng.random() < 0.8 else rng.integers(vocab)
    rows[[0, 1], [first, second]] = rows.max(axis=1) + rng.uniform(8, 40, 2)
    return rows


def _recorded(rng: np.random.Generator, vocab: int) -> NDArray[Any]:
    recorded = recorded_logits()
    rows = recorded[rng.integers(len(recorded))].astype(np.float32)
    order = np.argsort(-rows[0], kind="stable")
    if vocab <= len(order):
        likely = (vocab + 1) // 2
        others = rng.choice(order[likely:], vocab - likely, replace=False)
        columns = np.sort(np.concatenate([order[:likely], others]))
    else:
        repeated = rng.choice(order[len(order) // 2 :], vocab - len(order))
        columns = rng.permutation(np.concatenate([order, repeated]))
    return np.asarray(rows[:, columns])


def _masked(rng: np.random.Generator, vocab: int) -> NDArray[Any]:
    rows = _recorded(rng, vocab)
    gone = np.ones(vocab, bool)
    gone[rng.choice(vocab, min(vocab, int(rng.integers(1, 4))), replace=False)] = False
    rows[: rng.integers(1, 3), gone] = -np.inf
    return rows


def _bfloat16(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to nearest, ties to even, and return the upper half of the bits."""
    bits = rows.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32)


# The kinds of rows, easy ones first: Hypothesis simplifies towards the first.
_MAKERS = {
    "flat": _flat,
    "tied": _tied,
    "masked": _masked,
    "peaked": _peaked,
    "recorded": _recorded,
}
KINDS = tuple(_MAKERS)
_ROUNDED: dict[str, Any] = {
    "float32": np.asarray,
    "float16": lambda rows: rows.astype(np.float16),
    "bfloat16": _bfloat16,
}
