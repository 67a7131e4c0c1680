"""What changes a step's rows before they are shaped, as the core takes it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Edits", "Process"]

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
