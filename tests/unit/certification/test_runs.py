"""The calls of a certification under a limit of time, on a clock that moves with the engine."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

import mtp_verify as mv
from mtp_verify.certification import blackbox, certify, report, runs
from mtp_verify.certification.blackbox import make_prompts
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


class SlowRows:
    """A right engine that takes no time, and a target whose rows do: behind long texts alone, or
    all of them."""

    def __init__(self, monkeypatch, seconds, *, longer_than=0):
        self.slow, self.longer_than = Slow(monkeypatch, 0.0), longer_than
        self.seconds, self.params = seconds, self.slow.params

    def rows(self, path):
        self.slow.now += self.seconds * (len(path) > self.longer_than)
        return self.slow.rows(path)

    def __call__(self, prompt, n, seed):
        return self.slow(prompt, n, seed)


def test_time_that_ends_during_enumeration_is_reported(monkeypatch):
    engine = SlowRows(monkeypatch, 0.05)
    # 21 rows a prompt: one second and a bit.
    found = certify(engine, prompts=make_prompts(50), min_tv=0.1, max_seconds=10, name="slow")
    assert engine.slow.now <= 12
    assert (found.verdict, found.num_samples, found.power_reached) == ("not enough data", 0, 0.0)
    assert (len(found.prompts), found.num_prompts) == (9, 50)
    made = report([found])
    assert made.exit_code == 2
    for text in (made.summary, made.to_text()):
        assert "the law of 9 of 50 prompts was known in time" in text
    assert "9 of 50" in made.to_html()
    assert json.loads(made.to_json())["certificates"][0]["prompts_wanted"] == 50


def test_kept_counts_stay_if_time_ends_before_the_laws(monkeypatch, tmp_path):
    file = tmp_path / "counts.json"
    options = {"prompts": make_prompts(5), "min_tv": 0.1, "resume": file, "name": "slow"}
    certify(SlowRows(monkeypatch, 0.0), max_samples=900, **options)
    kept = file.read_text()
    found = certify(SlowRows(monkeypatch, 0.1), max_seconds=5, **options)
    assert found.verdict == "not enough data"
    assert file.read_text() == kept


def test_without_time_for_one_law_it_is_refused(monkeypatch):
    engine = SlowRows(monkeypatch, 1.0)
    with pytest.raises(
        mv.errors.ParamsError, match="too little for the law of one prompt"
    ) as caught:
        certify(engine, max_seconds=10)
    assert caught.value.slug == "too_little_time"
    assert engine.slow.now <= 12


@pytest.mark.parametrize("seconds", [0.003, 0.01, 1.0])
def test_a_round_that_takes_too_long_to_count_is_not_counted(monkeypatch, seconds):
    # Prompts have five tokens at most, the enumeration asks for two more.
    engine = SlowRows(monkeypatch, seconds, longer_than=7)
    engine.slow.engine = mutants.engine(length=12)
    found = certify(engine, min_tv=0.02, max_seconds=60)
    assert found.verdict == "not enough data"
    assert engine.slow.now <= 72
    assert len({tally.num_samples for tally in found.tallies}) == 1
    assert (found.num_samples > 0) == (seconds < 1.0)
    # All counts are those of whole rounds.
    assert found.paths.seen.sum() == found.num_samples * found.horizon
    assert sum(tally.next_seed.sum() for tally in found.tallies) == found.num_samples / 2


def test_controls_take_as_long_for_any_number_of_samples():
    # Drawn one by one they would take hundreds of terabytes.
    found = certify(mutants.engine(), min_tv=1e-6, max_seconds=0.0)
    assert found.num_needed > 10**13
    assert found.is_sound


def test_the_power_of_what_was_drawn_is_said():
    some = certify(mutants.engine(), min_tv=0.05, max_samples=6000)
    more = certify(mutants.engine(), min_tv=0.05, max_samples=12000)
    whole = certify(mutants.engine(), min_tv=0.05)
    assert [found.verdict for found in (some, more, whole)] == [*["not enough data"] * 2, "pass"]
    assert 0 < some.power_reached < more.power_reached < 0.99 <= whole.power_reached + 1e-3
    made = report([some])
    said = f"(power {int(1000 * some.power_reached) / 1000:g})"
    assert said in made.summary
    assert said in made.to_text()
    document = json.loads(made.to_json())
    assert document["certificates"][0]["power_reached"] == some.power_reached


@pytest.mark.parametrize("words", [["--max-seconds", "5"], ["--resume", "x"], ["--mode", "x"]])
def test_options_that_a_white_box_does_not_know_are_refused(words, capsys):
    assert cli.main(["certify", "--accept", "transformers", *words, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["slug"] == "bad_options"
