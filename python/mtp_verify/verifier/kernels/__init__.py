"""Select the code that verifies rows by where they live: the only place that knows devices.

`select` gives the kernel of some rows; today that is the compiled core for all of them. Nothing
else in the package asks where a tensor lives, or calls the core's decisions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mtp_verify.verifier.kernels.edits import Edits
from mtp_verify.verifier.kernels.host import Host, is_on_host, to_host

__all__ = ["Edits", "Host", "is_on_host", "select", "to_host", "using"]

_HOST = Host()
_forced: Host | None = None


def select(rows: Any) -> Host:
    """Return the kernel that verifies some rows.

    Args:
        rows: A matrix of logits, or a list of them.
    """
    del rows  # The host's kernel takes all: what lives on a device is copied.
    return _HOST if _forced is None else _forced


@contextmanager
def using(kernel: Host) -> Iterator[None]:
    """Use `kernel` for all rows inside the block, in all threads (tests, `loop_law`)."""
    global _forced
    before, _forced = _forced, kernel
    try:
        yield
    finally:
        _forced = before
