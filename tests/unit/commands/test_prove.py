from __future__ import annotations

import json

import pytest

from mtp_verify import _core
from mtp_verify.commands import cli, prove


def run_prove(capsys, *words: str) -> tuple[int, str]:
    code = cli.main(["prove", *words])
    return code, capsys.readouterr().out


def line(**changes):
    made = {
        "rule": "token",
        "law": "chain",
        "cases": 1,
        "steps": 2,
        "generated": 3,
        "branches": 12_345,
        "distance": "0",
        "f64_difference": 1e-16,
        "holds": True,
    }
    return made | changes


def floats(**changes):
    made = {
        "format": "f32 / f32 logits",
        "level": "scalar",
        "cases": 2_101,
        "branches": 58_532,
        "decisions": 4.4e-16,
        "decisions_bound": 1e-12,
        "worst": "gbv on iid[3, 1], A, plain",
        "target_rows": 1.3e-8,
        "target_bound": 3e-7,
        "drafter_rows": 1.5e-8,
        "drafter_bound": 3e-7,
        "whole": 0.046,
        "whole_bound": 2.7e-6,
        "holds": True,
    }
    return made | changes


def draws(**changes):
    made = {
        "format": "bf16 / f16 probabilities",
        "level": "scalar",
        "draws": 119,
        "distance": 5.5e-17,
        "draw_bound": 3 / 2**53,
        "exact": 0.0,
        "acceptances": 97,
        "difference": 1.1e-16,
        "accept_bound": 2 / 2**53,
        "holds": True,
    }
    return made | changes


def device(**changes):
    made = {
        "backend": "torch",
        "rule": "traversal",
        "law": "swor",
        "cases": 17,
        "drafts": 300,
        "cells": 4_000,
        "asked": 23_456,
        "distance": 3.9e-16,
        "left_out": 1.5e-17,
        "bound": 1e-12,
        "mistakes": [],
        "holds": True,
    }
    return made | changes


def field(**changes):
    made = {
        "rule": "some_rule",
        "source": "arXiv 0000.00000",
        "claimed_lossless": True,
        "lossless": True,
        "law": "chain",
        "cases": [
            {
                "case": "B [1, 1]",
                "distance": "0",
                "expected": "887/324",
                "shipped": [("specinfer", "67/27"), ("gbv", "287/108")],
            },
            {"case": "B, in steps", "distance": "0", "expected": "", "shipped": []},
        ],
        "distance": "0",
        "generated": 120,
        "generated_biased": 0,
        "branches": 3_591,
        "tried": 14_880,
        "counterexample": None,
        "holds": True,
    }
    return made | changes


REFUTED = {
    "rule": "some_refuted_rule",
    "lossless": False,
    "distance": "1/36",
    "generated_biased": 24,
    "tried": 160,
    "counterexample": {
        "target": [["2/3", "1/3"]],
        "drafter": [["1/3", "2/3"]],
        "shape": [1, 1],
        "tokens": [[0, 1, 0]],
        "emitted": "2/9",
        "wanted": "4/27",
        "distance": "1/9",
    },
}


def slip(**changes):
    made = {
        "backend": "torch",
        "name": "lift/some_slip",
        "change": "a line of rounds",
        "case": "chain 1-1, alike",
        "distance": 0.1,
        "answers": 18,
        "killed": True,
    }
    return made | changes


def mutant(**changes):
    made = {
        "name": "td/some_mistake",
        "group": "rules",
        "change": "accept q/p",
        "case": "B chain",
        "stated": "19/54",
        "distance": "19/54",
        "killed": True,
    }
    return made | changes


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_proves_every_pair_of_rule_and_law(capsys):
    code, out = run_prove(capsys, "--json")
    assert code == 0
    document = json.loads(out)
    assert document["rows"]
    assert {row["distance"] for row in document["rows"]} == {"0"}
    assert min(row["steps"] for row in document["rows"]) > 0
    assert max(row["f64_difference"] for row in document["rows"]) <= 1e-14
    levels = _core.build_info()["simd_available"]
    for table in ("floats", "draws"):
        assert [line["level"] for line in document[table]] == levels * 9
        assert all(line["holds"] for line in document[table])
    for line in document["floats"]:
        assert line["decisions"] <= line["decisions_bound"] == 1e-12
        assert line["target_rows"] <= line["target_bound"] == 3e-7
        assert line["drafter_rows"] <= line["drafter_bound"]
        assert 0 < line["whole"] <= 1


