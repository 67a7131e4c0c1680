"""Settings shared by all tests: one thread, no hub, Hypothesis profiles, seeds.

`--seed N` sets the base seed of the `rng` and `seed` fixtures (fixed by default, so that a run
repeats); `--vary-seed` takes a fresh one and prints it. Hypothesis profiles: `dev` (default),
`ci` (its own, loaded by itself when CI is set) and `nightly` (HYPOTHESIS_PROFILE=nightly).
"""

from __future__ import annotations

import os
import secrets
import signal
import zlib

# Before torch or tokenizers are imported anywhere: they read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Kernels of Triton run in its interpreter, unless a GPU is asked for by name.
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_SEED = 20260101

settings.register_profile(
    "dev",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "nightly",
    parent=settings.get_profile("dev"),
    derandomize=False,
    max_examples=10 * settings.get_profile("default").max_examples,
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("seeds")
    group.addoption("--seed", type=int, default=DEFAULT_SEED, help="base seed of rng and seed")
    group.addoption("--vary-seed", action="store_true", help="take a fresh base seed, and print it")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--vary-seed"):
        config.option.seed = secrets.randbits(32)
    name = os.environ.get("HYPOTHESIS_PROFILE")
    if name is not None:
        settings.load_profile(name)
    elif "CI" not in os.environ:  # Hypothesis loads its own `ci` profile there
        settings.load_profile("dev")


def pytest_report_header(config: pytest.Config) -> str:
    return f"base seed: {config.getoption('--seed')} (repeat a run with --seed)"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed of this test's own, derived from the base seed and the test's name."""
    base = int(request.config.getoption("--seed"))
    return (base << 32) ^ zlib.crc32(request.node.nodeid.encode())


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """A NumPy generator of this test's own; its seed repeats from run to run."""
    return np.random.default_rng(seed)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as at a terminal: what a shell runs in the background ignores it, and its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
