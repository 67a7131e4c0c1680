"""CONTRIBUTING's recipe for a command: its file, its line, its test."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.recipes.test_rule import follow, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]

COMMAND = '''\
"""`mtp-verify greet`: says hello."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtp_verify.commands.command import Command, positive
from mtp_verify.console.report import Report

if TYPE_CHECKING:
    import argparse

__all__ = ["COMMAND", "add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--times", type=positive, default=1, help="how often")


def run(args: argparse.Namespace) -> Report:
    """Say hello."""
    return Report("greet", data={"times": args.times}, summary="hello " * args.times)


COMMAND = Command("greet", "Say hello.", "mtp-verify greet --times 2", add_arguments, run)
'''
TEST = """\
from mtp_verify.commands import cli


def test_it_greets(capsys):
    assert cli.main(["greet", "--times", "2"]) == 0
    assert capsys.readouterr().out.count("hello") == 2
"""
RECIPE = {
    "python/mtp_verify/commands/greet.py": [(None, COMMAND)],
    "python/mtp_verify/commands/registry.py": [('    "inspect",\n', '    "greet",\n')],
    "tests/unit/commands/test_greet.py": [(None, TEST)],
}


def test_a_command_needs_three_files_and_everything_else_follows(tmp_path):
    for name in ("python", "tests/unit/commands"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    follow(RECIPE, tmp_path)
    run(
        tmp_path, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0",
        "tests/unit/commands/test_greet.py", "tests/unit/commands/test_registry.py",
    )  # fmt: skip
    module = (sys.executable, "-m", "mtp_verify")
    assert "Say hello." in run(tmp_path, *module, "--help")
    document = json.loads(run(tmp_path, *module, "greet", "--times", "3", "--json"))
    assert document == {"command": "greet", "status": "ok", "times": 3}
