"""Growers: ways to grow a draft from a drafter's rows, each giving the draft's true law.

A grower asks for logits and knows when it is done:

1. `frontier()`: the nodes whose rows it needs next (none: it is done);
2. `extend(logits)`: one row for each of them, in that order;
3. `finish()`: the draft, with its law and the rows that its tokens were drawn from.

`grow(source)` runs the loop. Drawn tokens take the noise of (seed, position, node), so the same
rows give the same draft, whatever else is being decoded.

Growers that draw are append-only: where to draw next may depend on anything known, but no token is
taken back. That makes their drafts lossless for every rule of their law, also if `finish` is called
early. Pruning or reranking a sampled tree afterwards would not be: declare such a draft "unknown".
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify import _core
from mtp_verify._core import Draft, TokenTree
from mtp_verify.errors import DraftError
from mtp_verify.verifier import kernels
from mtp_verify.verifier.intake import as_float, as_list, as_word, check_type, shown
from mtp_verify.verifier.params import SamplingParams, as_params
from mtp_verify.verifier.tree_shape import TreeShape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from mtp_verify.verifier.words import Law, ShapeLaw

__all__ = [
    "Chain",
    "Coupled",
    "Fixed",
    "Grower",
    "Heap",
    "TreeShape",
    "Stochastic",
    "Union",
    "allocate",
    "merge",
    "share",
]

_UNLIMITED = _core.MAX_NODES - 1  # The root aside.


class Grower:
    """The base of all growers; construct one of its subclasses, by keywords.

    Args:
        root: the root's token (-1: unknown).
        eos_ids: tokens that end the sequence; nothing is grown below them.
        params: how the drafter's rows are shaped before they are drawn from; None means
            ``SamplingParams()``. They need not be the target's.
        seed: of the sequence, 0 <= seed < 2**64. Growers that can draw need it, and the position,
            whatever their settings: two drafts grown at one (seed, position) would share their
            noise, which is a bias that nothing later can see. There is no default, as for `verify`.
        position: the root's position, the one that `verify` will get.
        vocab: int (V_d,), the token of each column, if the rows are over a sub-vocabulary.
    """

    def __init__(
        self, core: _core.Grower, params: SamplingParams | None, vocab: Any | None
    ) -> None:
        self._core = core
        self._params = as_params(params)
        self._vocab = vocab
        self._rows: list[Any] = []

    @property
    def law(self) -> Law:
        """The law of the draft."""
        return self._core.law

    @property
    def parents(self) -> NDArray[np.int64]:
        """(n+1,) parents of the nodes grown so far, which a drafter needs to run the frontier."""
        return self._core.parents

    @property
    def tokens(self) -> NDArray[np.int64]:
        """(n+1,) their tokens, the root's first."""
        return self._core.tokens

    def frontier(self) -> list[int]:
        """Return the nodes whose rows are needed next, ascending; empty when the draft is grown."""
        return self._core.frontier()

    def path(self, node: int) -> list[int]:
        """Return the tokens from below the root down to a node."""
        parents, tokens = self.parents, self.tokens
        path: list[int] = []
        while node > 0:
            path.append(int(tokens[node]))
            node = int(parents[node])
        return path[::-1]

    def extend(self, logits: Any) -> None:
        """Grow by the rows of the frontier.

        Args:
            logits: (len(frontier()), V) float32, float16 or bfloat16; row i follows node
                ``frontier()[i]``. NumPy or any DLPack producer; a tensor on a device is copied to
                the host. Borrowed, not modified: it must stay as it is until the draft has been
                verified.

        Raises:
            DraftError: a shape or dtype that does not fit.
            NumericsError: a row is not a distribution. The grower is then as it was.
        """
        rows = kernels.select(logits).extend(self._core, logits)
        if rows is not None:
            self._rows.append(rows)

    def finish(self) -> Draft:
        """Return the draft as grown so far; stopping early is lossless."""
        tree = TokenTree(self.parents)
        sampled = self._core.sampled
        if self.law in ("deterministic", "coupled"):
            return Draft(tree, self.tokens, law=self.law)
        flags = sampled if self.law in ("mixed", "top_plus_one") else None
        if not any(sampled):
            return Draft(tree, self.tokens, law=self.law, sampled=flags)
        return Draft(
            tree,
            self.tokens,
            law=self.law,
            rows=self._core.rows,
            logits=_stack(self._rows),
            params=self._params,
            vocab=self._vocab,
            sampled=flags,
        )

    def grow(self, source: Callable[[list[list[int]]], Any]) -> Draft:
        """Grow to the end.

        Args:
            source: gives the (n, V) logits after each of n token paths below the root.

        Returns:
            The draft.
        """
        while nodes := self.frontier():
            self.extend(source([self.path(node) for node in nodes]))
        return self.finish()