@pytest.fixture
def core(monkeypatch):
    """A core with one line in each table, all of them right; a test replaces what it is about."""
    tables = {
        "prove_rules": [line()],
        "prove_floats": [floats()],
        "prove_draws": [draws()],
        "prove_field": [field(), field(**REFUTED)],
        "misdeclared": [mutant(name="law/some_draft")],
        "mutants": [mutant(), mutant(name="float/some_mistake", group="float")],
    }
    for name in tables:
        monkeypatch.setattr(_core, name, lambda name=name: tables[name], raising=False)
    tables["device"] = ([device()], [slip()])
    monkeypatch.setattr(prove, "_device_tables", lambda: tables["device"])
    # Here, where the core is replaced.
    monkeypatch.setattr(prove, "_core_tables", prove._enumerate)
    return tables


@pytest.mark.parametrize(("distance", "code"), [("0", 0), ("1/9", 1)])
def test_it_exits_with_1_when_a_pair_fails(capsys, core, distance, code):
    core["prove_rules"] = [line(distance=distance, holds=distance == "0")]
    found, out = run_prove(capsys)
    assert found == code
    assert distance in out
    assert "12,345" in out
    assert ("FAILED" in out) == bool(code)


def test_floating_point_is_shown_beside_its_bounds(core):
    report = prove.run(None)
    assert report.exit_code == 0
    text = report.to_text()
    shown = ["4.4e-16 / 1e-12", "1.3e-08 / 3e-07", "1.5e-08 / 3e-07", "4.6%"]
    assert all(cell in text for cell in shown)
    assert "5.5e-17 / 3.3e-16" in text
    assert "1.1e-16 / 2.2e-16" in text
    assert "every distance of 1 pairs of format" in report.summary
    assert report.data["floats"] == core["prove_floats"]
    assert report.data["draws"] == core["prove_draws"]


@pytest.mark.parametrize(
    ("table", "wrong", "named"),
    [
        (
            "prove_floats",
            floats(level="avx2", decisions=2e-12, holds=False),
            "f32 / f32 logits, avx2 (gbv on iid[3, 1], A, plain)",
        ),
        ("prove_floats", floats(target_rows=float("nan"), holds=False), "f32 / f32 logits"),
        ("prove_draws", draws(exact=1.1e-16, holds=False), "bf16 / f16 probabilities, scalar"),
    ],
)
def test_a_distance_beyond_its_bound_fails_and_is_named(capsys, core, table, wrong, named):
    core[table].append(wrong)
    report = prove.run(None)
    assert report.exit_code == 1
    assert "FAILED: 1 of 3 lines of floating point" in report.summary
    assert named in report.summary
    code, out = run_prove(capsys, "--json")
    assert code == 1
    assert json.loads(out)["status"] == "failed"


def test_a_mutant_that_survives_fails_and_is_named(core):
    core["mutants"].append(mutant(name="td/survivor", distance="0", killed=False))
    report = prove.run(None)
    assert report.exit_code == 1
    assert "td/survivor" in report.summary
    assert "not compiled in" not in report.to_text()


def test_steps_on_a_device_are_shown_beside_their_bounds(core):
    core["device"][0].append(device(backend="triton", asked=777))
    core["device"][1].append(slip(backend="triton", name="rows/other_slip"))
    report = prove.run(None)
    text = report.to_text()
    shown = ["23,456", "3.9e-16 / 1e-12", "1.5e-17 / 1e-12", "some_slip", "777", "other_slip"]
    assert all(cell in text for cell in shown)
    for backend in ("torch", "triton"):
        assert f"steps on a device in {backend}, by their numbers" in text
        assert f"mistakes in the source of steps on a device in {backend}" in text
        wanted = f"steps on a device in {backend}: every distance of 1 pairs is within its bound"
        assert wanted in report.summary
    assert report.data["device"] == core["device"][0]
    assert report.data["device_mistakes"] == core["device"][1]


