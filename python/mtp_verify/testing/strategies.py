"""Hypothesis strategies: rows as models give them, parameters, trees, drafts of every law."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from mtp_verify._core import Draft, TokenTree
from mtp_verify.testing.logit_rows import KINDS, draw_logits
from mtp_verify.testing.mutants import place_of, softmax
from mtp_verify.verifier.intake import check_word
from mtp_verify.verifier.params import SamplingParams
from mtp_verify.verifier.words import Law

try:
    from hypothesis import strategies as st
except ImportError as error:
    _MESSAGE = f'{__name__} needs Hypothesis; run: pip install "mtp-verify[testing]"'
    raise ImportError(_MESSAGE, name="hypothesis") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["LAWS", "drafts", "logits", "params", "probabilities", "steps", "targets", "trees"]

# Every law that a draft can declare.
LAWS: tuple[Law, ...] = get_args(Law)

# Of softmax, where a strategy gives probabilities.
_TEMPERATURES = st.sampled_from([1.0, 0.7, 1.5, 0.2, 0.05])


@st.composite
def trees(
    draw: Callable[..., Any], *, max_nodes: int = 8, max_depth: int = 4, chain: bool = False
) -> TokenTree:
    """Draw trees of 0 to `max_nodes` draft nodes; chains if asked for."""
    count = draw(st.integers(0, min(max_nodes, max_depth) if chain else max_nodes))
    parents, depths = [-1], [0]
    for node in range(1, count + 1):
        able = [i for i in range(node) if depths[i] < max_depth]
        parent = node - 1 if chain else draw(st.sampled_from(able))
        parents.append(parent)
        depths.append(depths[parent] + 1)
    return TokenTree(parents)


def params(*, greedy: bool = False) -> st.SearchStrategy[SamplingParams]:
    """Draw sampling parameters of both presets, with shapings on and off.

    Args:
        greedy: Draw temperature 0 too, beside 1, 0.7, 1.5, 0.2 and 0.05.
    """
    temperatures = [1.0, 1.0, 0.7, 1.5, 0.2, 0.05] + ([0.0] if greedy else [])
    return st.builds(
        SamplingParams,
        temperature=st.sampled_from(temperatures),
        top_k=st.sampled_from([0, 0, 1, 3]),
        top_p=st.sampled_from([1.0, 1.0, 0.8, 0.4]),
        min_p=st.sampled_from([0.0, 0.0, 0.2]),
        preset=st.sampled_from(["transformers", "vllm"]),
    )


@st.composite
def logits(
    draw: Callable[..., Any],
    vocab: int = 32,
    count: int = 1,
    *,
    kinds: Sequence[str] = KINDS,
    dtype: str = "float32",
) -> NDArray[Any]:
    """Draw logits (count, vocab) as models give them; at least one of each row is finite.

    Args:
        draw: Given by Hypothesis.
        vocab: V.
        count: How many rows.
        kinds: Which of "flat", "tied", "masked", "peaked" and "recorded", as `draw_logits` explains
            them; each row has a kind of its own.
        dtype: "float32", "float16", or "bfloat16": float32 numbers that bfloat16 holds exactly.

    Example:
        >>> from hypothesis import given
        >>> from mtp_verify.testing import strategies
        >>> @given(strategies.logits(vocab=8, kinds=["masked"]))
        ... def some_token_is_left(rows):
        ...     assert (rows > float("-inf")).any()
        >>> some_token_is_left()
    """
    return _pair(draw, vocab, count, kinds, dtype)[0]


@st.composite
def probabilities(
    draw: Callable[..., Any],
    vocab: int = 32,
    count: int = 1,
    *,
    kinds: Sequence[str] = KINDS,
    dtype: str = "float64",
) -> NDArray[Any]:
    """Draw probabilities (count, vocab): softmax of `logits`, often at a low temperature.

    Rows sum to 1 up to the rounding of the dtype: in float16 by some 1e-3. A share of them has a
    token of probability 1 - 1e-6 or more, or exactly 1.

    Args:
        draw: Given by Hypothesis.
        vocab: V.
        count: How many rows.
        kinds: As for `logits`.
        dtype: "float64", "float32" or "float16".
    """
    rows = _pair(draw, vocab, count, kinds, "float32")[0]
    return softmax(rows.astype(np.float64) / draw(_TEMPERATURES)).astype(dtype)


@st.composite
def targets(
    draw: Callable[..., Any], vocab: int = 3, table: int = 13
) -> Callable[[tuple[int, ...]], NDArray[np.float64]]:
    """Draw functions from tokens to logits (vocab,), for `exact_law` and `TableTarget`.

    The row depends on the whole path, so that a wrong path, position or order shows.
    """
    probs = draw(probabilities(vocab, table))
    with np.errstate(divide="ignore"):
        logits = np.log(probs)
    return lambda path: np.asarray(logits[place_of(path, table)])


def drafts(
    law: Law | None = None, *, vocab: int = 4, max_nodes: int = 8, max_depth: int = 4
) -> st.SearchStrategy[Draft]:
    """Draw drafts that a law can produce, with the rows that they were drawn from.

    Tokens are any that the law gives a positive probability: for properties that hold for every
    draft. To test losslessness, draw tokens from the rows with a random generator instead.

    Args:
        law: One of `LAWS`; None means any.
        vocab: V.
        max_nodes: Most draft nodes.
        max_depth: Depth of the deepest.

    Raises:
        ParamsError: No such law.

    Example:
        >>> from hypothesis import given
        >>> @given(drafts("swor", vocab=5))
        ... def siblings_differ(draft):
        ...     for node in range(draft.num_nodes):
        ...         tokens = draft.tokens[draft.tree.children(node)].tolist()
        ...         assert len(set(tokens)) == len(tokens)
        >>> siblings_differ()
    """
    return steps(law, vocab=vocab, max_nodes=max_nodes, max_depth=max_depth).map(lambda s: s[0])


def steps(
    law: Law | None = None,
    *,
    vocab: int = 4,
    max_nodes: int = 8,
    max_depth: int = 4,
    kinds: Sequence[str] = KINDS,
) -> st.SearchStrategy[tuple[Draft, NDArray[np.float32]]]:
    """Draw what one step verifies: a draft as of `drafts`, and the target's logits for it.

    Target and drafter resemble each other as in `draw_logits`, and nodes with the same path have
    the same rows, so that every rule that is legal for the law can be run.

    Args:
        law: One of `LAWS`; None means any.
        vocab: V.
        max_nodes: Most draft nodes.
        max_depth: Depth of the deepest.
        kinds: Of rows, as for `logits`.

    Returns:
        Pairs of a `Draft` and logits (num_nodes, V) float32.

    Raises:
        ParamsError: No such law.

    Example:
        >>> import mtp_verify as mv
        >>> from hypothesis import given
        >>> @given(steps("iid"))
        ... def one_token_more_than_was_accepted(step):
        ...     verdict = mv.verify(*step, seed=1, position=7)
        ...     assert len(verdict.tokens) == verdict.num_accepted + 1
        >>> one_token_more_than_was_accepted()
    """
    if law is not None:
        check_word("law", law, LAWS)

    @st.composite
    def made(draw: Callable[..., Any]) -> tuple[Draft, NDArray[np.float32]]:
        own = draw(st.sampled_from(LAWS if law is None else (law,)))
        wanted = draw(trees(max_nodes=max_nodes, max_depth=max_depth, chain=own == "chain"))
        root = draw(st.integers(0, vocab - 1))
        return _Grower(draw, own, vocab, tuple(kinds)).grow(wanted, root)

    return made()


def _pair(
    draw: Callable[..., Any], vocab: int, count: int, kinds: Sequence[str], dtype: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw logits of a target and of its drafter, (count, V) each."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    chosen = (draw(st.sampled_from(kinds)) for _ in range(count))
    rows = [draw_logits(rng, vocab, kind=kind, dtype=dtype) for kind in chosen]
    target, drafter = (np.concatenate(side) for side in zip(*rows, strict=True))
    return target, drafter


class _Grower:
    """Fills a tree with tokens; children that a row has no token left for are left out."""

    def __init__(
        self, draw: Callable[..., Any], law: Law, vocab: int, kinds: tuple[str, ...]
    ) -> None:
        self.draw, self.law, self.vocab, self.kinds = draw, law, vocab, kinds
        self.temperature = draw(_TEMPERATURES)
        self.parents, self.tokens, self.sampled = [-1], [-1], [False]
        self.paths: list[tuple[int, ...]] = [()]
        # Of each path: the target's logits and the drafter's probabilities.
        self.known: dict[tuple[int, ...], tuple[NDArray[Any], NDArray[Any]]] = {}

    def grow(self, wanted: TokenTree, root: int) -> tuple[Draft, NDArray[np.float32]]:
        self.tokens[0] = root
        names = {0: 0}  # of the wanted tree -> of the draft
        for node in range(wanted.num_nodes):
            children = wanted.children(node)
            if node not in names or not children:
                continue
            parent = names[node]
            chosen = self._children(self._rows(self.paths[parent])[1], len(children))
            for child, (token, is_sampled) in zip(children, chosen, strict=False):
                names[child] = len(self.parents)
                self.parents.append(parent)
                self.tokens.append(token)
                self.sampled.append(is_sampled)
                self.paths.append((*self.paths[parent], token))
        rows = [self._rows(path) for path in self.paths]
        logits, probs = (np.stack(side) for side in zip(*rows, strict=True))
        tree = TokenTree(self.parents)
        if self.law in {"deterministic", "coupled", "unknown"}:
            return Draft(tree, self.tokens, law=self.law), logits
        sampled = self.sampled if self.law in {"top_plus_one", "mixed"} else None
        return Draft(tree, self.tokens, law=self.law, probs=probs, sampled=sampled), logits

    def _rows(self, path: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
        if path not in self.known:
            target, drafter = _pair(self.draw, self.vocab, 1, self.kinds, "float32")
            probs = softmax(drafter.astype(np.float64) / self.temperature).astype(np.float32)
            self.known[path] = target[0], probs[0]
        return self.known[path]

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
