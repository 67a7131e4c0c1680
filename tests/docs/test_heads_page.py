"""`docs/heads.md` and its picture are what their script makes of the records of this build."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from mtp_verify.heads import family

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    path = ROOT / "scripts" / "gen_heads_docs.py"
    spec = importlib.util.spec_from_file_location("gen_heads", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_is_current(script):
    text = (ROOT / "docs" / "heads.md").read_text()
    assert script.page(text) == text


def test_picture_is_current(script):
    drawn = script.picture(family("deepseek_v3"), family("eagle"))
    assert (ROOT / "docs" / "img" / "heads.svg").read_text() == drawn


def test_picture_shows_where_the_two_differ(script):
    # The same four norms that the test of equal logits leaves out.
    left, right = family("deepseek_v3"), family("eagle")
    parts = ("embed_norm", "hidden_norm", "input_norm", "output_norm")
    drawn = script.picture(left, right)
    assert drawn.count('class="one"') == drawn.count('class="gone"') == 4
    turned = left.replace(**dict.fromkeys(parts, False))
    same = script.picture(turned, right)
    assert 'class="one"' not in same
