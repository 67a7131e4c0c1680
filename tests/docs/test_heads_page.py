"""`docs/howto/heads.md` and its picture are what their script makes of the records."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtp_verify.heads import family
from tests.scripts import load_script

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    return load_script("gen_heads_docs")


def test_table_is_current(script):
    text = (ROOT / "docs" / "howto" / "heads.md").read_text()
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
