"""Facts that stand in more than one file of the project agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(name: str) -> set[str]:
    """The distributions named in a requirements file, without versions."""
    lines = (ROOT / name).read_text().splitlines()
    return {re.match(r"[\w.-]+", line)[0].lower() for line in lines if re.match(r"\w", line)}


def test_environment_of_make_covers_the_extras():
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + extras["demo"] + extras["dev"] + extras["testing"]
    names = {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in wanted}
    assert names <= requirements("requirements-dev.txt")


def test_environment_of_make_is_pinned():
    assert requirements("requirements-dev.txt") <= requirements("constraints.txt")


def test_pins_name_versions_and_no_places():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.+!-]+", pin)] == []


def test_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert PROJECT["dynamic"] == ["version"]


def test_help_lists_every_target_that_people_call():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    described = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert described == set(phony) - {"FORCE"}
