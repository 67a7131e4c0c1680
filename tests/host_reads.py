"""A guard that counts what the host reads of tensors, as it would if they lived on a device.

On a device each such read is a copy and a wait. Tensors of the tests live on the CPU, where a read
costs nothing and nothing tells it apart, so it is caught where it is asked for: methods that give
Python numbers or NumPy arrays, operators whose result has as many entries as the values say, and
the two doors of `verifier.kernels`, `to_host` and `DeviceVerifier.host`.
"""

from __future__ import annotations

import sys
import traceback
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mtp_verify.verifier import kernels
from mtp_verify.verifier.kernels.device.verifier import DeviceVerifier

if TYPE_CHECKING:
    from collections.abc import Callable

_METHODS = ("tolist", "numpy", "cpu", "__array__", "__dlpack__")
# Operators that hand a value to the host, or whose shape depends on values.
_OPERATORS = {
    "aten::_local_scalar_dense",
    "aten::allclose",
    "aten::equal",
    "aten::is_nonzero",
    "aten::item",
    "aten::masked_select",
    "aten::nonzero",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::unique_dim",
}
_BY_MASK = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
_SEAM = "verifier/kernels/"


class HostReads(TorchDispatchMode):
    """While it is open, `places` lists each read by where it was asked for.

    What lies inside `verifier.kernels` counts as one read for each call of a door. A tensor that
    `to_host` has returned is the host's own, and may be read again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []
        self._hosted: list[torch.UntypedStorage] = []  # Kept, so that no address is used twice.
        self._ends = ExitStack()
        self._is_reading = False

    def __enter__(self) -> Self:
        """Watch, from here on."""
        for name in _METHODS:
            own = patch.object(torch.Tensor, name, self._watched(getattr(torch.Tensor, name)))
            self._ends.enter_context(own)
        door, counted = kernels.to_host, self._door(kernels.to_host)
        for module in list(sys.modules.values()):
            is_ours = getattr(module, "__name__", "").startswith("mtp_verify.")
            if is_ours and vars(module).get("to_host") is door:
                self._ends.enter_context(patch.object(module, "to_host", counted))
        host = patch.object(DeviceVerifier, "host", self._read_verdicts(DeviceVerifier.host))
        self._ends.enter_context(host)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        """Leave everything as it was."""
        self._ends.close()
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        indices = args[1] if name in _BY_MASK else ()
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        if name in _OPERATORS or by_mask or _leaves_device(name, args, kwargs or {}):
            self._count(name, args[0])
        return func(*args, **(kwargs or {}))

    def _watched(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def read(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
            if self._is_reading:  # One method calls another.
                return method(tensor, *args, **options)
            self._count(method.__name__, tensor)
            self._is_reading = True
            try:
                return method(tensor, *args, **options)
            finally:
                self._is_reading = False

        return read

    def _door(self, door: Callable[..., Any]) -> Callable[..., Any]:
        def to_host(tensor: Any, *args: Any) -> Any:
            found = door(tensor, *args)
            if not isinstance(found, torch.Tensor) or self._is_hosted(found):
                return found
            # On the CPU it is the tensor itself; of a device's it would be a copy.
            found = found.clone()
            self._hosted.append(found.untyped_storage())
            self.places.append(f"to_host, {_caller()}")
            return found

        return to_host

    def _read_verdicts(self, door: Callable[..., Any]) -> Callable[..., Any]:
        def host(verifier: DeviceVerifier) -> Any:
            self.places.append(f"host, {_caller()}")
            return door(verifier)

        return host

    def _is_hosted(self, tensor: torch.Tensor) -> bool:
        address = tensor.untyped_storage().data_ptr()
        return any(storage.data_ptr() == address for storage in self._hosted)

    def _count(self, name: str, tensor: torch.Tensor) -> None:
        if not (self._is_hosted(tensor) or any(_SEAM in f.filename for f in _frames())):
            self.places.append(f"{name}, {_caller()}")


def _leaves_device(name: str, args: Any, options: Any) -> bool:
    """Return whether an operator copies from a device (a real one) to the host."""
    if name == "aten::_to_copy":
        device = options.get("device")
        return device is not None and device.type == "cpu" and not args[0].is_cpu
    return name == "aten::copy_" and args[0].is_cpu and not args[1].is_cpu


def _frames() -> traceback.StackSummary:
    return traceback.StackSummary.extract(
        traceback.walk_stack(sys._getframe(1)), lookup_lines=False
    )


def _caller() -> str:
    """Return where in the package, or else outside of this file and torch, a read was asked for."""
    frames = [f for f in _frames() if f.filename != __file__ and "/torch/" not in f.filename]
    ours = (f for f in frames if "/mtp_verify/" in f.filename)
    found = next(ours, frames[0])
    return f"{found.filename.rpartition('/mtp_verify/')[2]}:{found.lineno} {found.name}"
