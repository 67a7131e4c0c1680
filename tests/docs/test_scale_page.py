"""`docs/studies/scale.md` is what its script makes of the stored reports."""

from __future__ import annotations

import json
from pathlib import Path

from tests.scripts import load_script

ROOT = Path(__file__).parents[2]


def test_page_is_current():
    module = load_script("gen_scale_page")
    data = json.loads((ROOT / "docs" / "data" / "scale.json").read_text())
    assert (ROOT / "docs" / "studies" / "scale.md").read_text() == module.render(data)
