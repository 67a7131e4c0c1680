"""`docs/scale.md` is what its script makes of the stored reports."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_page_is_current():
    path = ROOT / "scripts" / "gen_scale_page.py"
    spec = importlib.util.spec_from_file_location("gen_scale", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    data = json.loads((ROOT / "docs" / "scale.json").read_text())
    assert (ROOT / "docs" / "scale.md").read_text() == module.render(data)
