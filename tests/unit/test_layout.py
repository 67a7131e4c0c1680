"""The package's own order: few rooms, and nothing inside that comes in by the front door."""

import ast
from pathlib import Path

import pytest

import mtp_verify as mv

ROOT = Path(mv.__file__).parent
MARKERS = {"_core.pyi", "py.typed"}  # for tools, not for readers
ROOMS = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
SOURCES = sorted(ROOT.rglob("*.py"))


def test_the_package_has_few_rooms():
    # A folder that was left behind with its caches alone is none.
    entries = {path.name for path in ROOT.iterdir() if path.is_file() or any(path.glob("*.py"))}
    entries -= MARKERS
    entries = {name for name in entries if not name.startswith("_core.")}
    assert entries == {"__init__.py", "__main__.py", "errors.py", *ROOMS}
    assert len(entries) <= 16


def test_the_root_holds_few_names():
    assert len(mv.__all__) <= 30
    assert set(mv.__all__) <= set(dir(mv))


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_each_room_says_what_it_is_for(room):
    tree = ast.parse((ROOT / room / "__init__.py").read_text())
    assert ast.get_docstring(tree)


def test_inside_a_thing_is_imported_from_where_it_is_defined():
    # `__init__` hands out names of all rooms: who imports from it imports all of them.
    front_door = []
    for path in SOURCES:
        if path == ROOT / "__init__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names} & {"mtp_verify"}
            elif isinstance(node, ast.ImportFrom) and node.module == "mtp_verify":
                names = {alias.name for alias in node.names} - ROOMS - {"_core", "errors"}
            else:
                names = set()
            if names:
                front_door.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not front_door


def test_tests_mirror_the_rooms():
    tests = Path(__file__).parent
    folders = {path.name for path in tests.iterdir() if any(path.rglob("test_*.py"))}
    assert folders == ROOMS
