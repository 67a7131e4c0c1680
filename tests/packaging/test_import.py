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


def test_import_adds_the_verifier_and_the_standard_library():
    # A list of modules and not a time: measured, it is some 15 ms beside 75 ms of NumPy.
    added = imported_after("import mtp_verify") - imported_after("import numpy")
    ours = {name for name in added if name.split(".")[0] == "mtp_verify"}
    rooms = {name.split(".")[1] for name in ours if "." in name}
    assert rooms == {"_core", "errors", "verifier"}
    roots = {name.split(".")[0] for name in added - ours}
    assert roots <= sys.stdlib_module_names | {"numpy"}


def test_the_command_line_adds_no_library_at_all():
    added = imported_after("import mtp_verify.commands.registry") - imported_after("import numpy")
    roots = {name.split(".")[0] for name in added} - {"__mp_main__"}  # of multiprocessing
    assert roots <= sys.stdlib_module_names | {"numpy", "mtp_verify"}
    assert "asyncio" not in roots  # which unittest.mock brings along


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
