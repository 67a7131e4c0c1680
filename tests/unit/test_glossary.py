"""No public identifier contains a word that the glossary retires.

The table "Retired words" of `docs/explanation/glossary.md` is read here. Looked at are the names in
the `__all__` of every public module, their public methods, attributes and arguments, the names of
`_core`, and the commands and options of the command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from mtp_verify import _core
from mtp_verify.commands import cli
from tests.scripts import load_script

if TYPE_CHECKING:
    from collections.abc import Iterator

GLOSSARY = Path(__file__).parents[2] / "docs" / "explanation" / "glossary.md"
TABLE = re.compile(r"<!-- retired: .*?-->\n(.*?)<!-- end -->", re.DOTALL)
LINE = re.compile(r"^\| (`.*?`) \| (.*?) \| .* \|$", re.MULTILINE)
# The word is the field's own here: full name -> why.
EXCEPTIONS: dict[str, str] = {}


@dataclasses.dataclass(frozen=True)
class Retired:
    """A retired word, and the modules in which it is (all, if there are none)."""

    word: str
    modules: tuple[str, ...]

    def is_in(self, name: str) -> bool:
        """Whether a full name contains the word where it is retired."""
        if self.modules and not name.startswith(tuple(f"{module}." for module in self.modules)):
            return False
        return {self.word, f"{self.word}s"} & set(words(name.rpartition(".")[2])) != set()


def words(identifier: str) -> list[str]:
    """The words of an identifier: of snake_case, CamelCase or --an-option."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", identifier)]


def retired(text: str) -> list[Retired]:
    found = []
    for cell, scope in LINE.findall(TABLE.search(text)[1]):
        if "`" in scope:
            modules = tuple(re.findall(r"`([\w.]+)`", scope))
        else:
            assert scope == "everywhere", scope
            modules = ()
        found += [Retired(word, modules) for word in re.findall(r"`(\w+)`", cell)]
    return found


def of_value(path: str, value: Any, depth: int = 2) -> Iterator[str]:
    """The full names of an object, its public parts and its arguments."""
    yield path
    if isinstance(value, ModuleType) or depth == 0:
        return
    if inspect.isclass(value) or inspect.isroutine(value):
        try:
            arguments = inspect.signature(value).parameters
        except (TypeError, ValueError):  # of C, without a signature
            arguments = {}
        yield from (f"{path}({name}).{name}" for name in arguments)
    if inspect.isclass(value):
        names = {name for name in vars(value) if not name.startswith("_")}
        names |= {name for name in getattr(value, "__annotations__", {}) if name[0] != "_"}
        for name in sorted(names):
            part = vars(value).get(name)
            part = part.__func__ if isinstance(part, (classmethod, staticmethod)) else part
            yield from of_value(f"{path}.{name}", part, depth - 1)


def of_commands(parser: argparse.ArgumentParser, path: str = "mtp-verify") -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield f"{path}.{name}"
                yield from of_commands(child, f"{path} {name}")
        else:
            yield from (f"{path}.{option}" for option in action.option_strings or [action.dest])


def public_names() -> list[str]:
    names: list[str] = []
    for path, entries in load_script("build_site").entries().items():
        for name, value in entries:
            names += of_value(f"{path}.{name}", value)
    for name, value in vars(_core).items():
        if not name.startswith("__"):
            names += of_value(f"mtp_verify._core.{name}", value)
    return [*names, *of_commands(cli.build_parser())]


WORDS = retired(GLOSSARY.read_text())
NAMES = public_names()


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word.word)
def test_no_public_name_has_a_retired_word(word):
    assert sorted(name for name in NAMES if word.is_in(name) and name not in EXCEPTIONS) == []


def test_every_exception_is_needed():
    needed = {name for name in NAMES for word in WORDS if word.is_in(name)}
    assert set(EXCEPTIONS) - needed == set()


def test_the_table_and_the_names_are_read():
    assert {word.word for word in WORDS} >= {"round", "lie", "row", "msg"}
    found = set(NAMES)
    wanted = {
        "mtp_verify.verify",
        "mtp_verify.verify(seed).seed",
        "mtp_verify.Draft.chain(probs).probs",
        "mtp_verify.SamplingParams.top_k",
        "mtp_verify.drafters.Suffix(min_match).min_match",
        "mtp_verify._core.rules",
        "mtp-verify certify.--min-tv",
    }
    assert wanted - found == set()


def test_a_name_with_a_retired_word_is_found():
    everywhere, scoped = Retired("round", ()), Retired("row", ("mtp_verify.decoder",))
    assert everywhere.is_in("mtp_verify.run_rounds")
    assert not everywhere.is_in("mtp_verify.rounds.around")
    assert everywhere.is_in("mtp_verify.Decoder.round_of")
    assert everywhere.is_in("mtp_verify.x(last_round).last_round")
    assert everywhere.is_in("mtp-verify bench.--per-round")
    assert scoped.is_in("mtp_verify.decoder.Rows")
    assert not scoped.is_in("mtp_verify.testing.rows")
    assert words("BatchTableTarget") == ["batch", "table", "target"]
    assert words("KVCache") == ["kv", "cache"]
