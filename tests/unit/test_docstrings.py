"""What `help` shows: a text and a signature for every public member, shapes for arrays."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import mtp_verify

ROOT = Path(mtp_verify.__file__).parent

PARTS = (
    "",
    ".drafters",
    ".verifier.growers",
    ".verifier.kv",
    ".heads",
    ".verifier.lossy",
    ".integrations.ops",
    ".decoder.planning",
    ".testing.stats",
    ".decoder.constraints",
    ".decoder.decode",
    ".commands.shared.compare",
    ".errors",
    ".verifier.processors",
)


def public() -> dict[str, object]:
    """Every public function and class by its full name."""
    found = {}
    for part in PARTS:
        module = importlib.import_module(f"mtp_verify{part}")
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isroutine(value) or inspect.isclass(value):
                found[f"{module.__name__}.{name}"] = value
    return found


def members(kind: type) -> dict[str, object]:
    """The public methods and properties that a class or one of ours above it defines."""
    found = {}
    for base in kind.__mro__:
        if not base.__module__.startswith("mtp_verify"):
            continue
        for name, value in vars(base).items():
            is_member = callable(value) or isinstance(value, property | classmethod | staticmethod)
            is_member |= inspect.isgetsetdescriptor(value)
            if not name.startswith("_") and is_member and not inspect.isclass(value):
                found.setdefault(name, value)
    return found


PUBLIC = public()
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}


def text_of(value: object) -> str:
    return inspect.getdoc(getattr(value, "__func__", value)) or ""


@pytest.mark.parametrize("name", PUBLIC)
def test_it_has_a_text_of_its_own(name):
    text = inspect.getdoc(PUBLIC[name])
    assert text
    assert len(text.split("\n")[0]) > 10
    assert not text.startswith((f"{name.rpartition('.')[2]}(", "Initialize self"))


@pytest.mark.parametrize("name", CLASSES)
def test_every_member_has_one(name):
    missing = [m for m, value in members(CLASSES[name]).items() if not text_of(value)]
    assert not missing


@pytest.mark.parametrize("name", [n for n in CLASSES if not issubclass(CLASSES[n], Exception)])
def test_every_method_has_a_signature(name):
    kind = CLASSES[name]
    assert inspect.signature(kind)
    for member, value in members(kind).items():
        if callable(getattr(value, "__func__", value)):
            assert inspect.signature(getattr(kind, member)), member


ARRAYS = {
    "Draft": ["tokens"], "TokenTree": ["parents", "depths", "next_token", "next_sibling", "mask"],
    "Verdict": ["tokens", "path", "logprobs"], "CommitPlan": ["moves", "freed"],
    "DraftBatch": ["offsets", "parents", "tokens"], "Reservation": ["slots", "copies"],
    "VerdictBatch": ["tokens", "offsets", "path", "num_accepted", "logprobs"],
    "ReservationBatch": ["slots", "offsets", "copies"],
    "CommitPlanBatch": ["moves", "freed", "lengths", "state_select"],
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_have_their_dtype_and_shape(name):
    (kind,) = {value for path, value in PUBLIC.items() if path.rpartition(".")[2] == name}
    for member in ARRAYS[name]:
        assert re.match(r"(int64|int32|float32|bool) \(.+\)", text_of(vars(kind)[member])), member


def test_help_of_a_draft_says_how_it_is_made():
    text = inspect.getdoc(PUBLIC["mtp_verify.Draft"])
    for part in ("Args:", "probs: float32", "Raises:", "Example:", "swor"):
        assert part in text
    assert "root: The token before them" in inspect.getdoc(PUBLIC["mtp_verify.Draft"].chain)


# What a reader has to guess at; tests/docs/test_site.py holds pages to more.
UNCLEAR = re.compile(
    r"\b(whoever|whosoever|nobody|anybody|somebody|everybody|one's own|ha(s|ve) not (the|a))\b"
    r"|\blikewise\.|\bsee above\.",
    re.IGNORECASE,
)


@pytest.mark.parametrize("room", sorted(path.name for path in ROOT.iterdir() if path.is_dir()))
def test_texts_are_plain(room):
    found = []
    for path in sorted((ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found += [(path.name, match[0]) for match in UNCLEAR.finditer(node.value)]
    assert found == []
