"""Kernels in Triton's interpreter, whose own set-up is done once."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
import pytest
import triton
import triton.language as tl

from tests.unit.verifier.kernels.device.interpreted import hastened

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "mtp_verify.verifier.kernels.device.triton_"


def enlarge_programs(package: str, patch: pytest.MonkeyPatch) -> None:
    """Make programs fewer and larger, and loops as short as rows: no bit depends on it."""
    sizes = {
        "race": {"PAIRS": 4096},
        "stats": {"GROUP": 64, "PROGRAMS": 1},
        "rows": {"UNROLLED": tl.constexpr(1)},
        "residual": {"UNROLLED": tl.constexpr(1)},
    }
    for module, values in sizes.items():
        for name, value in values.items():
            patch.setattr(import_module(f"{package}.{module}"), name, value)


@pytest.fixture(scope="session", autouse=True)
def _interpreter_set_up_once() -> Iterator[None]:
    """Make the interpreter quick."""
    assert triton.knobs.runtime.interpret, "tests/conftest.py sets TRITON_INTERPRET"
    with pytest.MonkeyPatch.context() as patch:
        enlarge_programs(PACKAGE, patch)
        yield from hastened(patch)


@pytest.fixture(autouse=True)
def _numbers_as_on_a_device() -> Iterator[None]:
    """Let infinities and NaN come up without a warning, as they do there."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        yield
