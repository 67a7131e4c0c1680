"""Drafts copied from the sequence's own history: no model, no probabilities.

Both drafters keep one incremental index per request in the Rust core; appending a token costs
amortised O(1), memory is bounded. `Suffix` copies from past texts too, if it is given a store.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Generic, TypeVar

from mtp_verify._core import Draft, NGramIndex, SuffixIndex, TokenTree
from mtp_verify.drafters.states import TextDrafter
from mtp_verify.drafters.store import shelf_of
from mtp_verify.verifier.intake import as_count, as_float

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.drafters.base import Request
    from mtp_verify.drafters.store import SuffixStore

    _Found = tuple[list[int], list[int]]  # parents and tokens

__all__ = ["NGram", "Suffix"]


AnyIndex = TypeVar("AnyIndex", bound=NGramIndex | SuffixIndex)


class _History(Generic[AnyIndex]):
    """An index of the text, and how many of its tokens are in it."""

    def __init__(self, index: AnyIndex) -> None:
        self.index = index
        self._seen = 0

    def read(self, tokens: Sequence[int]) -> None:
        self.index.extend(tokens[self._seen :])
        self._seen = len(tokens)


class _HistoryDrafter(TextDrafter[_History[AnyIndex]], Generic[AnyIndex]):
    """What the two have in common: an index per request, fed with what was emitted."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = as_count("num_tokens", num_tokens)

    @abstractmethod
    def _new_index(self) -> AnyIndex: ...

    @abstractmethod
    def _look_up(
        self, request: Request, index: AnyIndex, budget: int, stop: Sequence[int]
    ) -> _Found: ...

    def __repr__(self) -> str:
        """Show the length of its drafts."""
        return f"{type(self).__name__}(num_tokens={self.num_tokens})"

    def _new_state(self, request: Request) -> _History[AnyIndex]:
        del request
        return _History(self._new_index())

    def _draft(self, request: Request, state: _History[AnyIndex], budget: int) -> Draft:
        found = self._look_up(request, state.index, max(budget, 0), sorted(request.eos_ids))
        return Draft(TokenTree(found[0]), found[1])


class NGram(_HistoryDrafter[NGramIndex]):
    """Prompt lookup: copy what followed the most recent occurrence of the last few tokens.

    The longest suffix of `max_ngram` down to `min_ngram` tokens that occurred before decides; its
    most recent earlier occurrence is copied. Where the copy runs into the end of the history it
    goes on with what it has just copied, so that short periods are continued.

    Args:
        max_ngram: Longest suffix to look up, 1 to 64.
        min_ngram: Shortest one, 1 to `max_ngram`. Larger values draft less often and better.
        num_tokens: Length of the drafted chain, >= 1.
        max_history: Tokens an index holds before it forgets the older half.

    Raises:
        ParamsError: A parameter is out of range.

    Example:
        >>> from mtp_verify.drafters import NGram, Request
        >>> request = Request(id=0, tokens=[5, 6, 7, 8, 5, 6], prompt_len=6, seed=1)
        >>> drafter = NGram(num_tokens=3)
        >>> drafter.start(request)
        >>> drafter.propose([request], [8])[0].tokens.tolist()
        [6, 7, 8, 5]

    References:
        Prompt lookup decoding, as in transformers' `PromptLookupCandidateGenerator`.
    """

    def __init__(
        self,
        max_ngram: int = 3,
        min_ngram: int = 1,
        num_tokens: int = 8,
        *,
        max_history: int = 1 << 16,
    ) -> None:
        super().__init__(num_tokens)
        self._settings = (max_ngram, min_ngram, max_history)
        self._new_index()  # Refuses bad parameters now, not at the first request.

    def _new_index(self) -> NGramIndex:
        return NGramIndex(*self._settings)

    def _look_up(
        self, request: Request, index: NGramIndex, budget: int, stop: Sequence[int]
    ) -> _Found:
        del request
        return index.propose(min(self.num_tokens, budget), stop)


class Suffix(_HistoryDrafter[SuffixIndex]):
    """Suffix drafting: weigh every continuation of the longest suffix that occurred before.

    A continuation's score is the product, along its path, of how often each token followed its
    context among all that did; the draft grows best first. Its depth is at most `depth_factor`
    times the length of the match: long matches are evidence of long copies.

    Args:
        num_tokens: Greatest depth, >= 1.
        max_nodes: Most nodes of a draft; default `num_tokens`. If given, drafts are trees unless
            `max_children` is 1. On a CPU narrow drafts pay most.
        max_children: Most children of a node; default 1 (chains), 4 if `max_nodes` is given.
        min_match: Shortest match that drafts, 1 to `max_context`; a single token rarely pays.
        depth_factor: Depth per matched token, > 0.
        min_score: Nodes of a lower score are not drafted, 0 to 1.
        max_context: Contexts are cut to this many tokens; bounds the cost of an append.
        max_history: Tokens an index holds before it forgets the older half.
        store: Past texts to copy from as well: they draft where they have a longer match than the
            request's own text. What is emitted for a request goes in when it ends.
        tenant: Whose texts they are in the store: its texts alone are copied.
        reads: Other tenants whose texts may be copied, too.

    Raises:
        ParamsError: A parameter is out of range.

    Example:
        >>> from mtp_verify.drafters import Request, Suffix
        >>> request = Request(id=0, tokens=[1, 2, 8, 1, 3, 1, 2, 9, 1], prompt_len=9, seed=1)
        >>> drafter = Suffix(max_nodes=8, min_match=1)
        >>> drafter.start(request)
        >>> draft = drafter.propose([request], [8])[0]
        >>> draft.tree.parents.tolist(), draft.tokens.tolist()
        ([-1, 0, 0], [1, 2, 3])

    References:
        SuffixDecoding, arXiv 2411.04975.
    """

    def __init__(
        self,
        num_tokens: int = 16,
        max_nodes: int | None = None,
        *,
        max_children: int | None = None,
        min_match: int = 2,
        depth_factor: float = 1.0,
        min_score: float = 0.1,
        max_context: int = 32,
        max_history: int = 1 << 16,
        store: SuffixStore | None = None,
        tenant: str = "",
        reads: Sequence[str] = (),
    ) -> None:
        super().__init__(num_tokens)
        if max_children is None:
            max_children = 1 if max_nodes is None else 4
        max_children = as_count("max_children", max_children)
        self.max_nodes = num_tokens if max_nodes is None else as_count("max_nodes", max_nodes)
        self.makes_trees = max_children > 1
        factor, score = as_float("depth_factor", depth_factor), as_float("min_score", min_score)
        self._settings = (min_match, max_context, factor, score, max_children, max_history)
        self._shelf = shelf_of(store, tenant, reads)
        self._new_index()  # Refuses bad parameters now, not at the first request.

    def _new_index(self) -> SuffixIndex:
        return SuffixIndex(*self._settings)

    def _look_up(
        self, request: Request, index: SuffixIndex, budget: int, stop: Sequence[int]
    ) -> _Found:
        limits = min(self.max_nodes, budget), self.num_tokens, stop
        found = None if self._shelf is None else self._shelf.propose(request, index, *limits)
        return index.propose(*limits) if found is None else found

    def release(self, request: Request) -> None:
        """Forget a request; what was emitted for it goes into the store."""
        if self._shelf is not None and request.id in self._states:
            self._shelf.keep(request)
        super().release(request)
