"""Which sources there are, and how they are made to run."""

from __future__ import annotations

import os
from importlib import import_module

import pytest

from mtp_verify.testing.device import backends
from mtp_verify.testing.device.backends import BACKENDS, ready, ready_copy


def test_each_has_its_package():
    for backend in BACKENDS:
        if backend.is_there:
            module = import_module(backend.package)
            assert callable(module.run)
            assert callable(module.Workspace)


@pytest.mark.parametrize("missing", ["torch", "triton"])
def test_a_source_is_there_if_its_library_is(monkeypatch, missing):
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == missing else name)
    found = {backend.name: backend.is_there for backend in BACKENDS}
    assert found == {"torch": missing == "triton", "triton": False}


def test_operators_of_torch_need_nothing(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with ready(BACKENDS[0]), ready_copy(BACKENDS[0], BACKENDS[0].package):
        assert "TRITON_INTERPRET" not in os.environ


def test_triton_is_interpreted():
    with ready(BACKENDS[1]):
        assert os.environ["TRITON_INTERPRET"] == "1"
