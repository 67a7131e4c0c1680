"""The most likely tokens behind each emitted one."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["TopLogprobs"]


class TopLogprobs(NamedTuple):
    """What the target thought of n tokens at each of the A+1 emitted places.

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

    def cut(self, n: int) -> "TopLogprobs":
        """Those of the first ``n`` emitted tokens."""
        return TopLogprobs(self.tokens[:n], self.raw[:n], self.shaped[:n], self.emitted[:n])

    @classmethod
    def join(cls, parts: "list[TopLogprobs]") -> "TopLogprobs":
        """Those of several steps, one after the other."""
        return cls(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.raw for part in parts]),
            np.concatenate([part.shaped for part in parts]),
            np.concatenate([part.emitted for part in parts]),
        )
