"""CONTRIBUTING's recipe for an engine hook: five files, and everything else derives from them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recipes.test_rule import follow, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]

HOOK = '''\
"""Toy: an engine whose accept function is replaced."""

from __future__ import annotations

from typing import Any

from mtp_verify._core import Draft
from mtp_verify.integrations.gate import ENGINES
from mtp_verify.verifier.api import verify

__all__ = ["accept", "register"]

_GATE = ENGINES["toy"]


def register() -> None:
    """Replace the engine's function if `MTP_VERIFY_TOY` says so."""
    if _GATE.switch() is None:
        return
    import toy

    _GATE.check(toy.__version__, {_GATE.function: toy.accept})
    toy.accept = accept


def accept(tokens: list[int], rows: Any) -> list[int]:
    """Verify a chain that is a function of the past."""
    found: list[int] = verify(Draft.chain(tokens), rows, seed=0, position=0).tokens.tolist()
    return found
'''
ENTRY = """\
    "toy": Gate(
        "Toy",
        ("toy-engine",),
        (3, 1),
        (3, 4),
        "accept",
        "tokens, rows",
        variable="MTP_VERIFY_TOY",
    ),
"""
POINT = """\
[project.entry-points."toy.plugins"]
mtp_verify = "mtp_verify.integrations.toy:register"

"""
TEST = """\
import sys
from types import ModuleType

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify.integrations import toy


@pytest.fixture
def engine(monkeypatch):
    def accept(tokens, rows):
        return []

    made = ModuleType("toy")
    made.__version__, made.accept = "3.2.1", accept
    monkeypatch.setitem(sys.modules, "toy", made)
    return made


def test_it_is_off_unless_it_is_switched_on(engine, monkeypatch):
    toy.register()
    assert engine.accept is not toy.accept
    monkeypatch.setenv("MTP_VERIFY_TOY", "1")
    toy.register()
    assert len(engine.accept([1], np.zeros((2, 3), np.float32))) >= 1


def test_another_version_is_left_alone(engine, monkeypatch):
    monkeypatch.setenv("MTP_VERIFY_TOY", "1")
    engine.__version__ = "3.5.0"
    with pytest.raises(mv.errors.UnsupportedModelError, match="3.1 to 3.4"):
        toy.register()
"""
# file -> (before which text, what is written)
RECIPE = {
    "python/mtp_verify/integrations/toy.py": [(None, HOOK)],
    "python/mtp_verify/integrations/gate.py": [('    "vllm": Gate(', ENTRY)],
    "pyproject.toml": [("[tool.maturin]\n", POINT), (' | vllm", "gate"]', " | toy")],
    "docs/howto/toy.md": [(None, "# Toy\n\nSet `MTP_VERIFY_TOY=1`.\n")],
    "tests/unit/integrations/test_toy.py": [(None, TEST)],
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A copy of the sources with the hook in it."""
    folder = tmp_path_factory.mktemp("toy")
    for name in ("python", "docs", "tests/unit/integrations"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    follow(RECIPE, folder)
    # Installed: doctor asks for the distribution.
    installed = folder / "python" / "toy_engine-3.2.1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-engine\nVersion: 3.2.1\n")
    return folder


def test_a_hook_needs_five_files_and_everything_else_follows(toy):
    assert len(RECIPE) == 5
    # Its own test, and that of the gate, which compares the entries with the entry points.
    run(
        toy, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0",
        "tests/unit/integrations/test_toy.py", "tests/unit/integrations/test_gate.py",
    )  # fmt: skip
    report = json.loads(run(toy, sys.executable, "-m", "mtp_verify", "doctor", "--quick", "--json"))
    assert report["engines"]["toy"] == {"version": "3.2.1", "hook": "fits: set MTP_VERIFY_TOY=1"}


def test_the_contracts_of_imports_hold_with_it(toy):
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        pytest.skip("import-linter is not installed")
    assert "0 broken" in run(toy, sys.executable, str(linter), "--no-logo")
    # Without its line in the contract the new module would be noticed.
    text = (toy / "pyproject.toml").read_text()
    (toy / "pyproject.toml").write_text(text.replace(" | toy", ""))
    done = subprocess.run(
        (sys.executable, str(linter), "--no-logo"), cwd=toy, capture_output=True, text=True,
        check=False, env={"PYTHONPATH": str(toy / "python")},
    )  # fmt: skip
    (toy / "pyproject.toml").write_text(text)
    assert done.returncode
