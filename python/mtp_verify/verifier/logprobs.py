"""The most likely tokens behind each emitted one."""

from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from mtp_verify.verifier.arrays import is_equal, sizes

__all__ = ["TopLogprobs"]


class TopLogprobs(NamedTuple):
    """The n most likely tokens of the target at each of the A+1 emitted positions.

    Attributes:
        tokens: (A+1, n) int64, those with the largest raw logits, the largest first, equal ones by
            ascending id; -1 where fewer have a probability above 0 in float32.
        raw: (A+1, n) float32, their log-probabilities in the row as the model gave it.
        shaped: (A+1, n) float32, those in the row that was sampled from; -inf where it has none.
        emitted: (A+1,) float32, the raw log-probability of the emitted token itself; its shaped
            one is ``Verdict.logprobs``.
    """

    tokens: NDArray[np.int64]
    raw: NDArray[np.float32]
    shaped: NDArray[np.float32]
    emitted: NDArray[np.float32]

    def __eq__(self, other: object) -> bool:
        """Compare all four arrays."""
        if not isinstance(other, TopLogprobs):
            return NotImplemented
        return is_equal(tuple(self), tuple(other))

    def __ne__(self, other: object) -> bool:
        """Compare all four arrays, where a tuple would compare each as one."""
        return not self == other

    def __hash__(self) -> NoReturn:
        """Refuse: arrays are mutable and have no hash."""
        message = "unhashable type: 'TopLogprobs'"
        raise TypeError(message)

    def __repr__(self) -> str:
        """Shapes and dtypes."""
        return sizes(self)

    def cut(self, n: int) -> "TopLogprobs":
        """Return those of the first ``n`` emitted tokens."""
        return TopLogprobs(self.tokens[:n], self.raw[:n], self.shaped[:n], self.emitted[:n])

    @classmethod
    def join(cls, parts: "list[TopLogprobs]") -> "TopLogprobs":
        """Concatenate those of several steps."""
        return cls(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.raw for part in parts]),
            np.concatenate([part.shaped for part in parts]),
            np.concatenate([part.emitted for part in parts]),
        )