def test_a_device_that_is_unlike_or_a_slip_that_survives_fails_and_is_named(core):
    core["device"] = ([device(), device(rule="hu", holds=False)], [slip()])
    report = prove.run(None)
    assert report.exit_code == 1
    assert "FAILED: 1 of 2 pairs on a device in torch: hu on swor" in report.summary
    core["device"] = ([device()], [slip(killed=False)])
    report = prove.run(None)
    assert report.exit_code == 1
    assert "lift/some_slip (torch)" in report.summary


def test_rules_of_the_field_are_shown_with_their_counterexamples(core):
    report = prove.run(None)
    assert report.exit_code == 0
    text = report.to_text()
    shown = "p (2/3, 1/3); q (1/3, 2/3); [1, 1]: 0 1 0 with 2/9, not 4/27"
    assert all(cell in text for cell in [shown, "1/36", "14,880", "biased"])
    assert all(cell in text for cell in ["887/324", "specinfer 67/27, gbv 287/108"])
    assert "in steps" not in text.partition("mean lengths")[2].partition("mutants")[0]
    assert "2 rules of the field: 1 without a distance, 1 refuted" in report.summary
    assert report.data["field"] == core["prove_field"]


def test_a_rule_of_the_field_that_is_not_as_stated_fails_and_is_named(core):
    core["prove_field"].append(field(rule="a_surprise", lossless=False, holds=False))
    report = prove.run(None)
    assert report.exit_code == 1
    assert "FAILED: 1 of 3 rules of the field differ: a_surprise" in report.summary


def test_what_is_not_installed_is_not_run_and_named(core, monkeypatch):
    report = prove.run(None)
    assert report.exit_code == 0
    assert "steps on a device in triton: not run: triton is not installed" in report.summary
    monkeypatch.undo()
    monkeypatch.setattr(prove, "find_spec", lambda name: None)
    assert prove._device_tables() == ([], [])
    assert prove._about_device("triton", []).endswith("not run: torch is not installed")


def test_devices_are_enumerated_by_as_many_processes_as_there_are_cores(monkeypatch):
    asked = []
    monkeypatch.setattr(prove.os, "cpu_count", lambda: 3)
    monkeypatch.setattr(prove, "_in_workers", lambda work, shares: asked.extend(shares) or [])
    monkeypatch.setattr(prove, "_lines_of", lambda found: found)
    assert prove._device_tables() == {}
    assert asked == [(0, 3), (1, 3), (2, 3)]


def give(*numbers):
    return sum(numbers)


def refuse(message):
    raise ValueError(message)


def test_work_is_done_in_processes_of_its_own():
    assert prove._in_workers(give, [(1, 2), (3,)]) == [3, 3]


def test_an_error_in_a_process_is_raised_here():
    with pytest.raises(ValueError, match="no such thing"):
        prove._in_workers(refuse, [("no such thing",)])


def test_mutants_are_counted_by_what_they_are_in(core):
    assert prove.run(None).data["mutant_groups"] == {"rules": 1, "float": 1}


def test_a_build_without_mutants_says_so(core):
    core["mutants"] = None
    report = prove.run(None)
    assert report.exit_code == 0
    assert report.data["mutants"] == "not compiled in"
    assert report.data["mutant_groups"] == {}
    assert "mutants are not compiled in" in report.summary


def test_a_build_without_the_proof_says_how_to_get_it(capsys, monkeypatch):
    monkeypatch.delattr(_core, "prove_rules", raising=False)
    code, out = run_prove(capsys, "--json")
    assert code == 2
    error = json.loads(out)["error"]
    assert error["type"] == "ImportError"
    assert "run `make prove` in a checkout" in error["message"]


def test_draws_of_every_format_are_within_their_bounds():
    lines = _core.prove_draws()
    levels = _core.build_info()["simd_available"]
    assert [line["level"] for line in lines] == levels * 9
    assert len({line["format"] for line in lines}) == 9
    assert all(line["holds"] and line["draws"] and line["acceptances"] for line in lines)


def test_every_misdeclared_draft_is_found():
    found = _core.misdeclared()
    assert len(found) >= 13
    assert all(trial["killed"] and trial["distance"] != "0" for trial in found)