def _start(
    root: int,
    eos_ids: Iterable[int],
    params: SamplingParams | None,
    seed: int,
    position: int,
    vocab: Any | None,
) -> tuple[int, list[int], SamplingParams, int, int, Any | None]:
    seed, position = as_word("seed", seed), as_word("position", position)
    return root, as_list("eos_ids", eos_ids), as_params(params), seed, position, vocab


class Chain(Grower):
    """One path: law "chain", or "deterministic" where nothing is left to chance.

    Early stops look at the row that would be drawn from and at the path so far, never at a token
    that is then dropped: that is what keeps them lossless.

    Args:
        num_tokens: most drafted tokens.
        greedy: take the most probable token instead of drawing; None: at temperature 0.
        min_top: a row whose largest probability is below this ends the chain; 0: off.
        min_path: a path of smaller probability ends the chain; 0: off.
        root, eos_ids, params, seed, position, vocab: see `Grower`.

    Example:
        >>> import numpy as np
        >>> rows = np.eye(4, dtype=np.float32) * 9
        >>> chain = Chain(3, greedy=True, root=0, seed=1, position=4)
        >>> chain.grow(lambda paths: rows[[len(path) for path in paths]]).tokens.tolist()
        [0, 0, 1, 2]

    References:
        arXiv 2211.17192.
    """

    def __init__(
        self,
        num_tokens: int,
        *,
        greedy: bool | None = None,
        min_top: float = 0.0,
        min_path: float = 0.0,
        root: int = -1,
        eos_ids: Iterable[int] = (),
        params: SamplingParams | None = None,
        seed: int,
        position: int,
        vocab: Any | None = None,
    ) -> None:
        start = _start(root, eos_ids, params, seed, position, vocab)
        if greedy is not None and not isinstance(greedy, bool | np.bool_):
            message = f"greedy: found {shown(greedy)}, wanted True, False or None"
            raise TypeError(message)
        min_top, min_path = as_float("min_top", min_top), as_float("min_path", min_path)
        drawn = not (start[2].is_greedy if greedy is None else greedy)
        super().__init__(
            _core.Grower.chain(start, num_tokens, drawn, min_top, min_path), params, vocab
        )


class Fixed(Grower):
    """A shape decided beforehand, filled level by level.

    A row with fewer tokens of positive probability than the shape's children gives fewer children.

    Args:
        shape: the form; see `TreeShape` for levels, stems, independent paths and the optimum.
        law: "swor", "iid" or "chain" (all children are drawn), "top_plus_one" (one is drawn outside
            the most probable tokens, which follow), "mixed" (`samples` are), "deterministic" (none:
            the most probable tokens).
        samples: drawn children of a node under "mixed".
        root, eos_ids, params, seed, position, vocab: see `Grower`.

    Raises:
        DraftError: a law that no fixed shape has, or that does not allow this shape.

    References:
        arXiv 2305.09781 (iid), 2402.12374 (swor), 2502.18779 (top_plus_one).
    """

    def __init__(
        self,
        shape: TreeShape,
        law: ShapeLaw = "swor",
        *,
        samples: int = 1,
        root: int = -1,
        eos_ids: Iterable[int] = (),
        params: SamplingParams | None = None,
        seed: int,
        position: int,
        vocab: Any | None = None,
    ) -> None:
        check_type("shape", shape, TreeShape)
        start = _start(root, eos_ids, params, seed, position, vocab)
        super().__init__(_core.Grower.fixed(start, shape.tree, law, samples), params, vocab)


