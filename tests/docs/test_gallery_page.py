"""`docs/reference/gallery.md` is what its script makes of the committed figures."""

from __future__ import annotations

import json
from pathlib import Path

from mtp_verify.testing import gallery
from tests.scripts import load_script

DOCS = Path(__file__).parents[2] / "docs"
FIGURES, TWO = (
    json.loads((DOCS / "data" / f"{name}.json").read_text()) for name in ("gallery", "two_sample")
)


def test_page_is_generated_from_the_figures():
    page = (DOCS / "reference" / "gallery.md").read_text()
    assert page == load_script("gen_gallery_page").render(FIGURES, TWO)


def test_every_fault_was_found_and_every_mended_engine_passed():
    assert FIGURES.keys() == gallery.FAULTS.keys()
    for name, found in FIGURES.items():
        assert found["fixed"] == "pass", name
        assert found.get("found", 5) == 5, name


def test_the_figures_of_two_samplers_hold_what_the_docs_promise():
    assert TWO["biased"]["verdict"] == "biased"
    assert TWO["power"]["found"] == TWO["power"]["runs"] == 5
    assert TWO["right"]["verdict"] == "pass"
    assert (TWO["false_alarms"]["runs"], TWO["false_alarms"]["alpha"]) == (200, 0.01)
    assert TWO["false_alarms"]["alarms"] <= 7
