"""What `import mtp_verify` costs: no heavy library, whatever else is installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "transformers",
    "triton",
    "hypothesis",
    "gguf",
    "accelerate",
    "rich",
    "platformdirs",
)


def run_python(code: str, *flags: str) -> str:
    """Run `code` in a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported_after(statement: str) -> set[str]:
    return set(run_python(f"import sys\n{statement}\nprint(*sys.modules)").split())


def test_import_leaves_heavy_libraries_alone():
    assert imported_after("import mtp_verify").isdisjoint(HEAVY)


def test_command_line_help_leaves_heavy_libraries_alone():
    statement = "from mtp_verify.commands.cli import build_parser; build_parser().format_help()"
    assert imported_after(statement).isdisjoint(HEAVY)


def test_verifying_needs_no_heavy_library():
    statement = (
        "import numpy as np, mtp_verify as mv;"
        "mv.verify(mv.Draft.chain([1]), np.zeros((2, 4), np.float32), seed=1, position=0)"
    )
    assert imported_after(statement).isdisjoint(HEAVY)


def test_import_is_free_of_warnings():
    run_python("import mtp_verify", "-W", "error")


def test_every_public_name_is_there():
    names = run_python(
        "import mtp_verify as mv\nprint(*[n for n in mv.__all__ if not hasattr(mv, n)])"
    )
    assert names.split() == []


@pytest.mark.parametrize("flag", ["-O", "-OO"])
def test_guards_survive_optimised_mode(flag):
    code = (
        "import mtp_verify as mv\n"
        "try: mv.TokenTree([-1, 5])\n"
        "except mv.errors.DraftError: print('refused')"
    )
    assert run_python(code, flag).strip() == "refused"
