"""`docs/models.md` is what its script makes of the stored report, and nothing in it is wrong."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from tests.zoo import FAMILIES

ROOT = Path(__file__).parents[2]
REPORT = json.loads((ROOT / "docs" / "models.json").read_text())


def test_page_is_current():
    path = ROOT / "scripts" / "gen_models_page.py"
    spec = importlib.util.spec_from_file_location("gen_models", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "models.md").read_text() == module.render(REPORT)


def test_what_is_allowed_was_exact():
    assert list(REPORT["families"]) == list(FAMILIES)
    for name, found in REPORT["families"].items():
        assert "wrong" not in (found["chains"], found["trees"], found["batches"]), name
        assert found["plain"] in (True, None), name
