"""The thread policy: what is timed, what wins, what is restored."""

from __future__ import annotations

import itertools
import json
import os
from types import SimpleNamespace

import pytest
import torch

from mtp_verify.commands.shared import threads
from tests.models import tiny_model


@pytest.fixture
def clock(monkeypatch):
    """A clock on which a step takes as long as `cost` says for the present thread count."""
    cost = {}
    times = itertools.count()

    def tick():
        # Called before and after each step: the second call adds the step's cost.
        second = next(times) % 2
        tick.now += cost[torch.get_num_threads()] if second else 0.0
        return tick.now

    tick.now = 0.0
    monkeypatch.setattr(threads, "perf_counter", tick)
    monkeypatch.setattr(threads, "_busy_seconds", lambda: None)
    return cost


@pytest.mark.parametrize(
    ("costs", "best"),
    [
        ({1: 1.0, 2: 0.6}, 2),
        ({1: 1.0, 2: 4.0}, 1),
        ({1: 1.0, 2: 0.97}, 1),  # not worth a second core
        ({1: 1.0, 2: 0.6, 4: 0.5}, 4),
    ],
)
def test_fastest_count_wins_unless_the_gain_is_noise(costs, best, clock):
    clock.update(costs)
    before = torch.get_num_threads()
    report = threads.measure(tiny_model("llama"), list(costs))
    assert report.best == best
    assert report.milliseconds[1] == pytest.approx({1: 1000.0, 8: 1000.0})
    assert list(report.milliseconds) == sorted(costs)
    assert torch.get_num_threads() == before


@pytest.fixture
def two_cores(clock, tmp_path, monkeypatch):
    """A machine of two cores, of which the second is worth it, and an empty cache folder."""
    monkeypatch.setenv("MTP_VERIFY_CACHE", str(tmp_path))
    monkeypatch.setattr(threads, "num_cores", lambda: 2)
    clock.update({1: 1.0, 2: 0.5})
    before = torch.get_num_threads()
    yield tmp_path / "costs"
    torch.set_num_threads(before)


def test_use_best_sets_the_count_and_measures_once(two_cores, monkeypatch):
    model = tiny_model("llama")
    first = threads.use_best(model)
    assert first.best == torch.get_num_threads() == 2
    torch.set_num_threads(1)
    monkeypatch.setattr(threads, "measure", lambda *_, **__: pytest.fail("measured again"))
    assert threads.use_best(model) == first
    assert torch.get_num_threads() == 2


def test_another_model_or_machine_is_measured_anew(two_cores, clock, monkeypatch):
    threads.use_best(tiny_model("llama"))
    clock.update({1: 0.1, 4: 1.0})
    assert threads.use_best(tiny_model("llama").double()).best == 1
    monkeypatch.setattr(threads, "num_cores", lambda: 4)
    assert sorted(threads.use_best(tiny_model("llama")).milliseconds) == [1, 2, 4]
    assert len(list(two_cores.iterdir())) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda seconds: seconds.pop("2"),
        lambda seconds: seconds["1"].pop("8"),
        lambda seconds: seconds["1"].update({"8": float("nan")}),
        lambda seconds: seconds["1"].update({"8": -1.0}),
        lambda seconds: seconds.update({"1": "text"}),
    ],
)
def test_a_damaged_file_is_measured_again(two_cores, damage):
    model = tiny_model("llama")
    first = threads.use_best(model)
    (file,) = two_cores.iterdir()
    whole = file.read_text()
    kept = json.loads(whole)
    damage(kept["seconds"])
    for text in (json.dumps(kept), whole[:-20], ""):
        file.write_text(text)
        assert threads.use_best(model) == first
        assert json.loads(file.read_text()) == json.loads(whole)


def test_measuring_ends_when_its_time_is_over(two_cores, clock, monkeypatch):
    now = itertools.count(step=2)  # each turn takes two seconds of the three
    monkeypatch.setattr(threads, "monotonic", lambda: float(next(now)))
    clock.update({4: 0.1})
    found = threads.measure(tiny_model("llama"), [1, 2, 4])
    assert sorted(found.milliseconds) == [1, 2]
    assert found.best == 2


def test_a_measurement_that_was_cut_short_is_used_but_not_kept(two_cores, monkeypatch):
    now = itertools.count(step=60)
    monkeypatch.setattr(threads, "monotonic", lambda: float(next(now)))
    found = threads.use_best(tiny_model("llama"))
    assert found.best == torch.get_num_threads() == 1
    assert sorted(found.milliseconds) == [1]
    assert not two_cores.exists()


@pytest.fixture
def load(two_cores, monkeypatch):
    """How many of the two cores other programs keep busy, while they are measured."""
    state, now = {"cores": 0.0}, [0.0]

    def times():
        return SimpleNamespace(user=0.9 * now[0], system=0.1 * now[0], elapsed=now[0])

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(os, "times", times)
    monkeypatch.setattr(threads, "sleep", sleep)
    monkeypatch.setattr(threads, "_busy_seconds", lambda: (1 + state["cores"]) * now[0])
    return state


@pytest.mark.parametrize(("cores", "is_kept"), [(0.0, True), (0.1, True), (0.4, False), (2, False)])
def test_a_count_is_kept_only_if_other_programs_were_idle(load, two_cores, cores, is_kept):
    load["cores"] = cores
    model = tiny_model("llama")
    found = threads.use_best(model)
    assert found.best == torch.get_num_threads() == 2  # for this run it is used
    assert found.others == pytest.approx(cores / 2, abs=1e-6)
    assert found.is_kept == two_cores.exists() == is_kept


def test_once_the_machine_is_idle_it_is_measured_again_and_kept(load, two_cores, clock):
    model = tiny_model("llama")
    load["cores"] = 2.0
    clock.update({2: 5.0})
    assert threads.use_best(model).best == 1
    load["cores"] = 0.0
    clock.update({2: 0.5})
    assert threads.use_best(model).best == 2
    assert len(list(two_cores.iterdir())) == 1


def test_renew_measures_again_and_keeps_nothing_if_busy(load, clock):
    model = tiny_model("llama")
    before = torch.get_num_threads()
    assert threads.use_best(model).best == 2
    torch.set_num_threads(before)
    clock.update({2: 5.0})
    load["cores"] = 2.0
    found = threads.renew(model)
    assert (found.best, found.is_kept) == (1, False)
    assert threads.use_best(model).best == 2
    load["cores"] = 0.0
    found = threads.renew(model)
    assert (found.best, found.is_kept) == (1, True)
    assert threads.use_best(model).best == 1


def test_busy_time_is_that_of_the_cores_that_this_process_may_use(tmp_path, monkeypatch):
    file = tmp_path / "stat"
    file.write_text(
        "cpu  999 0 0 0 0 0 0 0 0 0\n"
        "cpu0 1 2 4 1000 2000 8 16 32 5 5\n"
        "cpu1 100 0 0 7 0 0 0 0 0 0\n"
        "cpu2 9999 0 0 7 0 0 0 0 0 0\nintr 5 5\n"
    )
    monkeypatch.setattr(threads, "_STAT", file)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert threads._busy_seconds() == 163 / os.sysconf("SC_CLK_TCK")
    for text in ("", "cpu0 1 x\n"):
        file.write_text(text)
        assert not threads._busy_seconds()
    file.unlink()
    assert threads._busy_seconds() is None


def test_default_counts_double_up_to_the_cores():
    assert threads._default_counts(1) == [1]
    assert threads._default_counts(6) == [1, 2, 4, 6]
    assert threads._default_counts(8) == [1, 2, 4, 8]
    assert threads.num_cores() >= 1
