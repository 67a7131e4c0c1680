"""Kernels in Triton's interpreter, whose own set-up is done once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mtp_verify.testing.device import interpreter

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "mtp_verify.verifier.kernels.device.triton_"


@pytest.fixture(scope="session", autouse=True)
def _interpreter_set_up_once() -> Iterator[None]:
    """Make the interpreter quick (tests/conftest.py asks for it)."""
    with interpreter.enlarged(PACKAGE), interpreter.hastened():
        yield


@pytest.fixture(autouse=True)
def _numbers_as_on_a_device() -> Iterator[None]:
    """Let infinities and NaN come up without a warning, as they do there."""
    with interpreter.numbers_as_on_a_device():
        yield
