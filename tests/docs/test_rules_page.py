"""`docs/reference/rules.md` is what its script makes of this build."""

from __future__ import annotations

import re
from pathlib import Path

import mtp_verify as mv
from tests.scripts import load_script

ROOT = Path(__file__).parents[2]


def test_page_is_current():
    module = load_script("gen_rule_docs")
    assert (ROOT / "docs" / "reference" / "rules.md").read_text() == module.render()


def test_rules_that_are_explained_are_rules_that_exist():
    page = (ROOT / "docs" / "explanation" / "how-speculation-works.md").read_text()
    section = page.split("## The rules in one line each")[1].split("\n## ")[0]
    named = re.findall(r"^\| `(\w+)`", section, re.MULTILINE)
    assert len(named) >= 12
    assert set(named) <= {row["name"] for row in mv.rules()}
