from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from mtp_verify.console import libraries
from mtp_verify.console.libraries import EXTRAS, need

ROOT = Path(__file__).parents[3]


def test_the_extras_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        extra: tuple(re.match(r"[a-z0-9_-]+", line)[0] for line in lines)
        for extra, lines in project["optional-dependencies"].items()
        if extra != "dev"
    }
    assert declared == EXTRAS


def test_what_is_installed_is_not_asked_for():
    need("numpy", extra="torch")
    need(extra="no-such-extra")


@pytest.mark.parametrize(
    ("modules", "options", "message"),
    [
        (
            (),
            {"extra": "plot"},
            'needs matplotlib; run: pip install "mtp-verify[plot]"',
        ),
        (("torch", "gguf"), {"extra": "demo", "subject": "it needs"}, "it needs torch and gguf;"),
        (("torch",), {"command": "make dev"}, "this command needs torch; run: make dev"),
    ],
)
def test_what_is_missing_is_named_with_the_way_to_get_it(monkeypatch, modules, options, message):
    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    with pytest.raises(ImportError) as caught:
        need(*modules, **options)
    assert message in str(caught.value)
