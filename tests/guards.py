"""Guards for code that must run on a device without the host: no reads, no sizes by data."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators whose result the host reads, or whose shape depends on data.
_FORBIDDEN = (
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "equal",
    "nonzero",
    "nonzero_static",
    "argwhere",
    "masked_select",
    "masked_scatter",
    "unique",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "histc",
    "repeat_interleave",
    "allclose",
)


class HostReadError(RuntimeError):
    """The host would have to wait for the device."""


class NoHostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuse every operator that reads data on the host, or takes tensors from device to device.

    Where all tensors are on the host already, ``tolist`` and ``numpy`` are no operators and pass.

    Attributes:
        names: The operators that ran.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator, or refuse it."""
        name = func.overloadpacket.__name__
        if name in _FORBIDDEN:
            message = f"{func} reads data on the host, or has a shape that depends on data"
            raise HostReadError(message)
        if name in ("index", "index_put", "index_put_"):
            masks = [t for t in args[1] if t is not None and t.dtype in (torch.bool, torch.uint8)]
            if masks:
                message = f"{func} with a mask has a shape that depends on data"
                raise HostReadError(message)
        self.names.add(name)
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        if len({t.device.type for t in tensors}) > 1:
            message = f"{func} takes tensors from one device to another"
            raise HostReadError(message)
        return result
