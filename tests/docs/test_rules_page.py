"""`docs/reference/rules.md` is what its script makes of this build."""

from __future__ import annotations

from pathlib import Path

from tests.scripts import load_script

ROOT = Path(__file__).parents[2]


def test_page_is_current():
    module = load_script("gen_rule_docs")
    assert (ROOT / "docs" / "reference" / "rules.md").read_text() == module.render()
