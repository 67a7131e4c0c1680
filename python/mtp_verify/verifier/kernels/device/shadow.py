"""Write the rows that penalties change beside the logits, each once, as float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from mtp_verify.errors import ParamsError
from mtp_verify.verifier.kernels.device.arena import Arena

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from mtp_verify.verifier.kernels.device.arena import Field

__all__ = ["Changes", "Shadow", "above"]


def above(count: int) -> int:
    """Return the least power of two that is not below a count."""
    return 1 << max(count - 1, 0).bit_length()


class Changes(NamedTuple):
    """What penalties change in a step's rows, as the core lists it: src/batch/changes.rs.

    Attributes:
        rows: (S,) int32, the nodes' rows with changes.
        cells: (E,) int64, for each change the place of its row among `rows` times V, plus its
            token.
        banned: (E,) bool, whether the token may not follow.
        numbers: (6, E) float32, what is done to its logit.
    """

    rows: NDArray[np.int32]
    cells: NDArray[np.int64]
    banned: NDArray[np.bool_]
    numbers: NDArray[np.float32]


class Shadow:
    """Rows of float32 that a step reads in place of those of the logits.

    Memory is there once a step has changes, and grows by powers of two.

    Args:
        rows: R, the most nodes of a step.
        vocab: V.
        device: Where the logits are.
        is_fixed: Whether each step works on all there is, so that a captured one serves others.
    """

    def __init__(self, rows: int, vocab: int, device: torch.device, *, is_fixed: bool) -> None:
        """Allocate nothing yet."""
        self._all, self._vocab, self._device = rows, vocab, device
        self._is_fixed = is_fixed
        self._is_captured = False
        self._room = (0, 0)
        self._used = (0, 0)
        self._arena: Arena | None = None
        self._values: Tensor | None = None

    def capture(self) -> None:
        """Stay as it is from now on: a graph reads this memory."""
        self._is_captured = True

    def check(self, changes: Changes | None) -> None:
        """Refuse more changes than a captured graph applies."""
        needed = _sizes(changes)
        if self._is_captured and (needed[0] > self._room[0] or needed[1] > self._room[1]):
            message = (
                f"params: found penalties of {needed[1]} logits in {needed[0]} rows, wanted at "
                f"most {self._room[1]} in {self._room[0]}: as planned before the graph was captured"
            )
            raise ParamsError(message, slug="param_out_of_range")

    def send(self, changes: Changes | None) -> None:
        """Send the changes of a step to the device; they passed `check`."""
        needed = _sizes(changes)
        if needed[0] > self._room[0] or needed[1] > self._room[1]:
            self._grow(needed)
        self._used = self._room if self._is_fixed else needed
        if self._arena is None or not self._used[0]:
            return
        self._arena.wait()
        host: dict[str, Any] = self._arena.host
        host["shadow_of"][:] = -1
        # What is not used is written behind the last row, which nobody reads.
        host["cells"][needed[1] :] = self._room[0] * self._vocab
        if changes is not None:
            host["shadow_of"][changes.rows] = np.arange(needed[0], dtype=np.int32)
            host["rows"][: needed[0]] = changes.rows
            host["cells"][: needed[1]] = changes.cells
            host["banned"][: needed[1]] = changes.banned
            host["numbers"][:, : needed[1]] = changes.numbers
        self._arena.send()

    def write(self, logits: Tensor, place: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Write the changed rows of a step; nothing waits for the device.

        Args:
            logits: (rows, V).
            place: (R,) int32, the row of the logits that follows each node.

        Returns:
            `Edited.shadow` and `Edited.shadow_of`.
        """
        rows, cells = self._used
        if self._arena is None or self._values is None or not rows:
            return None, None
        sent = self._arena.tensors
        places = place.index_select(0, sent["rows"][:rows])
        self._values[:rows].copy_(logits.index_select(0, places))
        flat, own = self._values.view(-1), sent["cells"][:cells]
        # The core's operations, each rounded: tensors are divided by tensors, since a division by
        # a number may be carried out as a multiplication.
        bias, below, over, divisor, frequency, presence = sent["numbers"][:, :cells]
        changed = flat.index_select(0, own) + bias
        changed = torch.where(changed < 0, changed * below, changed * over / divisor)
        changed = changed - frequency - presence
        flat.index_copy_(0, own, changed.masked_fill(sent["banned"][:cells], -torch.inf))
        return self._values, sent["shadow_of"]

    def _grow(self, needed: tuple[int, int]) -> None:
        rows, cells = (max(own, above(more)) for own, more in zip(self._room, needed, strict=True))
        self._room = (rows, cells)
        fields: dict[str, Field] = {
            "shadow_of": ((self._all,), torch.int32),
            "rows": ((rows,), torch.int32),
            "cells": ((cells,), torch.int64),
            "banned": ((cells,), torch.bool),
            "numbers": ((6, cells), torch.float32),
        }
        self._arena = Arena(fields, self._device)
        # Let go before there are larger ones.
        self._values = None
        self._values = torch.zeros((rows + 1, self._vocab), device=self._device)


def _sizes(changes: Changes | None) -> tuple[int, int]:
    return (0, 0) if changes is None else (len(changes.rows), len(changes.cells))
