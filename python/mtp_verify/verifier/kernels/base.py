"""The interface of a kernel, which verifies, draws and grows where the rows live."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mtp_verify._core import (
    CoreParams,
    Draft,
    DraftBatch,
    Grower,
    Lossy,
    Verdict,
    VerdictBatch,
)

__all__ = ["Edits", "Kernel", "Process"]

# A function of nodes and their rows (n, V) that returns such rows.
Process = Callable[[list[int], NDArray[np.float32]], NDArray[np.float32]]


class Edits(NamedTuple):
    """What changes a step's rows before they are shaped.

    Attributes:
        history: (T,) the tokens up to and including the root, or None.
        prompt_len: How many of them are prompt.
        bitmask: int32 (N+1, ceil(V/32)) on the host, the allowed tokens after each node, or None.
        process: The function over some nodes' rows, or None.
    """

    history: Sequence[int] | None = None
    prompt_len: int = 0
    bitmask: Any = None
    process: Process | None = None


class Kernel(Protocol):
    """A way to verify. Arguments are checked before they come here; rows may live anywhere.

    Every call with rows of a model goes through one of these methods, so that a kernel sees
    everything that is decided.
    """

    def verify(
        self,
        draft: Draft,
        logits: Any,
        params: CoreParams,
        rule: str,
        *,
        seed: int,
        position: int,
        lossy: Lossy | None,
        edits: Edits | None,
        top_logprobs: int,
    ) -> Verdict:
        """Return the verdict on one draft, as `mtp_verify.verify`."""

    def verify_batch(
        self,
        drafts: DraftBatch | Sequence[Draft],
        logits: Any,
        params: CoreParams | Sequence[CoreParams],
        rule: str | Sequence[str],
        *,
        seeds: Sequence[int],
        positions: Sequence[int],
        lossy: Lossy | Sequence[Lossy | None] | None,
        edits: Sequence[Edits],
        top_logprobs: int | Sequence[int],
    ) -> VerdictBatch:
        """Return the verdicts on many drafts, as `mtp_verify.verify_batch`."""

    def expected_accepted(
        self, draft: Draft, logits: Any, params: CoreParams, rule: str, *, edits: Edits | None
    ) -> float:
        """Return the mean number of accepted tokens, as `mtp_verify.expected_accepted`."""

    def draw(self, logits: Any, params: Any, seed: int, position: int, node: int) -> int:
        """Return a token of one row (1, V), drawn with the drafter's noise of a node."""

    def extend(self, grower: Grower, logits: Any) -> Any | None:
        """Grow a draft by the rows of its frontier; return the rows that a draft must keep."""
