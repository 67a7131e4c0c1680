"""What a run needs beside its step: the type of sums, and how much is worked on at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mtp_verify.verifier.kernels.device.layout import Capacity

__all__ = ["Workspace", "wide_type"]

# Elements of rows that are worked on at once: on a host what its caches hold, elsewhere enough that
# launches do not count. Their temporaries take about 50 times so many bytes.
_ON_HOST, _ON_DEVICE = 1 << 16, 1 << 22


class Workspace:
    """How the steps of one capacity are run on a device.

    Temporaries come from torch's allocator. Captured in a graph, they are the graph's own.

    Attributes:
        wide: The type of sums: float64, or float32 on devices that have no float64 (MPS). Then
            probabilities and thresholds have a relative error of about 1e-5, and decisions are
            those of the core only where no threshold is as near.
    """

    def __init__(self, capacity: Capacity, device: torch.device | str = "cpu") -> None:
        del capacity  # Temporaries have the sizes of each step.
        self.wide = wide_type(device)
        self._many = _ON_HOST if torch.device(device).type == "cpu" else _ON_DEVICE

    def parts(self, count: int, width: int) -> Iterator[slice]:
        """Divide `count` rows of some width into parts that are worked on one after the other."""
        size = max(1, self._many // max(1, width))
        return (slice(start, min(start + size, count)) for start in range(0, count, size))


def wide_type(device: torch.device | str) -> torch.dtype:
    """Return the type of sums on a device."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64
