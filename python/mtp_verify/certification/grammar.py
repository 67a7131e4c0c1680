"""A table of which token may follow which, as the decoder's constraints are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mtp_verify.decoder.constraints import Matcher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mtp_verify.testing.mutants import Follow

__all__ = ["FollowConstraint"]


class FollowConstraint:
    """A `Follow` as a `Constraint`; `eos` ends a string."""

    def __init__(self, follow: Follow, eos: int | None) -> None:
        self.follow = follow
        self.vocab_size: int = follow.matrix.shape[1]
        self.stop_ids = frozenset(() if eos is None else (eos,))

    def start(self, prompt: Sequence[int]) -> Matcher:
        """Return a matcher that stands behind a prompt, of which the grammar knows nothing."""
        del prompt
        return _FollowMatcher(self)


class _FollowMatcher(Matcher):
    def __init__(self, constraint: FollowConstraint) -> None:
        super().__init__(constraint.vocab_size)
        self._constraint = constraint
        self._path: list[int] = []

    @property
    def _has_ended(self) -> bool:
        return not self._constraint.stop_ids.isdisjoint(self._path[-1:])

    def fill(self, mask: NDArray[np.int32]) -> None:
        """Say which tokens may come next."""
        bits = np.zeros(32 * len(mask), np.uint8)
        bits[: self.vocab_size] = self._has_ended | self._constraint.follow(tuple(self._path))
        mask[:] = np.packbits(bits, bitorder="little").view("<i4")

    def accept(self, token: int) -> bool:
        """Go on by one token, if it may follow."""
        if self._has_ended or not self._constraint.follow(tuple(self._path))[token]:
            return False
        self._path.append(token)
        return True

    def rollback(self, count: int) -> None:
        """Take tokens back."""
        del self._path[len(self._path) - count :]
