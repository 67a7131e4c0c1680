"""`docs/reference/certified.md` is what its script makes of the committed figures."""

from __future__ import annotations

import json
from pathlib import Path

from mtp_verify.certification import engines
from tests.scripts import load_script

ROOT = Path(__file__).parents[2]
FIGURES = json.loads((ROOT / "docs" / "data" / "certified.json").read_text())


def test_page_is_generated_from_the_figures():
    page = (ROOT / "docs" / "reference" / "certified.md").read_text()
    assert page == load_script("certify_engines").render(FIGURES)


def test_figures_are_of_the_commands_of_the_script():
    commands = load_script("certify_engines").COMMANDS
    assert {name: block["options"] for name, block in FIGURES.items()}.items() == commands.items()


def test_what_is_right_passed_and_what_is_wrong_was_found():
    # Called biased by chance, and looked at again with other seeds; the page says so.
    (again,) = FIGURES["peaked-again"]["found"]
    by_chance = ("peaked", again["engine"])
    verdicts = {
        found["engine"].split(", batches")[0]: found["verdict"]
        for name, block in FIGURES.items()
        for found in block["found"]
        if (name, found["engine"]) != by_chance
    }
    wrong = {"transformers gemma4", "transformers, accept function", "mutant biased"}
    lossy = {f"mtp-verify {mode}" for mode in engines.own.LOSSY}
    for engine, verdict in verdicts.items():
        wanted = "biased" if engine in wrong else "lossy" if engine in lossy else "pass"
        assert verdict == wanted, engine
