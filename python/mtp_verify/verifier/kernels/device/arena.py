"""Keep many small tensors in one piece of memory: one copy takes them all to a device, or back."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Arena", "Field", "sent"]

# A tensor's shape and dtype.
Field = tuple[tuple[int, ...], torch.dtype]

_ALIGNMENT = 16  # bytes: what the widest loads of a kernel want


class Arena:
    """Tensors on a device and their mirror on the host.

    Attributes:
        tensors: The tensors on the device, by name.
        host: The same as NumPy arrays, in pinned memory where there is CUDA.
    """

    def __init__(self, fields: Mapping[str, Field], device: torch.device) -> None:
        """Allocate both; everything is 0."""
        places = {}
        end = 0
        for name, (shape, dtype) in fields.items():
            size = prod(shape) * dtype.itemsize
            places[name] = (end, size, shape, dtype)
            end = -(-(end + size) // _ALIGNMENT) * _ALIGNMENT
        self._device = torch.zeros(end, dtype=torch.uint8, device=device)
        self._is_cuda = self._device.is_cuda
        self._host = torch.zeros(end, dtype=torch.uint8, pin_memory=self._is_cuda)
        self._copied = torch.cuda.Event() if self._is_cuda else None  # type: ignore[no-untyped-call]

        def parts(memory: Tensor) -> dict[str, Tensor]:
            return {
                name: memory[start : start + size].view(dtype).view(shape)
                for name, (start, size, shape, dtype) in places.items()
            }

        self.tensors: dict[str, Tensor] = parts(self._device)
        self.host: dict[str, NDArray[np.generic]] = {
            name: part.numpy() for name, part in parts(self._host).items()
        }

    def send(self) -> None:
        """Copy the host's arrays to the device, without waiting for it."""
        self._device.copy_(self._host, non_blocking=True)
        if self._copied is not None:
            self._copied.record()

    def fetch(self) -> None:
        """Copy the device's tensors to the host, without waiting for it."""
        self._host.copy_(self._device, non_blocking=True)
        if self._copied is not None:
            self._copied.record()

    def wait(self) -> None:
        """Wait until the last copy has been carried out: before the host's arrays are used."""
        if self._copied is not None:
            self._copied.synchronize()


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device; the host does not wait until it is there."""
    if device.type == "cuda":  # Copies from other memory wait for what was started before.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
