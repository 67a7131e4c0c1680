"""Keep many small tensors in one piece of memory: one copy takes them all to a device, or back."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, NamedTuple

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


class _Mirror(NamedTuple):
    memory: Tensor
    arrays: dict[str, NDArray[np.generic]]
    copied: torch.cuda.Event | None

    def record(self) -> None:
        if self.copied is not None:
            self.copied.record()


class Arena:
    """Tensors on a device and their mirrors on the host.

    Args:
        fields: The tensors by name.
        device: Where they are.
        mirrors: How many there are of each on the host: with two, a step is written there while
            the copy of the step before is still under way.

    Attributes:
        tensors: The tensors on the device, by name.
        host: The same as NumPy arrays, in pinned memory where there is CUDA: the mirror in use.
    """

    def __init__(
        self, fields: Mapping[str, Field], device: torch.device, *, mirrors: int = 1
    ) -> None:
        """Allocate all; everything is 0."""
        places = {}
        end = 0
        for name, (shape, dtype) in fields.items():
            size = prod(shape) * dtype.itemsize
            places[name] = (end, size, shape, dtype)
            end = -(-(end + size) // _ALIGNMENT) * _ALIGNMENT
        self._device = torch.zeros(end, dtype=torch.uint8, device=device)
        is_cuda = self._device.is_cuda

        def parts(memory: Tensor) -> dict[str, Tensor]:
            return {
                name: memory[start : start + size].view(dtype).view(shape)
                for name, (start, size, shape, dtype) in places.items()
            }

        self.tensors: dict[str, Tensor] = parts(self._device)
        self._mirrors = []
        for _ in range(mirrors):
            memory = torch.zeros(end, dtype=torch.uint8, pin_memory=is_cuda)
            arrays = {name: part.numpy() for name, part in parts(memory).items()}
            copied = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]
            self._mirrors.append(_Mirror(memory, arrays, copied))
        self._mirror = self._mirrors[0]

    @property
    def host(self) -> dict[str, NDArray[np.generic]]:  # noqa: D102 - an attribute
        return self._mirror.arrays

    def send(self) -> None:
        """Copy the host's arrays to the device, without waiting for it."""
        self._device.copy_(self._mirror.memory, non_blocking=True)
        self._mirror.record()

    def fetch(self) -> None:
        """Copy the device's tensors to the host, without waiting for it."""
        self._mirror.memory.copy_(self._device, non_blocking=True)
        self._mirror.record()

    def wait(self) -> None:
        """Go on with the next mirror, once its last copy has been carried out.

        Call it before the host's arrays are used; where there is one mirror, it stays.
        """
        self._mirrors.append(self._mirrors.pop(0))
        self._mirror = self._mirrors[0]
        if self._mirror.copied is not None:
            self._mirror.copied.synchronize()


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device; the host does not wait until it is there."""
    if device.type == "cuda":  # Copies from other memory wait for what was started before.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
