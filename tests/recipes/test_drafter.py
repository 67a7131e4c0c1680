"""CONTRIBUTING's recipe for a drafter: its file, an entry of the registry, a section of a page."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mtp_verify as mv
from mtp_verify import drafters
from mtp_verify.commands.shared.entrants import CHAINS, ENTRANTS, TREES

ROOT = Path(mv.__file__).parent
SCRIPT = Path(__file__).parents[2] / "scripts" / "gen_drafter_docs.py"

TOY = '''
from mtp_verify._core import Draft
from mtp_verify.drafters.base import Drafter


class Toy(Drafter):
    """Drafts the last token again."""

    laws = ("deterministic",)

    def __init__(self, num_tokens=1):
        self.num_tokens = num_tokens

    def propose(self, requests, budgets):
        return [
            Draft.chain(request.tokens[-1:] * min(self.num_tokens, budget))
            for request, budget in zip(requests, budgets, strict=True)
        ]
'''
ENTRY = """
    "Toy": Entry("toy", "the last token", "text", name="toy", settings={"num_tokens": 3}),
"""
# What is written into each file.
RECIPE = {
    "python/mtp_verify/drafters/toy.py": TOY,
    "python/mtp_verify/drafters/__init__.py": ENTRY,
    "docs/howto/drafters.md": "",  # its section
}
# What is listed, as JSON: names, an object, and the docs table.
LISTS = f"""
import json, runpy
import mtp_verify as mv
from mtp_verify.commands.shared.entrants import CHAINS, ENTRANTS, TREES
table = runpy.run_path({str(SCRIPT)!r})["render"]()
drafter = CHAINS["toy"].make(None)
print(json.dumps([mv.__file__, mv.drafters.__all__, list(CHAINS), list(TREES), list(ENTRANTS),
                  type(drafter).__name__, drafter.num_tokens, table]))
"""


@pytest.fixture(scope="module")
def with_toy(tmp_path_factory):
    """A copy of the package with a toy drafter: one new file, and one entry."""
    folder = tmp_path_factory.mktemp("copy")
    package = folder / "mtp_verify"
    shutil.copytree(
        ROOT, package, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.safetensors")
    )
    for library in ROOT.glob("_core*.so"):
        (package / library.name).symlink_to(library)
    (package / "drafters" / "toy.py").write_text(TOY)
    registry = package / "drafters" / "__init__.py"
    text = registry.read_text()
    registry.write_text(text.replace("REGISTRY = {\n", f"REGISTRY = {{{ENTRY}", 1))
    return folder


def run(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_an_entry_puts_a_drafter_into_every_list(with_toy):
    file, exports, chains, trees, entrants, kind, num_tokens, table = json.loads(
        run(with_toy, "-c", LISTS)
    )
    assert Path(file).parent == with_toy / "mtp_verify"
    assert "Toy" in exports
    assert "toy" in chains
    assert "toy" in trees
    assert "toy" in entrants
    assert (kind, num_tokens) == ("Toy", 3)
    assert "| `Toy` | the last token | the text alone | `toy` |\n" in table


@pytest.mark.parametrize("command", ["demo", "generate", "view", "bench decode"])
def test_an_entry_is_a_choice_of_the_command_line(with_toy, command):
    assert "toy" in run(with_toy, "-m", "mtp_verify", *command.split(), "--help")


def test_the_command_line_runs_it(with_toy):
    options = ("--tiny", "--drafter", "toy", "--max-new-tokens", "4", "--json")
    made = json.loads(run(with_toy, "-m", "mtp_verify", "view", "aaaa", *options))
    assert made["drafter"] == "toy"
    assert any(len(step["tokens"]) == 4 for step in made["steps"])


def test_every_entry_names_a_drafter():
    for kind, entry in drafters.REGISTRY.items():
        made = getattr(drafters, kind)
        assert issubclass(made, mv.Drafter)
        assert made.__module__ == f"mtp_verify.drafters.{entry.module}"
    named = {entry.name for entry in drafters.REGISTRY.values()} - {None}
    for names in (CHAINS, TREES, ENTRANTS):
        assert named <= set(names)


def test_every_drafter_of_the_package_is_in_the_registry():
    files = {path.stem for path in (ROOT / "drafters").glob("*.py")}
    others = {"__init__", "base", "growing", "registry", "sketch", "states", "store",
              "translation"}  # fmt: skip
    assert {entry.module for entry in drafters.REGISTRY.values()} == files - others
