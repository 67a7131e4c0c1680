"""Select the code that verifies rows by where they live: the only place that knows devices.

`select` gives the kernel of some rows: the compiled core on the host, `device.kernel` on a GPU.
Nothing else in the package asks where a tensor lives, or calls the core's decisions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from mtp_verify.verifier.kernels.edits import Edits
from mtp_verify.verifier.kernels.host import Host, is_host, is_on_host, to_host

__all__ = ["Edits", "Host", "has_graphs", "is_host", "is_on_host", "select", "to_host", "using"]

_HOST = Host()
_forced: Host | None = None


def select(rows: Any) -> Host:
    """Return the kernel that verifies some rows.

    Args:
        rows: A matrix of logits, or a list of them.
    """
    if _forced is not None:
        return _forced
    first = rows[0] if isinstance(rows, list | tuple) and rows else rows
    if type(first) is np.ndarray or is_on_host(first) or not _is_known(first):
        return _HOST
    return _on_device()


def _is_known(tensor: Any) -> bool:
    """Return whether a tensor lives on a device that verifies; others are copied to the host."""
    return bool(getattr(tensor, "is_cuda", False))


def has_graphs(device: Any) -> bool:
    """Return whether a device is one of CUDA: with streams, pinned copies and captured graphs."""
    return bool(device.type == "cuda")


@cache
def _on_device() -> Host:
    # Loaded here, with torch, which the host does without.
    kernel: Host = import_module(f"{__name__}.device.kernel").OnDevice()
    return kernel


@contextmanager
def using(kernel: Host) -> Iterator[None]:
    """Use `kernel` for all rows inside the block, in all threads (tests, `loop_law`)."""
    global _forced
    before, _forced = _forced, kernel
    try:
        yield
    finally:
        _forced = before
