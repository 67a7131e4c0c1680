"""Build a release as it would be published, and check all of it; `make release-check` runs this.

    .venv/bin/python scripts/release_check.py --out build/release/dist --tools BIN [--tag v0.1.0]

Builds from what is committed: `git archive` of HEAD, the README's links made absolute, an sdist of
that, and a wheel from the sdist. Each check says what it found; the exit code is 1 if one failed.
What is then in `--out` is what may be uploaded.

The address of the repository comes from `Repository` under `[project.urls]`, or from
`--repository` for a trial.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from email.parser import BytesHeaderParser
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))

import gen_third_party
import readme_links

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

ROOT = Path(__file__).parents[1]
NAME = "mtp_verify"
# What a wheel has beside the package's own files, under its .dist-info.
INFO = {
    "METADATA", "WHEEL", "RECORD", "entry_points.txt",
    "licenses/LICENSE", "licenses/THIRD-PARTY.md",
}  # fmt: skip
EXTENSION = f"{NAME}/_core.abi3.so"
LATER = ("3.12", "3.13", "3.14")  # minor versions of Python that are tried where they are installed


class CheckError(Exception):
    """A check failed; says what was found and what was wanted."""


# ---- what is committed -------------------------------------------------------------------------


def check_tree(status: str) -> str:
    """Nothing but what is committed, from `git status --porcelain`."""
    if status:
        msg = f"found changes that are not committed, wanted none:\n{status.rstrip()}"
        raise CheckError(msg)
    return "no changes"


def check_version(texts: dict[str, str], tags: Sequence[str]) -> str:
    """One version in all files, and in the tag if there is one.

    Args:
        texts: By name, Cargo.toml, Cargo.lock, CITATION.cff and CHANGELOG.md.
        tags: That this release is to have.

    Returns:
        The version.
    """
    version: str = tomllib.loads(texts["Cargo.toml"])["package"]["version"]
    locked = {p["name"]: p["version"] for p in tomllib.loads(texts["Cargo.lock"])["package"]}
    cited = re.search(r"^version: (\S+)$", texts["CITATION.cff"], re.MULTILINE)
    found = {
        "Cargo.lock": locked.get(NAME),
        "CITATION.cff": cited and cited[1],
        "CHANGELOG.md": next(iter(releases(texts["CHANGELOG.md"])), (None, ""))[0],
        **{f"the tag {tag}": tag.removeprefix("v") for tag in tags},
    }
    wrong = [f"{place} has {other}" for place, other in found.items() if other != version]
    if wrong:
        msg = f"found {version} in Cargo.toml, and {', '.join(wrong)}; wanted one version"
        raise CheckError(msg)
    return version


def releases(changelog: str) -> list[tuple[str, str]]:
    """Versions and dates of a changelog's sections, the newest first."""
    return re.findall(r"^## \[(\d[^\]]*)\] - (\S+)$", changelog, re.MULTILINE)


def check_changelog(changelog: str, citation: str) -> str:
    """An empty section of what is to come, then this release with its date.

    Returns:
        The date.
    """
    headings = re.findall(r"^## (.+)$", changelog, re.MULTILINE)
    if headings[:1] != ["[Unreleased]"]:
        msg = f"found {headings[:1]} first, wanted ## [Unreleased]"
        raise CheckError(msg)
    coming = changelog.split("## [Unreleased]", 1)[1].split("\n## ", 1)[0].strip()
    if coming:
        msg = f"found entries under [Unreleased], wanted them under the release: {coming[:80]!r}"
        raise CheckError(msg)
    found = releases(changelog)
    if len(headings) < 2 or not found or headings[1] != f"[{found[0][0]}] - {found[0][1]}":
        msg = f"found ## {headings[1:2]}, wanted ## [version] - year-month-day"
        raise CheckError(msg)
    date = found[0][1]
    try:
        datetime.date.fromisoformat(date)
    except ValueError:
        msg = f"found the date {date}, wanted year-month-day"
        raise CheckError(msg) from None
    if f"date-released: {date}\n" not in citation:
        msg = f"found no `date-released: {date}` in CITATION.cff, wanted the changelog's date"
        raise CheckError(msg)
    return date


