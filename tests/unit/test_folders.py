"""Where this package keeps things."""

from __future__ import annotations

from pathlib import Path

from mtp_verify.folders import cache_folder


def test_own_variable_wins(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.delenv("MTP_VERIFY_CACHE", raising=False)
    assert cache_folder() == Path("/xdg/mtp-verify")
    monkeypatch.setenv("MTP_VERIFY_CACHE", "/own")
    assert cache_folder() == Path("/own")
    monkeypatch.delenv("MTP_VERIFY_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "mtp-verify"