class Heap(Grower):
    """The nodes of largest path probability: law "deterministic".

    Grown level by level: rows are asked for only of nodes that are among the best when their level
    is reached. At temperature 0 the draft's rows should still be shaped at temperature 1 (the
    default), which ranks the candidates. The settings cover OPT-Tree (no limits but nodes and
    depth), EAGLE-2 (`width` and `max_children`), DDTree (give the rows by depth) and CaDDTree
    (`times`).

    Args:
        max_nodes: most drafted nodes.
        max_depth: most levels.
        max_children: most children of a node.
        width: most nodes of a level that get children.
        min_score: nodes of a smaller path probability are left out.
        times: seconds of a step with n drafted nodes, from n = 0 on, convex: nodes are added only
            while tokens per second grow.
        root, eos_ids, params, seed, position, vocab: see `Grower`.

    References:
        arXiv 2406.17276, 2406.16858, 2604.12989, 2606.01813.
    """

    def __init__(
        self,
        max_nodes: int,
        *,
        max_depth: int = _UNLIMITED,
        max_children: int = _UNLIMITED,
        width: int = _UNLIMITED,
        min_score: float = 0.0,
        times: Sequence[float] = (),
        root: int = -1,
        eos_ids: Iterable[int] = (),
        params: SamplingParams | None = None,
        vocab: Any | None = None,
    ) -> None:
        start = _start(root, eos_ids, params, 0, 0, vocab)
        least = as_float("min_score", min_score)
        limits = (max_nodes, max_depth, max_children, width, least, times)
        super().__init__(_core.Grower.best_first(start, *limits), params, vocab)

    @property
    def scores(self) -> list[float]:
        """Path probabilities of the draft's nodes, largest first: what each adds in tokens."""
        return self._core.scores

    def finish(self, max_nodes: int = _UNLIMITED) -> Draft:
        """Return the draft of the best `max_nodes` nodes, in descending score."""
        parents, tokens, _ = self._core.best(max_nodes)
        return Draft(TokenTree(parents), tokens)

    def origins(self, max_nodes: int = _UNLIMITED) -> list[int]:
        """For each node of the draft the number that it had in `frontier`, `parents`, `tokens`."""
        return self._core.best(max_nodes)[2]


class Stochastic(Grower):
    """Draws one node after the other where it is worth most: law "swor".

    Args:
        max_nodes: most drafted nodes.
        max_depth: most levels.
        min_value: places that a target like the drafter reaches less often are not drawn at.
        lookahead: rows asked for at once. More rows than are used, fewer passes of the drafter; the
            draft is the same.
        root, eos_ids, params, seed, position, vocab: see `Grower`.

    References:
        DySpec, arXiv 2410.11744.
    """

    def __init__(
        self,
        max_nodes: int,
        *,
        max_depth: int = _UNLIMITED,
        min_value: float = 0.0,
        lookahead: int = 4,
        root: int = -1,
        eos_ids: Iterable[int] = (),
        params: SamplingParams | None = None,
        seed: int,
        position: int,
        vocab: Any | None = None,
    ) -> None:
        start = _start(root, eos_ids, params, seed, position, vocab)
        limits = (max_nodes, max_depth, as_float("min_value", min_value), lookahead)
        super().__init__(_core.Grower.stochastic(start, *limits), params, vocab)


class Union(Grower):
    """A deterministic draft with drawn tokens beside it: law "mixed".

    Every node of `hits` is in the draft. Each node at depth d, hit or drawn, gets up to `counts[d]`
    children drawn outside the hits below it, as long as the budget lasts.

    Args:
        hits: a deterministic draft: an n-gram's or a suffix drafter's, several of them by `merge`.
        counts: drawn children of a node, by its depth.
        max_nodes: most drafted nodes, hits included; a larger `hits` is kept whole.
        root, eos_ids, params, seed, position, vocab: see `Grower`.

    Raises:
        DraftError: `hits` is not deterministic.

    References:
        arXiv 2502.18779, for any set.
    """

    def __init__(
        self,
        hits: Draft,
        counts: Sequence[int],
        *,
        max_nodes: int = _UNLIMITED,
        eos_ids: Iterable[int] = (),
        params: SamplingParams | None = None,
        seed: int,
        position: int,
        vocab: Any | None = None,
    ) -> None:
        check_type("hits", hits, Draft)
        start = _start(int(hits.tokens[0]), eos_ids, params, seed, position, vocab)
        super().__init__(_core.Grower.union(start, hits, counts, max_nodes), params, vocab)


