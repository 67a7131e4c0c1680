"""`docs/explanation/architecture.md` names the modules and packages that exist, each once."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "architecture.md").read_text()


def named(heading: str) -> list[str]:
    """The names in the first column of a section's table."""
    section = PAGE.split(f"## {heading}")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


def rooms(folder: Path, suffix: str) -> list[str]:
    """Folders with sources, and the files beside them."""
    found = [path for path in folder.iterdir() if path.is_dir() and any(path.glob(f"*{suffix}"))]
    return [path.name for path in found] + [path.stem for path in folder.glob(f"*{suffix}")]


def test_rust_modules_are_those_of_the_core():
    assert sorted(named("Rust modules")) == sorted(set(rooms(ROOT / "src", ".rs")) - {"lib"})


def test_python_packages_are_those_of_the_package():
    found = set(rooms(ROOT / "python" / "mtp_verify", ".py")) - {"__init__", "__main__"}
    assert sorted(named("Python packages")) == sorted(found)
