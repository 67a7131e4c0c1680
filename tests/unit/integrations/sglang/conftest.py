"""A stand-in of the engine, and hooks that have warned of nothing yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mtp_verify.integrations.sglang import device, plugin
from tests.sglang_engine import stand_in

if TYPE_CHECKING:
    from types import SimpleNamespace


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The parts of SGLang 0.5.23 that the hooks touch."""
    plugin.warn.cache_clear()
    device.stage_of.cache_clear()
    found: SimpleNamespace = stand_in(monkeypatch)
    return found