def check_readme(text: str, address: str | None) -> str:
    """Links that lead somewhere from PyPI, too."""
    links = readme_links.relative(text)
    if links and not address:
        msg = (
            f"found {len(links)} links relative to the repository (the first: {links[0]}), which "
            "lead nowhere on PyPI; wanted its address: set Repository under [project.urls] in "
            "pyproject.toml, or for a trial make release-check REPOSITORY_URL=https://..."
        )
        raise CheckError(msg)
    return f"{len(links)} links made absolute" if links else "all links are absolute"


def check_licences(page: str) -> str:
    """`THIRD-PARTY.md` names what is linked."""
    if page != gen_third_party.render(gen_third_party.metadata()):
        msg = "found THIRD-PARTY.md out of date, wanted: python scripts/gen_third_party.py"
        raise CheckError(msg)
    return f"{len(re.findall(r'^[|] [a-z]', page, re.MULTILINE)) - 1} crates, as locked"


# ---- what was built ----------------------------------------------------------------------------


def check_names(names: Iterable[str], sources: Iterable[str], version: str) -> str:
    """The wheel holds the package's files, the compiled module, its metadata, and nothing else.

    Args:
        names: Of the wheel's files.
        sources: Of the files under `python/` of the sdist, `mtp_verify/...`.
        version: Of the release.
    """
    info = f"{NAME}-{version}.dist-info/"
    wanted = {*sources, EXTENSION, *(info + name for name in INFO)}
    found = set(names)
    if found != wanted:
        more, less = sorted(found - wanted), sorted(wanted - found)
        msg = f"found more: {more[:5]}, and missing: {less[:5]} (of {len(wanted)} files)"
        raise CheckError(msg)
    return f"{len(found)} files, none more and none missing"


def check_tag(wheel: str) -> str:
    """One wheel for all versions of Python from 3.11 on, on any Linux that is not too old."""
    tag = re.fullmatch(rf"{NAME}-[^-]+-(cp311-abi3)-(manylinux_2_\d+_\w+)\.whl", wheel)
    if tag is None:
        msg = f"found {wheel}, wanted the tags cp311-abi3-manylinux_2_*"
        raise CheckError(msg)
    return f"{tag[1]}, {tag[2]}"


def check_metadata(metadata: bytes, version: str) -> str:
    """Version, licences and a README whose links are absolute."""
    headers = BytesHeaderParser().parsebytes(metadata)
    if headers["Version"] != version:
        msg = f"found version {headers['Version']}, wanted {version}"
        raise CheckError(msg)
    body = metadata.decode().split("\n\n", 1)[1]
    if links := readme_links.relative(body):
        msg = f"found {len(links)} relative links in the description, wanted none: {links[0]}"
        raise CheckError(msg)
    if not headers.get_all("Project-URL"):
        msg = "found no Project-URL, wanted the repository's"
        raise CheckError(msg)
    return f"{len(headers.get_all('Classifier', []))} classifiers, {headers['License-Expression']}"


def check_paths(files: Iterable[tuple[str, bytes]], places: Sequence[str]) -> str:
    """No file names a folder of the machine that built it."""
    for name, content in files:
        for place in places:
            if place.encode() in content:
                msg = f"found {place} in {name}, wanted no folder of this machine"
                raise CheckError(msg)
    return "no folder of this machine is named"


# ---- running it all ----------------------------------------------------------------------------


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Run a command and return what it printed.

    Raises:
        CheckError: It failed; says what it printed.
    """
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= environment
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        shown = " ".join(Path(str(part)).name for part in command[:4])
        msg = f"{shown} ...: exit code {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}"
        raise CheckError(msg)
    return re.sub(r"\x1b\[[\d;]*m", "", done.stdout)  # twine paints, whoever reads.


class Checks:
    """Checks one after the other, each with a line of what was found."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def run(self, name: str, check: Callable[[], str]) -> str | None:
        """Do one, and say what came of it."""
        try:
            found = check()
        except (CheckError, ValueError) as error:
            self.failed.append(name)
            print(f"FAILED  {name}: {error}", flush=True)
            return None
        print(f"ok      {name}: {found}", flush=True)
        return found


