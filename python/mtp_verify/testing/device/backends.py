"""The sources that verify on a device, made to run without a GPU."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BACKENDS", "Backend", "ready", "ready_copy"]


class Backend(NamedTuple):
    """One source of the steps on a device.

    Attributes:
        name: What `Verdict.backend` says.
        package: Its modules.
        needs: The library in which it is written.
        is_slow: Whether it is interpreted here: it is asked less.
    """

    name: str
    package: str
    needs: str
    is_slow: bool

    @property
    def is_there(self) -> bool:
        """Whether its library is installed."""
        return find_spec("torch") is not None and find_spec(self.needs) is not None


_ROOM = "mtp_verify.verifier.kernels.device"
BACKENDS = (
    Backend("torch", f"{_ROOM}.torch_", "torch", is_slow=False),
    Backend("triton", f"{_ROOM}.triton_", "triton", is_slow=True),
)


@contextmanager
def ready(backend: Backend) -> Iterator[None]:
    """Let a backend run inside the block; Triton must not have been imported before."""
    if backend.needs != "triton":
        yield
        return
    os.environ["TRITON_INTERPRET"] = "1"
    interpreter = import_module("mtp_verify.testing.device.interpreter")
    with ExitStack() as stack:
        for part in (interpreter.hastened(), interpreter.numbers_as_on_a_device()):
            stack.enter_context(part)
        yield


@contextmanager
def ready_copy(backend: Backend, package: str) -> Iterator[None]:
    """Let a package run as quickly as it may inside the block: the backend's own, or a copy."""
    if backend.needs != "triton":
        yield
        return
    interpreter = import_module("mtp_verify.testing.device.interpreter")
    with interpreter.enlarged(package):
        yield
