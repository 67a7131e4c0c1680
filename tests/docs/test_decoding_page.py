"""`docs/decoding.md` is what its script makes of the stored report."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_page_is_current():
    path = ROOT / "scripts" / "gen_decoding_page.py"
    spec = importlib.util.spec_from_file_location("gen_decoding", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    report = json.loads((ROOT / "docs" / "decoding.json").read_text())
    assert (ROOT / "docs" / "decoding.md").read_text() == module.render(report)
    assert set(report["figures"]) == {"greedy", "sampled"}
    assert {"suffix", "planned", "self"} <= set(report["figures"]["greedy"]["drafters"])