def stage(folder: Path, address: str | None, version: str) -> None:
    """Lay out HEAD with a README for PyPI and the repository's address in the metadata."""
    archive = folder.with_suffix(".tar")
    run("git", "archive", "--format=tar", "-o", archive, "HEAD")
    folder.mkdir()
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    if not address:
        return
    readme = folder / "README.md"
    readme.write_text(readme_links.absolute(readme.read_text(), address, f"v{version}"))
    project = folder / "pyproject.toml"
    if "[project.urls]" not in project.read_text():
        urls = f'\n[project.urls]\nRepository = "{address}"\n'
        project.write_text(
            project.read_text().replace("\n[project.scripts]", urls + "\n[project.scripts]")
        )


def build(work: Path, source: Path, out: Path, maturin: str) -> tuple[Path, Path, Path]:
    """An sdist, its files, and a wheel made of them."""
    shutil.rmtree(out, ignore_errors=True)
    run(maturin, "sdist", "--out", out, cwd=source)
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        tar.extractall(work / "sdist", filter="data")
    (unpacked,) = (work / "sdist").iterdir()
    cargo = os.environ.get("CARGO_HOME", str(Path.home() / ".cargo"))
    remapped = f"--remap-path-prefix={cargo}=/cargo --remap-path-prefix={unpacked}=/source"
    run(
        maturin, "build", "--release", "--locked", "--out", out,
        "--target-dir", ROOT / "target" / "release-check",
        cwd=unpacked, RUSTFLAGS=remapped,
    )  # fmt: skip
    (wheel,) = out.glob("*.whl")
    return sdist, unpacked, wheel


def smoke(python: str, wheel: Path, work: Path, version: str) -> str:
    """Install the wheel beside NumPy alone in a fresh environment, and verify a draft there."""
    folder = Path(tempfile.mkdtemp(dir=work))
    run(python, "-m", "venv", folder)
    inside = folder / "bin" / "python"
    run(inside, "-m", "pip", "install", "--quiet", wheel)
    run(inside, "-m", "pip", "check")
    said = run(inside, "-I", ROOT / "scripts" / "smoke.py", cwd=folder)
    command = run(folder / "bin" / "mtp-verify", "--version", cwd=folder).split()
    if command != ["mtp-verify", version]:
        msg = f"found {command} from mtp-verify --version, wanted {version}"
        raise CheckError(msg)
    return said.split(",")[0].strip()


def pythons(own: str) -> dict[str, str]:
    """Interpreters to try the wheel with: this one, and later ones that run."""
    found = {f"{sys.version_info.major}.{sys.version_info.minor}": own}
    listed = {path.name: path for path in Path.home().glob(".pyenv/versions/3.*/bin/python3.*")}
    for minor in LATER:
        name = f"python{minor}"
        for command in filter(None, (shutil.which(name), str(listed.get(name, "")))):
            says = subprocess.run([command, "-c", "import venv"], capture_output=True, check=False)
            if says.returncode == 0:
                found[minor] = command
                break
    return found


def declared(project: dict[str, Any]) -> set[str]:
    """The minor versions of Python that the classifiers name."""
    lines = project["classifiers"]
    return {m[1] for line in lines if (m := re.search(r"Python :: (3\.\d+)$", line))}


