"""The recipes of CONTRIBUTING name files that exist, and those that `tests/recipes` follows."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
RECIPES = sorted(
    path.stem
    for path in (ROOT / "tests" / "recipes").glob("test_*.py")
    if "\nRECIPE = {" in path.read_text()
)


def files(heading: str) -> list[str]:
    """The files in the first column of a recipe's table."""
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?`.*?) \|", section, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


HEADINGS = re.findall(r"^## (Adding an? .+)$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("heading", HEADINGS)
def test_files_of_a_recipe_exist(heading):
    named = files(heading)
    assert len(named) >= 3
    # Of what is to be written, the folder.
    there = [name.rpartition("/")[0] if "NAME" in name else name for name in named]
    assert [name for name in there if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("module", RECIPES)
def test_recipes_that_are_followed_are_those_written_down(module):
    recipe = import_module(f"tests.recipes.{module}").RECIPE
    (heading,) = (h for h in HEADINGS if module.removeprefix("test_").replace("_", " ") in h)
    new = {name for name in recipe if not (ROOT / name).exists()}
    stems = {Path(name).stem.removeprefix("test_") for name in new}
    written = {re.sub("|".join(sorted(stems)), "NAME", name) for name in recipe}
    assert written == set(files(heading))
