"""Where this package keeps things."""

from __future__ import annotations

import sys
from pathlib import Path

import platformdirs
import pytest

from mtp_verify.console.folders import cache_folder


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    for name in ("MTP_VERIFY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_own_variable_wins(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("MTP_VERIFY_CACHE", "~/own")
    assert cache_folder() == Path.home() / "own"


@pytest.mark.skipif(sys.platform != "linux", reason="these are the folders of Linux")
def test_the_folder_is_that_of_the_desktop_s_specification(monkeypatch):
    assert cache_folder() == Path.home() / ".cache" / "mtp-verify"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/mtp-verify")


@pytest.mark.parametrize(
    ("system", "folder"),
    [("macos.MacOS", "Library/Caches/mtp-verify"), ("unix.Unix", ".cache/mtp-verify")],
)
def test_other_systems_have_folders_of_their_own(system, folder, monkeypatch):
    module, _, kind = system.partition(".")
    of_system = getattr(__import__(f"platformdirs.{module}", fromlist=[kind]), kind)
    monkeypatch.setattr(platformdirs, "PlatformDirs", of_system)
    assert cache_folder() == Path.home() / folder
