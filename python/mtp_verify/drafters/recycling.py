"""Token recycling: the target's own runners-up of past steps, reused as a draft.

Every forward of the target computes a row for each node of the tree, and all but one token of it is
thrown away. This drafter keeps the best few per token, and fills a fixed tree from that table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtp_verify import _core
from mtp_verify._core import Draft, TokenTree
from mtp_verify.drafters.states import TextDrafter
from mtp_verify.errors import NumericsError
from mtp_verify.verifier.growers import TreeShape
from mtp_verify.verifier.intake import as_count, check_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.drafters.base import Request

__all__ = ["Recycling"]

# Assumed rates of acceptance by rank, for the default shape only: measured ones
# (`TreeShape.optimal`) give a better tree.
_RATES = (0.45, 0.12, 0.06, 0.04, 0.03, 0.02, 0.015, 0.01)
_DEPTH = 6
_MOST_SEEDS = 1 << 20  # That a store remembers; it is emptied with them.


class _Table:
    """What may follow each token, the most likely first."""

    def __init__(self, num_successors: int) -> None:
        self._most = num_successors
        self.successors: dict[int, list[int]] = {}
        # Tokens whose successors come from a row: better evidence than one occurrence in the text.
        self.from_rows: set[int] = set()
        self.seen = 0

    def read(self, tokens: Sequence[int]) -> None:
        """Read neighbours in the text, from the first token on that was not read before."""
        for index in range(max(self.seen, 1), len(tokens)):
            before, after = tokens[index - 1], tokens[index]
            if before not in self.from_rows:
                known = self.successors.get(before, [])
                rest = [token for token in known if token != after]
                self.successors[before] = [after, *rest][: self._most]
        self.seen = len(tokens)


class _Store:
    """One table for many requests, but for those whose noise it may have learned from.

    Two requests with one seed draw with the same numbers. What the first has drawn would then steer
    what is drafted for the second, and no draft may depend on the noise that verifies it.
    """

    def __init__(self, num_successors: int) -> None:
        self._num_successors = num_successors
        self._renew()

    def _renew(self) -> None:
        self.table = _Table(self._num_successors)
        self._holders: dict[int, int] = {}  # By seed, the request that draws with it.

    def table_of(self, request: Request) -> _Table:
        """Return a table for a request; its own where another one has had its seed."""
        table = _Table(self._num_successors)
        if not request.params.is_greedy:
            if len(self._holders) == _MOST_SEEDS:
                self._renew()
            if self._holders.setdefault(request.seed, request.id) != request.id:
                return table
        table.successors, table.from_rows = self.table.successors, self.table.from_rows
        return table


class Recycling(TextDrafter[_Table]):
    """Fill a fixed tree with tokens that were likely to follow in past steps.

    The draft's law is "deterministic". The table of a request starts from the neighbours in its
    prompt; rows refresh it as a decoder hands them to `observe`.

    Args:
        shape: form of the draft; siblings are ranks of the table. None: the best shape of at most
            `max_nodes` nodes under assumed rates of acceptance by rank.
        max_nodes: most drafted nodes. On a CPU narrow drafts pay most.
        num_successors: tokens kept for each token, 1 or more.
        shared: one table for all requests, past ones too: more is known at once, but what is
            drafted (not its law, nor the output's distribution) then depends on other requests.
            One that is sampled with the seed of an earlier one gets a table of its own.

    Raises:
        ParamsError: a parameter is out of range.

    Example:
        >>> from mtp_verify.drafters import Recycling, Request
        >>> request = Request(id=0, tokens=[5, 6, 7, 5, 8, 5], prompt_len=6, seed=1)
        >>> drafter = Recycling(max_nodes=3)
        >>> drafter.start(request)
        >>> drafter.propose([request], [8])[0].tokens.tolist()
        [5, 8, 6, 5]

    References:
        Token recycling, arXiv 2408.08696 (about 80 nodes and 8 successors).
    """

    def __init__(
        self,
        shape: TreeShape | None = None,
        *,
        max_nodes: int = 80,
        num_successors: int = 8,
        shared: bool = False,
    ) -> None:
        super().__init__()
        as_count("max_nodes", max_nodes)
        rates = _RATES[: as_count("num_successors", num_successors)]
        if shape is None:
            shape = TreeShape.optimal(rates, max_nodes=max_nodes, max_depth=_DEPTH)
        check_type("shape", shape, TreeShape)
        self.shape = shape.cut(max_nodes)
        self.num_successors = num_successors
        self.makes_trees = not self.shape.tree.is_chain
        self._store = _Store(num_successors) if shared else None

    def __repr__(self) -> str:
        """Show the size of its drafts and of its tables."""
        size = f"max_nodes={self.shape.tree.num_nodes - 1}, num_successors={self.num_successors}"
        return f"Recycling({size}, shared={self._store is not None})"

    def observe(
        self, requests: Sequence[Request], drafts: Sequence[Draft], logits: Sequence[Any]
    ) -> None:
        """Refresh the tables from the target's rows of one step; the root's token must be known.

        Rows of a request of which one is no distribution teach nothing: whether they matter is the
        verifier's to say.
        """
        for request, draft, rows in zip(requests, drafts, logits, strict=True):
            table = self._state_of(request)
            # Where a token stands at several nodes, the last one in the tree's order counts.
            try:
                best = _core.top_tokens(rows, self.num_successors)
            except NumericsError:
                continue
            for token, successors in zip(draft.tokens.tolist(), best, strict=True):
                if token >= 0:
                    table.successors[token] = successors
                    table.from_rows.add(token)

    def _new_state(self, request: Request) -> _Table:
        return _Table(self.num_successors) if self._store is None else self._store.table_of(request)

    def _draft(self, request: Request, state: _Table, budget: int) -> Draft:
        parents, tokens = [-1], [request.tokens[-1]]
        # Which node of the draft each node of the shape became, and how many children it has.
        number: list[int | None] = [0]
        ranks = [0] * self.shape.tree.num_nodes
        for parent in self.shape.tree.parents.tolist()[1:]:
            rank, above = ranks[parent], number[parent]
            ranks[parent] += 1
            number.append(None)
            if above is None or len(tokens) > budget:
                continue
            known = state.successors.get(tokens[above], ())
            has_ended = above > 0 and tokens[above] in request.eos_ids
            if rank < len(known) and not has_ended:
                number[-1] = len(tokens)
                parents.append(above)
                tokens.append(known[rank])
        return Draft(TokenTree(parents), tokens)