def main() -> int:
    """Do all checks; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="where sdist and wheel go")
    parser.add_argument("--tools", type=Path, required=True, help="folder of twine and auditwheel")
    parser.add_argument("--tag", default="", help="that the release is to have")
    parser.add_argument("--repository", default="", help="its address, for a trial")
    args = parser.parse_args()
    checks = Checks()
    names = ("Cargo.toml", "Cargo.lock", "CITATION.cff", "CHANGELOG.md")
    texts = {name: (ROOT / name).read_text() for name in names}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    address = args.repository or project.get("urls", {}).get("Repository")
    tags = [args.tag] if args.tag else run("git", "tag", "--points-at", "HEAD").split()
    checks.run("clean tree", lambda: check_tree(run("git", "status", "--porcelain")))
    version = checks.run("one version", lambda: check_version(texts, tags))
    checks.run("changelog", lambda: check_changelog(texts["CHANGELOG.md"], texts["CITATION.cff"]))
    checks.run("README", lambda: check_readme((ROOT / "README.md").read_text(), address))
    checks.run("licences", lambda: check_licences((ROOT / "THIRD-PARTY.md").read_text()))
    if version is None:
        return 1
    out = args.out.resolve()
    with tempfile.TemporaryDirectory(prefix="mtp-verify-") as name:
        check_build(checks, Path(name), out, version, address, args.tools.resolve(), project)
    if checks.failed:
        print(f"\nnot ready: {', '.join(checks.failed)}")
        return 1
    print(f"\nready: {NAME} {version}; what may be uploaded is in {args.out}")
    return 0


def check_build(
    checks: Checks,
    work: Path,
    out: Path,
    version: str,
    address: str | None,
    tools: Path,
    project: dict[str, Any],
) -> None:
    """Build, and check what came of it."""
    source = work / "source"
    maturin = str(Path(sys.executable).parent / "maturin")
    made: list[Path] = []

    def make() -> str:
        stage(source, address, version)
        made.extend(build(work, source, out, maturin))
        return ", ".join(path.name for path in sorted(out.iterdir()))

    if checks.run("sdist, and a wheel of it", make) is None:
        return
    sdist, unpacked, wheel = made
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    with tarfile.open(sdist) as tar:
        packed = {
            member.name: extracted.read()
            for member in tar.getmembers()
            if member.isfile() and (extracted := tar.extractfile(member)) is not None
        }
    sources = [
        str(PurePosixPath(path.relative_to(unpacked / "python")))
        for path in (unpacked / "python").rglob("*")
        if path.is_file()
    ]
    places = [f"{path}/" for path in (Path.home(), ROOT, work)]
    info = f"{NAME}-{version}.dist-info/METADATA"
    checks.run("files of the wheel", lambda: check_names(files, sources, version))
    checks.run("tags", lambda: check_tag(wheel.name))
    checks.run("metadata", lambda: check_metadata(files[info], version))
    checks.run("folders", lambda: check_paths([*files.items(), *packed.items()], places))
    checks.run("twine", lambda: run(tools / "twine", "check", "--strict", sdist, wheel).split()[-1])
    checks.run("auditwheel", lambda: _consistent(run(tools / "auditwheel", "show", wheel)))
    checks.run("abi3audit", lambda: _last(run(tools / "abi3audit", "--strict", "--summary", wheel)))
    found = pythons(str(Path(sys.executable)))
    for minor, python in found.items():
        checks.run(f"Python {minor}", partial(smoke, python, wheel, work, version))
    checks.run("classifiers", lambda: _tried(declared(project), set(found)))


def _consistent(said: str) -> str:
    tag = re.search(r'"(manylinux_2_\d+_\w+)"', said)
    if tag is None:
        msg = f"found no manylinux tag that it keeps: {said[-300:]}"
        raise CheckError(msg)
    return f"consistent with {tag[1]}"


def _last(said: str) -> str:
    return said.strip().splitlines()[-1] if said.strip() else "no violations"


def _tried(named: set[str], found: set[str]) -> str:
    if named - found:
        msg = f"found classifiers for {sorted(named - found)}, which were not tried here"
        raise CheckError(msg)
    return f"{', '.join(sorted(named))}: all tried"


if __name__ == "__main__":
    sys.exit(main())
