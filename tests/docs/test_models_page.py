"""`docs/reference/models.md` is what its script makes of the stored report, without a fault."""

from __future__ import annotations

import json
from pathlib import Path

from tests.scripts import load_script
from tests.zoo import FAMILIES

ROOT = Path(__file__).parents[2]
REPORT = json.loads((ROOT / "docs" / "data" / "models.json").read_text())


def test_page_is_current():
    module = load_script("gen_models_page")
    assert (ROOT / "docs" / "reference" / "models.md").read_text() == module.render(REPORT)


def test_what_is_allowed_was_exact():
    assert list(REPORT["families"]) == list(FAMILIES)
    for name, found in REPORT["families"].items():
        assert "wrong" not in (found["chains"], found["trees"], found["batches"]), name
        assert found["plain"] in (True, None), name
