"""Refuse sizes and devices that are a mistake, before anything is allocated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtp_verify.errors import ParamsError
from mtp_verify.verifier.intake import shown
from mtp_verify.verifier.kernels.device.layout import BLOCK

if TYPE_CHECKING:
    from mtp_verify.verifier.kernels.device.layout import Capacity

__all__ = ["MOST", "as_device", "check_memory"]

# More requests or nodes are a mistake, and so are tensors of more cells (some 100 bytes each).
MOST = 1 << 20
_MOST_CELLS = 1 << 28


def as_device(device: Any) -> torch.device:
    """Return a device by its name.

    Raises:
        ParamsError: It is no device of torch.
    """
    try:
        if isinstance(device, str | torch.device):
            return torch.device(device)
    except RuntimeError:
        pass
    message = f"device: found {shown(device)}, wanted a device of torch"
    raise ParamsError(message, slug="param_out_of_range")


def check_memory(capacity: Capacity) -> None:
    """Refuse sizes whose tensors would be too large together.

    Raises:
        ParamsError: Names the size.
    """
    blocks = -(-max(capacity.vocab, capacity.columns) // BLOCK)
    cells = {
        "max_rows": (capacity.rows + capacity.drafted) * blocks,
        "max_batch": capacity.requests * (capacity.depth + 1),
    }
    for name, found in cells.items():
        if found > _MOST_CELLS:
            message = f"{name}: found sizes of {found} cells together, wanted {_MOST_CELLS} at most"
            raise ParamsError(message, slug="param_out_of_range")
