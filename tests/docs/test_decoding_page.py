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
