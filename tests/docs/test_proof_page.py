"""`docs/proof.md` is what its script makes of the committed certificate, which is current."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from mtp_verify import _core

ROOT = Path(__file__).parents[2]
CERTIFICATE = json.loads((ROOT / "docs" / "proof.json").read_text())


def generator():
    spec = importlib.util.spec_from_file_location("gen", ROOT / "scripts" / "gen_proof_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_generated_from_the_certificate():
    assert (ROOT / "docs" / "proof.md").read_text() == generator().render(CERTIFICATE)


def test_certificate_lists_the_lies_of_this_build():
    assert CERTIFICATE["lies"] == _core.lies()


def test_certificate_lists_the_mutants_of_the_sources():
    text = (ROOT / "src" / "certify" / "mutants" / "list.rs").read_text()
    names = re.findall(r'"([a-z]+/\w+)"', text)
    assert [mutant["name"] for mutant in CERTIFICATE["mutants"]] == names
    assert all(mutant["killed"] for mutant in CERTIFICATE["mutants"])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_certificate_has_the_lines_of_this_build():
    keys = ("rule", "law", "cases", "rounds", "branches", "distance")
    found = [[row[key] for key in keys] for row in _core.certify()]
    assert [[row[key] for key in keys] for row in CERTIFICATE["rows"]] == found
