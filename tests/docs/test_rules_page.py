"""`docs/reference/rules.md` is what its script makes of this build."""

from __future__ import annotations

import json
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


def test_what_the_page_says_of_independent_drafts_is_so():
    data = json.loads((ROOT / "docs" / "data" / "rules.json").read_text())
    others, cold = set(), []
    for line in data["lengths"]:
        means = {rule: found["mean"] for rule, found in line["iid"].items()}
        selected = means.pop("global_resolution")
        others |= set(means)
        assert selected > max(means.values())  # of the same drafts
        error = line["iid"]["global_resolution"]["error"]
        assert "best" not in line or abs(selected - line["best"]) < 4 * error
        beside = [line["swor"]["traversal"]["mean"], line["top_plus_one"]["lifted_hu"]["mean"]]
        if line["temperature"] == 1:
            assert selected > max(beside)
        else:
            cold.append(selected > max(beside))
    assert others == {"specinfer", "traversal", "kseq", "gbv"}
    assert not all(cold)
