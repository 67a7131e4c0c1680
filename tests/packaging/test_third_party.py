"""`THIRD-PARTY.md` names what the wheel links, with the versions that are locked."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "THIRD-PARTY.md"
ROWS = re.findall(r"^\| ([\w-]+) \| ([\w.+-]+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)[1:]


@pytest.fixture
def script():
    path = ROOT / "scripts" / "gen_third_party.py"
    spec = importlib.util.spec_from_file_location("gen_third_party", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_versions_are_those_locked():
    locked = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    assert len(ROWS) > 15
    assert {(name, version) for name, version, _ in ROWS} <= {
        (package["name"], package["version"]) for package in locked
    }


def test_direct_dependencies_are_there():
    manifest = tomllib.loads((ROOT / "Cargo.toml").read_text())
    named = {name for name, _, _ in ROWS}
    of_the_proof = {name.removeprefix("dep:") for name in manifest["features"]["proof"]}
    # A crate of macros alone is none of the linked ones, but each of these has code.
    assert set(manifest["dependencies"]) - of_the_proof <= named
    assert of_the_proof - {"num-traits"} <= set(manifest["dependencies"]) - named


def test_page_is_current(script):
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not installed")
    try:
        found = script.metadata()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cargo has not fetched the crates: {error.stderr[-200:]}")
    assert PAGE.read_text() == script.render(found)


def package(folder, name, licence, kind="lib", **more):
    (folder / name).mkdir(exist_ok=True)
    manifest = str(folder / name / "Cargo.toml")
    return {
        "id": name, "name": name, "version": "1.0.0", "license": licence,
        "manifest_path": manifest, "targets": [{"kind": [kind]}], **more,
    }  # fmt: skip


def graph(*packages):
    """The first is the root, and needs all others."""
    needs = [
        {"pkg": item["id"], "dep_kinds": [{"kind": item.get("needed_for")}]}
        for item in packages[1:]
    ]
    nodes = [{"id": item["id"], "deps": []} for item in packages]
    nodes[0]["deps"] = needs
    return {"packages": packages, "resolve": {"root": packages[0]["id"], "nodes": nodes}}


def test_what_only_builds_is_left_out_and_texts_are_carried(script, tmp_path):
    root = package(tmp_path, "mtp_verify", "Apache-2.0")
    macro = package(tmp_path, "macro", "MIT", "proc-macro")
    builder = package(tmp_path, "builder", "MIT", needed_for="build")
    free = package(tmp_path, "free", "MIT/Apache-2.0")
    other = package(tmp_path, "other", "BSD-2-Clause")
    with pytest.raises(ValueError, match="other: found no LICENSE file"):
        script.render(graph(root, macro, builder, free, other))
    (tmp_path / "other" / "LICENSE").write_text("do as you like\n")
    page = script.render(graph(root, macro, builder, free, other))
    assert "| free | 1.0.0 | MIT OR Apache-2.0 |\n| other | 1.0.0 | BSD-2-Clause |" in page
    assert "do as you like" in page
    assert "macro" not in page.split("|---|---|---|")[1]
    assert "builder" not in page


def test_notices_and_missing_licences_are_refused(script, tmp_path):
    root = package(tmp_path, "mtp_verify", "Apache-2.0")
    with pytest.raises(ValueError, match="bare: found no licence"):
        script.render(graph(root, package(tmp_path, "bare", None)))
    noted = package(tmp_path, "noted", "Apache-2.0")
    (tmp_path / "noted" / "NOTICE").write_text("by me\n")
    with pytest.raises(ValueError, match="noted: has a NOTICE file"):
        script.render(graph(root, noted))
