"""How the work is shared out, and what the tables say of it."""

from __future__ import annotations

import dataclasses

import pytest

from mtp_verify.testing.device import backends, proof
from mtp_verify.testing.device.cases import PAIRS


@pytest.fixture
def few(monkeypatch):
    """A list of one case, and of one mistake, of the operators of torch."""
    listed = [task for task in proof.tasks() if task.backend.name == "torch"]
    mutant = next(task for task in listed if task.mutant is not None)
    chosen = [listed[0], listed[1], mutant]
    monkeypatch.setattr(proof, "tasks", lambda: chosen)
    return chosen


def test_every_pair_is_a_task_of_every_backend():
    for backend in backends.BACKENDS:
        own = [task for task in proof.tasks() if task.backend == backend]
        laws = {(task.case.rule, task.case.law) for task in own if task.mutant is None}
        assert laws == (PAIRS.keys() if backend.is_there else set())
        mutants = [task.mutant for task in own if task.mutant is not None]
        assert mutants == list(proof.MUTANTS[backend.name] if backend.is_there else ())


def test_without_its_library_a_backend_has_no_tasks(monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == "triton" else name)
    assert {task.backend.name for task in proof.tasks()} == {"torch"}
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == "torch" else name)
    assert proof.tasks() == []


def test_shares_are_all_of_the_work(few):
    found = proof.work(0, 2) | proof.work(1, 2)
    assert sorted(found) == [0, 1, 2]
    (law,) = proof.lines_of_laws(few, found)
    assert law["backend"] == "torch"
    assert law["cases"] == 2
    assert law["holds"]
    assert law["mistakes"] == []
    assert law["distance"] <= law["bound"]
    (slip,) = proof.lines_of_mutants(few, found)
    assert slip["name"] == few[2].mutant.name
    assert slip["killed"]
    assert slip["answers"] > 0


def test_a_finding_that_does_not_hold_is_in_its_line(few):
    found = {number: proof.find(task) for number, task in enumerate(few)}
    found[1] = dataclasses.replace(found[1], distance=0.1, mistakes=["one"])
    (law,) = proof.lines_of_laws(few, found)
    assert not law["holds"]
    assert law["distance"] == 0.1
    assert law["mistakes"] == ["one"]
