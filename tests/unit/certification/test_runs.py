"""The calls of a certification under a limit of time, on a clock that moves with the engine."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from mtp_verify.certification import blackbox, certify, runs
from mtp_verify.commands import certify as command
from mtp_verify.commands import cli
from mtp_verify.testing import mutants


class Slow:
    """A right engine of which each string takes time; it notes how many it was asked for."""

    def __init__(self, monkeypatch, seconds):
        self.engine, self.seconds, self.now, self.counts = mutants.engine(), seconds, 0.0, []
        self.rows, self.params = self.engine.rows, self.engine.params
        clock = SimpleNamespace(monotonic=lambda: self.now)
        for module in (blackbox, runs):
            monkeypatch.setattr(module, "time", clock)

    def __call__(self, prompt, n, seed):
        self.now += n * self.seconds
        self.counts.append(n)
        return self.engine(prompt, n, seed)


@pytest.mark.parametrize("seconds", [0.01, 0.1, 1.0])
def test_the_time_holds_whatever_a_string_takes(monkeypatch, seconds):
    engine = Slow(monkeypatch, seconds)
    found = certify(engine, min_tv=0.02, max_seconds=60)
    assert found.verdict == "not enough data"
    assert engine.now <= 60
    # Equally many of each prompt, and all of them if whole rounds fit.
    assert len({tally.num_samples for tally in found.tallies}) == 1
    assert (found.num_samples > 0) == (seconds < 1.0)


def test_fast_engines_get_large_calls(monkeypatch):
    engine = Slow(monkeypatch, 1e-5)
    found = certify(engine, min_tv=0.05, max_seconds=600)
    assert found.verdict == "pass"
    assert sorted(set(engine.counts)) == [4, 16, 32, 64, 90]


def test_without_a_limit_all_calls_are_of_one_size(monkeypatch):
    engine = Slow(monkeypatch, 1.0)
    certify(engine, min_tv=0.1)
    assert len(set(engine.counts[2:])) == 1


def test_the_modes_of_a_command_share_its_seconds(monkeypatch, capsys):
    now, given = [0.0], []

    def fake(plan, resume, max_seconds):
        given.append(max_seconds)
        now[0] += 10.0 if plan.mode == "a" else max_seconds
        return certify(mutants.engine(), min_tv=0.1, max_seconds=0.0)

    monkeypatch.setattr(command, "_certify", fake)
    monkeypatch.setattr(command, "monotonic", lambda: now[0])
    monkeypatch.setattr(cli, "time", SimpleNamespace(monotonic=lambda: now[0]))
    modes = ("--mode", "a", "--mode", "b", "--mode", "c")
    words = ["certify", "--engine", "mutants", *modes, "--max-seconds", "90", "--json"]
    assert cli.main(words) == 2
    assert json.loads(capsys.readouterr().out)["status"] == "not_enough_data"
    assert given == [30.0, 40.0, 40.0]


@pytest.mark.parametrize("words", [["--max-seconds", "5"], ["--resume", "x"], ["--mode", "x"]])
def test_options_that_a_white_box_does_not_know_are_refused(words, capsys):
    assert cli.main(["certify", "--accept", "transformers", *words, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["slug"] == "bad_options"
