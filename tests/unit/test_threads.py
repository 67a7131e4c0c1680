"""The thread policy: what is timed, what wins, what is restored."""

from __future__ import annotations

import itertools

import pytest
import torch

import mtp_verify as mv
from mtp_verify import threads
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
    report = threads.measure(tiny_model("llama"), counts=list(costs), rounds=2)
    assert report.best == best
    assert report.milliseconds[1] == pytest.approx({1: 1000.0, 8: 1000.0})
    assert list(report.milliseconds) == sorted(costs)
    assert torch.get_num_threads() == before


def test_use_best_sets_the_count(clock):
    clock.update({1: 1.0, 2: 0.5})
    before = torch.get_num_threads()
    try:
        assert threads.use_best(tiny_model("llama"), counts=[1, 2], rounds=1).best == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_default_counts_double_up_to_the_cores():
    assert threads._default_counts(1) == [1]
    assert threads._default_counts(6) == [1, 2, 4, 6]
    assert threads._default_counts(8) == [1, 2, 4, 8]
    assert threads.num_cores() >= 1


@pytest.mark.parametrize(
    "options", [{"counts": []}, {"counts": [0]}, {"widths": ()}, {"widths": (0,)}, {"rounds": 0}]
)
def test_empty_measurements_are_refused(options):
    with pytest.raises(mv.ParamsError, match="at least 1"):
        threads.measure(tiny_model("llama"), **options)
