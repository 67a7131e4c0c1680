"""`docs/reference/decoding.md` is what its script makes of the stored report."""

from __future__ import annotations

import json
from pathlib import Path

from tests.scripts import load_script

ROOT = Path(__file__).parents[2]


def test_page_is_current():
    module = load_script("gen_decoding_page")
    report = json.loads((ROOT / "docs" / "data" / "decoding.json").read_text())
    assert (ROOT / "docs" / "reference" / "decoding.md").read_text() == module.render(report)
    assert set(report["figures"]) == {"greedy", "sampled"}
    assert {"suffix", "planned", "self"} <= set(report["figures"]["greedy"]["drafters"])


def test_page_shows_the_drafters_at_equal_places():
    module = load_script("gen_decoding_page")
    report = json.loads((ROOT / "docs" / "data" / "decoding.json").read_text())
    report["draws"] = 3
    for found in report["figures"].values():
        for entry in found["drafters"].values():
            entry["first_level"] = entry["tau"]
        found["paired"] = {
            name: {"tau": entry["tau"], "ahead": entry["tau"], "num_places": 70, "drafted": 4.25}
            for name, entry in found["drafters"].items()
            if name in ("head", "head tree")
        }
    page = module.render(report)
    assert page.count("| tau at equal places | head | head tree |\n") == 2
    assert page.count("| all, ahead of head |  | ") == 2
    assert page.count("at the same 70 places of the plain texts") == 2
    assert page.count("| accepted at the first level | ngram | ") == 2
