"""The one gate of all hooks: versions, signatures and switches."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

import mtp_verify as mv
from mtp_verify.integrations.gate import ENGINES, Gate

ROOT = Path(__file__).parents[3]
GATE = Gate(
    "Engine", ("engine",), (1, 2), (1, 4), "accept", "p, q", "MTP_VERIFY_ENGINE", ("block",)
)


def accept(p, q):
    """What the engine ships."""


@pytest.mark.parametrize(
    ("version", "known"),
    [
        ("1.2", True),
        ("1.2.0", True),
        ("1.4.17", True),
        ("1.3.0.post2", True),
        ("1.3.0+cpu", True),
        ("1.1.9", False),
        ("1.5.0", False),
        ("2.3.0", False),
        ("1", False),
        ("1.4.0rc1", False),
        ("1.3.0.dev4+g1234", False),
        ("main", False),
        ("", False),
    ],
)
def test_releases_between_first_and_last_are_known(version, known):
    assert GATE.knows(version) is known


def test_a_patch_release_counts_where_it_is_named():
    exact = dataclasses.replace(GATE, first=(0, 5, 23), last=(0, 5, 23))
    assert [exact.knows(version) for version in ("0.5.23", "0.5.23.post1", "0.5.24", "0.5")] == [
        True,
        True,
        False,
        False,
    ]
    assert (exact.supported, GATE.supported) == ("0.5.23", "1.2 to 1.4")


def test_the_known_engine_passes():
    GATE.check("1.3.0", {"accept": accept})


@pytest.mark.parametrize(
    ("version", "function", "message"),
    [
        (
            "1.5.0",
            accept,
            r"Engine 1\.5\.0 is not supported \(supported: 1\.2 to 1\.4\); it ",
        ),
        ("1.3.0", lambda p: p, r"accept: found \(p\), wanted \(p, q\); it was left as it is"),
        ("1.3.0", None, "accept: found no such function, wanted"),
    ],
)
def test_another_engine_is_refused(version, function, message):
    with pytest.raises(mv.errors.UnsupportedModelError, match=message) as caught:
        GATE.check(version, {"accept": function})
    assert caught.value.slug == "unsupported_version"


def test_each_function_is_compared_with_its_own_signatures():
    gate = dataclasses.replace(GATE, others=(("draw", "p", "p, q"), ("shape", "p, q, r")))
    gate.check("1.3.0", {"accept": accept, "draw": lambda p: p})  # The last one is not replaced.
    gate.check("1.3.0", {"draw": lambda p, q: p, "shape": lambda p, q, r: p})
    wanted = r"draw: found \(q\), wanted \(p\) or \(p, q\)"
    with pytest.raises(mv.errors.UnsupportedModelError, match=wanted):
        gate.check("1.3.0", {"accept": accept, "draw": lambda q: q})
    with pytest.raises(mv.errors.UnsupportedModelError, match="shape: found no such function"):
        gate.check("1.3.0", {"draw": lambda p: p, "shape": None})


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(None, None), ("", None), ("0", None), (" 1 ", "auto"), ("block", "block")],
)
def test_the_switch_is_off_unless_it_is_set(monkeypatch, value, wanted):
    monkeypatch.delenv(GATE.variable, raising=False)
    if value is not None:
        monkeypatch.setenv(GATE.variable, value)
    assert GATE.switch() == wanted


def test_another_value_of_the_switch_is_refused(monkeypatch):
    monkeypatch.setenv(GATE.variable, "yes")
    with pytest.raises(mv.errors.ParamsError, match="found 'yes', wanted one of: 0, 1, block"):
        GATE.switch()


def test_every_engine_with_a_switch_has_an_entry_point():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {
        point.removeprefix("mtp_verify.integrations.")
        for group, points in project["entry-points"].items()
        for point in points.values()
        if group != "pytest11"
    }
    assert named == {f"{name}:register" for name, gate in ENGINES.items() if gate.variable}


def test_vllm_takes_every_rule_that_is_legal_for_chains():
    legal = {row["name"] for row in mv.rules() if "chain" in row["laws"]}
    assert set(ENGINES["vllm"].choices) == legal - {"greedy"}
