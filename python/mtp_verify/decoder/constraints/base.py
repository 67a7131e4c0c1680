"""What a constraint is, and how its matcher is led along a tree.

A matcher is moved down a path token by token and back again, so that every node of a draft gets the
mask of its own path; afterwards it stands where it stood.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch

from mtp_verify._core import Draft, TokenTree
from mtp_verify.errors import InternalError, ParamsError
from mtp_verify.verifier.cleanup import at_end

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Constraint", "Grammars", "Matcher", "without"]


@runtime_checkable
class Constraint(Protocol):
    """A rule about token strings that any number of requests may be held to.

    Attributes:
        vocab_size: V, width of the rows of the model that it was made for.
        stop_ids: tokens that end a string which obeys; they end the request, too.
    """

    vocab_size: int
    stop_ids: frozenset[int]

    def start(self, prompt: Sequence[int]) -> Matcher:
        """Return a matcher that stands behind `prompt`, before the first token to come."""


class Grammars(ABC):
    """Makes constraints for one tokenizer with a library of grammars."""

    name = ""  # of the library
    errors: tuple[type[Exception], ...] = (ValueError,)  # that it refuses a grammar with

    @abstractmethod
    def _make(self, kind: str, source: Any, options: dict[str, Any]) -> Constraint:
        """Return the constraint of a grammar: "json_schema", "regex", or the library's own kind."""

    def json_schema(self, schema: dict[str, Any] | str, **options: Any) -> Constraint:
        """Return a constraint to JSON that a schema describes.

        Args:
            schema: the schema, or its text.
            options: of the library: of llguidance's `JsonCompileOptions`, or of xgrammar's
                `compile_json_schema`, such as `any_whitespace=False`.

        Raises:
            ParamsError: the library refuses the schema; says why.
        """
        return self._checked("json_schema", schema, options)

    def regex(self, pattern: str) -> Constraint:
        """Return a constraint to what a regular expression matches from start to end.

        Raises:
            ParamsError: the library refuses the pattern; says why.
        """
        return self._checked("regex", pattern)

    def _checked(self, kind: str, source: Any, options: dict[str, Any] | None = None) -> Constraint:
        try:
            return self._make(kind, source, options or {})
        except self.errors as error:
            message = f"{self.name} refuses the grammar: {error}"
            raise ParamsError(message, slug="bad_grammar") from error

    @classmethod
    def _import(cls) -> Any:
        try:
            return importlib.import_module(cls.name)
        except ImportError as error:
            message = f'{cls.__name__} needs {cls.name}; run: pip install "mtp-verify[{cls.name}]"'
            raise ImportError(message, name=cls.name) from error


