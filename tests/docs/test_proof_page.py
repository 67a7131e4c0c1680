"""`docs/reference/proof.md` is what its script makes of the committed proof, which is current."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mtp_verify import _core
from mtp_verify.testing.device import proof
from mtp_verify.testing.device.cases import PAIRS
from tests.scripts import load_script

ROOT = Path(__file__).parents[2]
CERTIFICATE = json.loads((ROOT / "docs" / "data" / "proof.json").read_text())


def test_page_is_generated_from_the_certificate():
    page = (ROOT / "docs" / "reference" / "proof.md").read_text()
    assert page == load_script("gen_proof_docs").render(CERTIFICATE)


def test_certificate_lists_the_misdeclared_drafts_of_this_build():
    assert CERTIFICATE["misdeclared"] == _core.misdeclared()


@pytest.mark.parametrize(("group", "file"), [("rules", "list.rs"), ("float", "float.rs")])
def test_certificate_lists_the_mutants_of_the_sources(group, file):
    text = (ROOT / "src" / "proof" / "mutants" / file).read_text()
    names = re.findall(r'"([a-z]+/\w+)"', text)
    mutants = [mutant for mutant in CERTIFICATE["mutants"] if mutant["group"] == group]
    assert [mutant["name"] for mutant in mutants] == names
    assert len(names) == CERTIFICATE["mutant_groups"][group] >= 25
    assert all(mutant["killed"] for mutant in mutants)


def test_certificate_has_every_format_within_bounds_of_this_build():
    lines = _core.prove_draws()
    bounds = ("format", "draw_bound", "accept_bound")
    formats = {tuple(line[key] for key in bounds) for line in lines}
    assert {tuple(line[key] for key in bounds) for line in CERTIFICATE["draws"]} == formats
    for table in ("floats", "draws"):
        assert {line["format"] for line in CERTIFICATE[table]} == {line["format"] for line in lines}
        levels = {line["level"] for line in CERTIFICATE[table]}
        assert len(CERTIFICATE[table]) == len(levels) * 9
        assert all(line["holds"] for line in CERTIFICATE[table])


def test_certificate_has_every_pair_and_mistake_of_both_sources_on_a_device():
    lines, slips = CERTIFICATE["device"], CERTIFICATE["device_mistakes"]
    for backend, mutants in proof.MUTANTS.items():
        own = [line for line in lines if line["backend"] == backend]
        assert [(line["rule"], line["law"]) for line in own] == list(PAIRS)
        assert all(line["holds"] and line["asked"] for line in own)
        names = [slip["name"] for slip in slips if slip["backend"] == backend]
        assert names == [mutant.name for mutant in mutants]
    assert all(slip["killed"] for slip in slips)


def test_a_page_of_a_doctored_certificate_says_that_a_bound_is_broken():
    line = CERTIFICATE["floats"][0]
    wrong = CERTIFICATE | {"floats": [line | {"decisions": 1e-3, "holds": False}]}
    page = load_script("gen_proof_docs").render(wrong)
    assert f"NOT within their bounds: ['{line['format']}, {line['level']}']" in page
    assert "NOT within" not in load_script("gen_proof_docs").render(CERTIFICATE)


def test_readme_has_the_figures_of_the_certificate():
    rows = CERTIFICATE["rows"]
    cases = sum(row["cases"] + row["steps"] + row["generated"] for row in rows)
    branches = sum(row["branches"] for row in rows) / 1e6
    floats = sum(line["cases"] for line in CERTIFICATE["floats"])
    mistakes = len(CERTIFICATE["misdeclared"]) + len(CERTIFICATE["mutants"])
    readme = " ".join((ROOT / "README.md").read_text().split())
    counted = f"{cases:,} cases, about {branches:.1f} million branches"
    assert f"{len(rows)} pairs of rule and law, {counted}" in readme
    assert f"{floats:,} cases" in readme
    assert f"finds all {mistakes} mistakes" in readme
    in_rows = CERTIFICATE["mutant_groups"]["float"]
    assert f"{in_rows} of them in the code between a tensor and a token" in readme


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_certificate_has_the_lines_of_this_build():
    keys = ("rule", "law", "cases", "steps", "branches", "distance")
    found = [[row[key] for key in keys] for row in _core.prove_rules()]
    assert [[row[key] for key in keys] for row in CERTIFICATE["rows"]] == found
