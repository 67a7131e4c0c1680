"""CONTRIBUTING's recipe for a rule: five files, and everything else derives from them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Built once and kept: what the rule does not change is not compiled again.
TARGET = ROOT / "build" / "recipes"

CORE = """\
//! The target's own token, whatever was drafted.
//!
//! # Why it is lossless
//! Nothing that was drafted is looked at.

use crate::chance::{Choices, Purpose, Site};
use crate::error::Result;
use crate::number::Weight;
use crate::verify::law::Draft;
use crate::verify::view::{Mix, Outcome, View};

pub(crate) fn decide<W: Weight, V: View<W>, C: Choices<W>>(
    _draft: &Draft,
    view: &mut V,
    choices: &mut C,
) -> Result<Outcome> {
    let mix = Mix::target();
    let mut cells = view.mixture(0, &mix)?;
    let token = choices.draw(Site::new(0, Purpose::Sample), &mut cells)?;
    Ok(Outcome { tokens: vec![token], ..Outcome::default() })
}
"""
ENTRY = """\
    Rule {
        name: "root_only",
        core: Core::RootOnly,
        laws: &[Law::Chain, Law::Iid, Law::Swor],
        shapes: "any tree",
        source: "nobody's",
    },
"""
VARIANT = "    /// The target's own token.\n    RootOnly,\n"
ARM = "        Core::RootOnly => root_only::decide(draft, view, choices),\n"
TWIN = '''\
def _root_only(tree: Tree, noise: Noise) -> tuple[int, int]:
    """Draw from the target's first row."""
    return 0, noise.draw(0, tree.target[0])


'''
TEST = """\
import numpy as np

import mtp_verify as mv
from mtp_verify.verifier import reference


def test_it_is_its_twin():
    rows = np.full((3, 2), 0.5, np.float32)
    draft = mv.Draft.chain([1, 0], probs=rows)
    tree = reference.Tree([-1, 0, 1], [-1, 1, 0], rows, rows, [False, True, True], "chain")
    for seed in range(50):
        found = mv.verify(draft, np.log(rows), rule="root_only", seed=seed, position=3)
        wanted = reference.verify(tree, rule="root_only", seed=seed, position=3)
        assert (found.tokens.tolist(), found.rule) == (wanted.tokens, "root_only")
        assert found.num_accepted == 0
"""
TABLE = "src/verify/rules/mod.rs"
# file -> (before which text, what is written)
RECIPE = {
    "src/verify/rules/root_only.rs": [(None, CORE)],
    TABLE: [
        ("mod target_only;", "mod root_only;\n"),
        ("    /// The best of several independent paths", VARIANT),
        ('            Self::Gbv => "gbv"', '            Self::RootOnly => "root_only",\n'),
        ('    Rule {\n        name: "kseq"', ENTRY),
        ("        Core::Gbv => gbv::", ARM),
    ],
    "python/mtp_verify/verifier/words.py": [('"kseq", "gbv", ', '"root_only", ')],
    "python/mtp_verify/verifier/reference.py": [
        ("def _topdown(", TWIN), ('"kseq": _kseq', '"root_only": _root_only, '),
    ],
    "tests/property/test_root_only.py": [(None, TEST)],
}  # fmt: skip


def follow(recipe, folder):
    """Write what a recipe says into a copy of the sources."""
    for name, parts in recipe.items():
        path = folder / name
        text = path.read_text() if path.exists() else ""
        for before, new in parts:
            assert before is None or text.count(before) == 1, f"{name}: {before!r}"
            text = new if before is None else text.replace(before, new + before)
        path.write_text(text)


def run(folder, *words, **settings):
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(folder / "python")} | settings,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A copy of the sources with the toy rule in it, built with the prover."""
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not installed")
    folder = tmp_path_factory.mktemp("toy")
    for name in ("src", "python", "tests", "scripts", "docs"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("Cargo.toml", "Cargo.lock", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    follow(RECIPE, folder)
    build = ("cargo", "build", "--profile", "prove", "--features", "python,proof", "--locked")
    run(folder, *build, CARGO_TARGET_DIR=str(TARGET), PYO3_PYTHON=sys.executable)
    library = TARGET / "prove" / "libmtp_verify.so"
    shutil.copy(library, folder / "python" / "mtp_verify" / "_core.abi3.so")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_rule_needs_five_files_and_everything_else_follows(toy):
    assert len(RECIPE) == 5
    record = json.loads(run(toy, sys.executable, "-c", (
        "import json, mtp_verify as mv;"
        "print(json.dumps([r for r in mv.rules() if r['name'] == 'root_only'][0]))"
    )))  # fmt: skip
    assert (record["core"], record["laws"]) == ("root_only", ["chain", "iid", "swor"])
    # Its own test, and those that compare the table with the words of the types.
    run(
        toy, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0",
        "tests/property/test_root_only.py", "tests/unit/verifier/test_words.py",
    )  # fmt: skip
    # The proof's table.
    lines = json.loads(run(toy, sys.executable, "-c", (
        "import json; from mtp_verify import _core;"
        "print(json.dumps([r for r in _core.prove_rules() if r['rule'] == 'root_only']))"
    )))  # fmt: skip
    assert [line["law"] for line in lines] == ["chain", "iid", "swor"]
    assert all(line["distance"] == "0" and line["holds"] and line["cases"] for line in lines)
    # The table of the documentation, and the command line.
    run(toy, sys.executable, "scripts/gen_rule_docs.py")
    pages = [path.read_text() for path in (toy / "docs").rglob("rules.md")]
    assert any("| `root_only` | `root_only` | `chain`, `iid`, `swor` |" in page for page in pages)
    assert "root_only" in run(toy, sys.executable, "-m", "mtp_verify", "generate", "--help")
