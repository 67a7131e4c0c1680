"""Hypothesis strategies: trees, sampling parameters, target rows, and drafts of every law."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify._core import Draft, TokenTree
from mtp_verify.errors import ParamsError
from mtp_verify.params import SamplingParams

try:
    from hypothesis import strategies as st
except ImportError as error:
    _MESSAGE = (
        'mtp_verify.testing.strategies needs Hypothesis; run: pip install "mtp-verify[testing]"'
    )
    raise ImportError(_MESSAGE, name="hypothesis") from error

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["LAWS", "drafts", "params", "rows", "targets", "trees"]

# Every law that a draft can declare.
LAWS = (
    "deterministic", "chain", "iid", "swor", "top_plus_one", "mixed", "coupled", "unknown",
)  # fmt: skip


@st.composite
def trees(
    draw: Callable[..., Any], *, max_nodes: int = 8, max_depth: int = 4, chain: bool = False
) -> TokenTree:
    """Trees of 0 to `max_nodes` draft nodes; a chain if asked for."""
    count = draw(st.integers(0, min(max_nodes, max_depth) if chain else max_nodes))
    parents, depths = [-1], [0]
    for node in range(1, count + 1):
        able = [i for i in range(node) if depths[i] < max_depth]
        parent = node - 1 if chain else draw(st.sampled_from(able))
        parents.append(parent)
        depths.append(depths[parent] + 1)
    return TokenTree(parents)


def params(*, greedy: bool = False) -> st.SearchStrategy[SamplingParams]:
    """Sampling parameters of both presets, with shapings on and off; temperature 0 if `greedy`."""
    temperatures = [0.5, 1.0, 1.0, 1.7] + ([0.0] if greedy else [])
    return st.builds(
        SamplingParams,
        temperature=st.sampled_from(temperatures),
        top_k=st.sampled_from([0, 0, 1, 3]),
        top_p=st.sampled_from([1.0, 1.0, 0.8, 0.4]),
        min_p=st.sampled_from([0.0, 0.0, 0.2]),
        preset=st.sampled_from(["transformers", "vllm"]),
    )


@st.composite
def rows(draw: Callable[..., Any], vocab: int, count: int = 1) -> NDArray[np.float64]:
    """Probabilities (count, vocab): smooth rows, ties, zeros and point masses."""
    found = np.zeros((count, vocab))
    weight = st.sampled_from([0, 1, 1, 2, 3, 8])
    for i in range(count):
        weights = draw(st.lists(weight, min_size=vocab, max_size=vocab))
        if not any(weights):
            weights[draw(st.integers(0, vocab - 1))] = 1
        found[i] = np.asarray(weights) / sum(weights)
    return found


@st.composite
def targets(
    draw: Callable[..., Any], vocab: int = 3, table: int = 13
) -> Callable[[tuple[int, ...]], NDArray[np.float64]]:
    """Functions from tokens to logits (vocab,), for `exact_law` and `TableTarget`.

    The row depends on the whole path, so that a wrong path, position or order shows.
    """
    probs = draw(rows(vocab, table))
    with np.errstate(divide="ignore"):
        logits = np.log(probs)

    def row(path: tuple[int, ...]) -> NDArray[np.float64]:
        place = 0
        for token in path:
            place = (place * 31 + int(token) + 1) % table
        return np.asarray(logits[place])

    return row


def drafts(
    law: str | None = None, *, vocab: int = 4, max_nodes: int = 8, max_depth: int = 4
) -> st.SearchStrategy[Draft]:
    """Drafts that a law can produce, with the rows that they were drawn from.

    Tokens are any that the law gives a positive probability: for properties that hold for every
    draft. To test losslessness, draw tokens from the rows with a random generator instead.

    Args:
        law: One of `LAWS`; None means any.
        vocab: V.
        max_nodes: Most draft nodes.
        max_depth: Depth of the deepest.

    Raises:
        ParamsError: No such law.
    """
    if law is not None and law not in LAWS:
        message = f"law: found {law!r}, wanted one of: {', '.join(LAWS)}"
        raise ParamsError(message, slug="param_out_of_range")
    return _drafts(LAWS if law is None else (law,), vocab, max_nodes, max_depth)


@st.composite
def _drafts(
    draw: Callable[..., Any], laws: tuple[str, ...], vocab: int, max_nodes: int, max_depth: int
) -> Draft:
    law = draw(st.sampled_from(laws))
    wanted = draw(trees(max_nodes=max_nodes, max_depth=max_depth, chain=law == "chain"))
    return _Grower(draw, law, vocab).grow(wanted, draw(st.integers(0, vocab - 1)))


class _Grower:
    """Fills a tree with tokens; children that a row has no token left for are left out."""

    def __init__(self, draw: Callable[..., Any], law: str, vocab: int) -> None:
        self.draw, self.law, self.vocab = draw, law, vocab
        self.parents, self.tokens, self.sampled = [-1], [-1], [False]
        self.rows: list[NDArray[np.float64]] = []

    def grow(self, wanted: TokenTree, root: int) -> Draft:
        self.tokens[0] = root
        names = {0: 0}  # of the wanted tree -> of the draft
        self.rows.append(self.draw(rows(self.vocab))[0])
        for node in range(wanted.num_nodes):
            children = wanted.children(node)
            if node not in names or not children:
                continue
            chosen = self._children(self.rows[names[node]], len(children))
            for child, (token, is_sampled) in zip(children, chosen, strict=False):
                names[child] = len(self.parents)
                self.parents.append(names[node])
                self.tokens.append(token)
                self.sampled.append(is_sampled)
                self.rows.append(self.draw(rows(self.vocab))[0])
        tree = TokenTree(self.parents)
        if self.law in {"deterministic", "coupled", "unknown"}:
            return Draft(tree, self.tokens, law=self.law)
        probs = np.stack(self.rows).astype(np.float32)
        sampled = self.sampled if self.law in {"top_plus_one", "mixed"} else None
        return Draft(tree, self.tokens, law=self.law, probs=probs, sampled=sampled)

    def _children(self, row: NDArray[np.float64], count: int) -> list[tuple[int, bool]]:
        """Token of each child in test order, and whether it counts as drawn."""
        able = [int(token) for token in np.argsort(-row, kind="stable") if row[token] > 0]
        if self.law in {"deterministic", "coupled", "unknown"}:
            order = self.draw(st.permutations(range(self.vocab)))
            return [(token, False) for token in order[:count]]
        if self.law in {"chain", "iid"}:
            return [(self.draw(st.sampled_from(able)), True) for _ in range(count)]
        count = min(count, len(able))
        if self.law == "swor":
            return [(token, True) for token in self.draw(st.permutations(able))[:count]]
        num_drawn = 1 if self.law == "top_plus_one" else self.draw(st.integers(0, count))
        if self.law == "top_plus_one" and count == len(able):
            num_drawn = 0  # the children cover everything: nothing is left to draw
        fixed = able[: count - num_drawn]
        free = self.draw(st.permutations(able[count - num_drawn :]))[:num_drawn]
        return [*((token, True) for token in free), *((token, False) for token in fixed)]