class Matcher(ABC):
    """One sequence's place in its constraint; a subclass defines the three moves.

    Example:
        >>> class Even(Matcher):
        ...     def fill(self, mask):
        ...         mask[:] = 0x55555555
        ...
        ...     def accept(self, token):
        ...         return token % 2 == 0
        ...
        ...     def rollback(self, count):
        ...         pass
        >>> Even(8).masks(Draft.chain([2, 3, 4]))[1].tolist()
        [True, True, False, False]
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    @abstractmethod
    def fill(self, mask: NDArray[np.int32]) -> None:
        """Say which tokens may come next.

        `mask` (ceil(V/32),) are zeros, to be written: bit t % 32 of word t // 32 is set where token
        t is allowed. Behind a stop token all are.
        """

    @abstractmethod
    def accept(self, token: int) -> bool:
        """Go on by one token; return False, and stay, if it is forbidden."""

    @abstractmethod
    def rollback(self, count: int) -> None:
        """Take the last `count` accepted tokens back; 0 is nothing."""

    def masks(self, draft: Draft) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Compute the mask of every node of a draft that may follow this place.

        Returns:
            The masks (N+1, ceil(V/32)), row i of what may follow node i, and which nodes (N+1,)
            are allowed, with all their ancestors. Others are never reached; their masks are full.
        """
        tree, tokens = draft.tree, draft.tokens.tolist()
        bits = np.full((draft.num_nodes, self._num_words), -1, np.int32)
        allowed = np.zeros(draft.num_nodes, np.bool_)
        child, sibling = tree.next_token.tolist(), tree.next_sibling.tolist()
        depths = tree.depths.tolist()
        depth = 0  # of the node that this matcher stands at
        with at_end(lambda: self.rollback(depth)):
            allowed[0] = True
            self._refill(bits[0])
            pending = [child[0]]
            while pending:
                node = pending.pop()
                if node < 0:
                    continue
                pending.append(sibling[node])
                self.rollback(depth - depths[node] + 1)
                depth = depths[node] - 1
                if self.accept(tokens[node]):
                    depth += 1
                    allowed[node] = True
                    self._refill(bits[node])
                    pending.append(child[node])
        return bits, allowed

    def mask_rows(
        self, rows: torch.Tensor, paths: Sequence[Sequence[int]], vocab: Any | None = None
    ) -> torch.Tensor:
        """Take what is forbidden out of a drafter's rows, before anything is drawn from them.

        A row that would be left with nothing, or whose path is itself forbidden, stays whole:
        drafting must not fail where decoding does not.

        Args:
            rows: (n, V_d) logits; not changed.
            paths: tokens from this place to each of the n nodes.
            vocab: (V_d,) the token of each column, where rows are over a sub-vocabulary.

        Returns:
            The rows with -inf at forbidden tokens.
        """
        bits = np.full((len(paths), self._num_words), -1, np.int32)
        for row, path in zip(bits, paths, strict=True):
            self._fill_behind(path, row)
        octets = bits.astype("<i4", copy=False).view(np.uint8)
        forbidden = np.unpackbits(octets, axis=1, bitorder="little")[:, : self.vocab_size] == 0
        if vocab is not None:
            forbidden = forbidden[:, vocab]
        masked = rows.masked_fill(torch.from_numpy(forbidden).to(rows.device), -torch.inf)
        empty = masked.amax(dim=1, keepdim=True) == -torch.inf
        return torch.where(empty, rows, masked)

    def _fill_behind(self, path: Sequence[int], row: NDArray[np.int32]) -> None:
        """Write the mask behind a path; the row stays as it is if the path is forbidden."""
        count = 0
        with at_end(lambda: self.rollback(count)):
            while count < len(path) and self.accept(path[count]):
                count += 1
            if count == len(path):
                self._refill(row)

    def commit(self, tokens: Sequence[int]) -> None:
        """Go on by tokens that were emitted.

        Raises:
            InternalError: one of them is forbidden.
        """
        for token in tokens:
            if not self.accept(token):
                message = f"token {token} was emitted, and the constraint forbids it"
                raise InternalError(message, slug="forbidden_token")

    @property
    def _num_words(self) -> int:
        return -(-self.vocab_size // 32)

    def _refill(self, mask: NDArray[np.int32]) -> None:
        mask[:] = 0
        self.fill(mask)
        if self.vocab_size % 32:
            mask[-1] &= (1 << self.vocab_size % 32) - 1


def without(draft: Draft, forbidden: NDArray[np.bool_]) -> Draft:
    """Return a draft of law "deterministic", "coupled" or "unknown" without its forbidden nodes.

    Only drafts that no rule holds against a drafter's row may lose nodes. A drawn node must stay:
    that the drafter drew a forbidden token, not another, is what the verifier's residual pays for.
    `forbidden` (N+1,) holds all nodes below a forbidden one, and never the root.
    """
    kept = np.flatnonzero(~forbidden)
    numbers = np.cumsum(~forbidden) - 1
    parents = numbers[draft.tree.parents[kept[1:]]]
    return Draft(TokenTree([-1, *parents.tolist()]), draft.tokens[kept], law=draft.law)
