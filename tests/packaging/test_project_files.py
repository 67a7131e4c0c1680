"""Facts that stand in more than one file of the project agree."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

from mtp_verify.models import supported

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(name: str) -> set[str]:
    """The distributions named in a requirements file, without versions."""
    lines = (ROOT / name).read_text().splitlines()
    return {re.match(r"[\w.-]+", line)[0].lower() for line in lines if re.match(r"\w", line)}


def test_environment_of_make_covers_the_extras():
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"]
    wanted += [line for name in ("demo", "dev", "testing", "server") for line in extras[name]]
    names = {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in wanted}
    assert names <= requirements("requirements-dev.txt")


def test_environment_of_make_is_pinned():
    assert requirements("requirements-dev.txt") <= requirements("constraints.txt")


def test_pins_name_versions_and_no_places():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.+!-]+", pin)] == []


def test_pinned_versions_run_on_every_python_that_is_declared():
    least = PROJECT["requires-python"].removeprefix(">=") + ".0"
    refused = []
    for name in requirements("constraints.txt"):
        try:
            wanted = metadata.metadata(name).get("Requires-Python", "")
        except metadata.PackageNotFoundError:
            continue  # Another system's.
        if not SpecifierSet(wanted).contains(least):
            refused.append(f"{name}: {wanted}")
    assert refused == []


def ranges(*extras: str) -> dict[str, str]:
    """What pyproject.toml says of each distribution, for example `>=5.16,<5.25`."""
    optional = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + [line for extra in extras for line in optional[extra]]
    return dict(re.fullmatch(r"([\w-]+)(.*)", line).groups() for line in wanted)


def lines_of(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    pairs = [re.fullmatch(r"([\w-]+)([=<>].*)", line) for line in lines if line[:1] not in "# "]
    return dict(pair.groups() for pair in pairs)


def test_an_extra_has_one_range_for_each_library():
    optional = PROJECT["optional-dependencies"]
    for name in ("torch", "transformers"):
        found = {line for lines in optional.values() for line in lines if line.startswith(name)}
        assert found == {name + ranges("hf")[name]}


def test_what_make_compat_installs_is_what_pyproject_declares():
    declared = ranges("hf")
    newest = lines_of("requirements-newest.txt")
    assert newest == {name: declared[name] for name in ("numpy", "transformers")}
    for name, pin in lines_of("requirements-oldest.txt").items():
        first = re.match(r">=([\d.]+),<", declared[name])[1]
        assert pin.startswith(f"=={first}.")
    # The newest torch is the pinned one: the range ends at the minor version behind it.
    pinned = lines_of("constraints.txt")["torch"].removeprefix("==").split(".")
    assert declared["torch"].endswith(f",<{pinned[0]}.{int(pinned[1]) + 1}")


def test_tested_versions_of_transformers_are_those_declared():
    first, last = supported.FIRST, supported.LAST
    assert ranges("hf")["transformers"] == f">={first[0]}.{first[1]},<{last[0]}.{last[1] + 1}"
    page = (ROOT / "docs" / "howto" / "transformers.md").read_text()
    assert f"| transformers {first[0]}.{first[1]}." in page
    assert f"| transformers {last[0]}.{last[1]}." in page


def test_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert PROJECT["dynamic"] == ["version"]


def test_help_lists_every_target_that_people_call():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    described = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert described == set(phony) - {"FORCE"}