class Coupled(Grower):
    """The tokens that lead the verifier's own race: law "coupled", for ``rule="coupled"``.

    The race of a position ranks tokens by E(x) / q(x) with the noise E by which the rule picks the
    token: the first child is the token that plain decoding would emit if the drafter were the
    target.

    Args:
        shape: the form; the n children of a node are the n first of the race.
        root, eos_ids, params, seed, position, vocab: see `Grower`.
        params: see `Grower`; matching the target's parameters matches more tokens.
        root, eos_ids, params, seed, position, vocab: see `Grower`.

    References:
        arXiv 2408.07978, 2506.05632.
    """

    def __init__(
        self,
        shape: TreeShape,
        *,
        root: int = -1,
        eos_ids: Iterable[int] = (),
        params: SamplingParams | None = None,
        seed: int,
        position: int,
        vocab: Any | None = None,
    ) -> None:
        check_type("shape", shape, TreeShape)
        start = _start(root, eos_ids, params, seed, position, vocab)
        super().__init__(_core.Grower.coupled(start, shape.tree), params, vocab)


def allocate(scores: Sequence[Sequence[float]], budget: int, *, minimum: int = 0) -> list[int]:
    """Divide a budget of nodes between requests, so that the expected tokens are most.

    Args:
        scores: per request what each further node adds, in descending order (`Heap.scores`, or an
            estimate made before any draw: sampled trees must not be cut afterwards).
        budget: nodes in all.
        minimum: nodes that every request gets, as far as it has them.

    Raises:
        ParamsError: scores that ascend or are no probabilities; minima beyond the budget.

    Example:
        >>> allocate([[0.9, 0.8, 0.7], [0.5, 0.1]], 4)
        [3, 1]

    References:
        arXiv 2501.12162, 2406.14066.
    """
    return _core.allocate(scores, budget, minimum)


def share(heaps: Sequence[Heap], budget: int, *, minimum: int = 0) -> list[Draft]:
    """Return the drafts of several heaps, cut to share one budget of nodes; see `allocate`."""
    listed = as_list("heaps", heaps)
    for index, heap in enumerate(listed):
        check_type(f"heaps[{index}]", heap, Heap)
    counts = allocate([heap.scores for heap in listed], budget, minimum=minimum)
    return [heap.finish(count) for heap, count in zip(listed, counts, strict=True)]


def merge(drafts: Sequence[Draft], *, max_nodes: int = _UNLIMITED) -> Draft:
    """Merge deterministic drafts: equal tokens below equal parents become one node.

    Args:
        drafts: at least one, all below the same root.
        max_nodes: most drafted nodes.

    Raises:
        DraftError: no draft, or one that is not deterministic.

    Example:
        >>> merge([Draft.chain([1, 2]), Draft.chain([1, 3])]).tokens.tolist()
        [-1, 1, 2, 3]
    """
    drafts = as_list("drafts", drafts)
    for index, draft in enumerate(drafts):
        check_type(f"drafts[{index}]", draft, Draft)
    if not drafts:
        message = "drafts: found none, wanted at least one"
        raise DraftError(message, slug="shape_mismatch")
    parents, tokens = _core.merge(drafts, max_nodes)
    return Draft(TokenTree(parents), tokens)


def _stack(chunks: list[Any]) -> Any:
    """Concatenate the rows, as the kind of array that they came in."""
    if len(chunks) == 1:
        return chunks[0]
    torch: Any = sys.modules.get("torch")  # Loaded, if the rows are its tensors.
    if torch is not None and all(isinstance(chunk, torch.Tensor) for chunk in chunks):
        return torch.cat([torch.atleast_2d(chunk) for chunk in chunks])
    arrays = [c if isinstance(c, np.ndarray) else np.from_dlpack(c) for c in chunks]
    return np.concatenate([np.atleast_2d(array) for array in arrays])
