from __future__ import annotations

import json

import pytest

from mtp_verify import _core, cli, proof


def certify(capsys, *words: str) -> tuple[int, str]:
    code = cli.main(["certify", "--self", *words])
    return code, capsys.readouterr().out


def line(**changes):
    made = {
        "rule": "token",
        "law": "chain",
        "cases": 1,
        "rounds": 2,
        "generated": 3,
        "branches": 12_345,
        "distance": "0",
        "f64_difference": 1e-16,
        "holds": True,
    }
    return made | changes


def mutant(**changes):
    made = {
        "name": "td/some_mistake",
        "change": "accept q/p",
        "case": "B chain",
        "stated": "19/54",
        "distance": "19/54",
        "killed": True,
    }
    return made | changes


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_certify_proves_every_pair_of_rule_and_law(capsys):
    code, out = certify(capsys, "--json")
    assert code == 0
    document = json.loads(out)
    assert document["rows"]
    assert {row["distance"] for row in document["rows"]} == {"0"}
    assert min(row["rounds"] for row in document["rows"]) > 0
    assert max(row["f64_difference"] for row in document["rows"]) <= 1e-14


@pytest.mark.parametrize(("distance", "code"), [("0", 0), ("1/9", 1)])
def test_certify_exits_with_1_when_a_pair_fails(capsys, monkeypatch, distance, code):
    row = line(distance=distance, holds=distance == "0")
    monkeypatch.setattr(_core, "certify", lambda: [row])
    found, out = certify(capsys)
    assert found == code
    assert distance in out
    assert "12,345" in out
    assert ("FAILED" in out) == bool(code)


def test_a_mutant_that_survives_fails_and_is_named(monkeypatch):
    monkeypatch.setattr(_core, "certify", lambda: [line()])
    alive = mutant(name="td/survivor", distance="0", killed=False)
    monkeypatch.setattr(_core, "mutants", lambda: [mutant(), alive])
    report = proof.run()
    assert report.exit_code == 1
    assert "td/survivor" in report.summary
    assert "not compiled in" not in report.to_text()


def test_a_build_without_mutants_says_so(monkeypatch):
    monkeypatch.setattr(_core, "certify", lambda: [line()])
    monkeypatch.setattr(_core, "mutants", lambda: None)
    report = proof.run()
    assert report.exit_code == 0
    assert report.data["mutants"] == "not compiled in"
    assert "mutants are not compiled in" in report.summary


def test_every_lie_is_found():
    lies = _core.lies()
    assert len(lies) >= 13
    assert all(lie["killed"] and lie["distance"] != "0" for lie in lies)
