"""The table of drafters is what its script makes of the registry."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_table_is_current():
    path = ROOT / "scripts" / "gen_drafter_docs.py"
    spec = importlib.util.spec_from_file_location("gen_drafters", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (page,) = module.pages()
    assert page.read_text() == module.fill(page.read_text())
