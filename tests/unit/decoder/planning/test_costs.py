"""What a forward costs: interpolation, measuring with a fake clock, and the file."""

from __future__ import annotations

import json

import pytest
import torch

from mtp_verify.decoder.planning import Costs, MeasuredCosts, store
from mtp_verify.decoder.planning.costs import WIDTHS, measure
from mtp_verify.errors import ParamsError
from mtp_verify.models.target import TransformersTarget
from mtp_verify.testing import TableTarget
from tests.models import tiny_model


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class TimedTarget(TableTarget):
    """Takes as long as it is told, by width; every `hiccup`-th forward takes ten times that."""

    def __init__(self, clock, seconds, hiccup=10**9):
        super().__init__(lambda tokens: [0.0, 1.0], 2)
        self.clock, self.seconds, self.hiccup = clock, seconds, hiccup

    def forward(self, tokens, *args, **kwargs):
        result = super().forward(tokens, *args, **kwargs)
        slow = self.num_forwards % self.hiccup == 0
        self.clock.now += self.seconds(tokens.shape[1]) * (10 if slow else 1)
        return result


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTP_VERIFY_CACHE", str(tmp_path))
    return tmp_path


def test_costs_are_linear_between_widths_and_go_on_with_the_last_slope():
    costs = Costs({1: {1: 1.0, 3: 2.0, 5: 2.2}})
    assert costs.forward(2) == pytest.approx(1.5)
    assert costs.forward(5) == pytest.approx(2.2)
    assert costs.forward(9) == pytest.approx(2.6)


def test_batches_take_the_next_larger_row_and_grow_in_proportion_beyond():
    costs = Costs({1: {1: 1.0}, 4: {1: 2.0}})
    assert costs.forward(1, 3) == 2.0
    assert costs.forward(1, 8) == 4.0


@pytest.mark.parametrize("table", [{}, {1: {2: 1.0}}, {1: {1: 0.0}}, {1: {1: float("nan")}}])
def test_impossible_tables_are_refused(table):
    with pytest.raises(ParamsError, match="seconds"):
        Costs(table)


def test_measuring_finds_the_curve_despite_hiccups():
    clock = FakeClock()
    target = TimedTarget(clock, lambda width: 0.010 + 0.001 * width, hiccup=7)
    times = measure(target, clock=clock)
    assert tuple(times) == WIDTHS
    for width, seconds in times.items():
        assert seconds == pytest.approx(0.010 + 0.001 * width)


def test_measuring_stops_when_it_takes_too_long():
    clock = FakeClock()
    target = TimedTarget(clock, lambda width: 1.0)
    measure(target, clock=clock)
    # The context, one to warm up, and three rounds that begin with one that is not counted.
    assert target.num_forwards == 2 + 3 * (1 + len(WIDTHS))


def test_what_is_too_dear_is_not_measured_again():
    clock = FakeClock()
    target = TimedTarget(clock, lambda width: 0.010 * width)
    times = measure(target, clock=clock)
    assert tuple(times) == (1, 2, 3, 4, 6)
    assert times[6] == pytest.approx(0.060)


class AfterWide(TimedTarget):
    """A forward after a wide one takes twice as long: the wide one has emptied the caches."""

    def __init__(self, clock):
        super().__init__(clock, self.seconds_of)
        self.last = 1

    def seconds_of(self, width):
        last, self.last = self.last, width
        return (0.010 + 0.001 * width) * (2 if last >= 24 > width else 1)


def test_the_narrowest_forward_does_not_pay_for_the_widest():
    clock = FakeClock()
    times = measure(AfterWide(clock), clock=clock)
    assert times[4] / times[1] == pytest.approx(14 / 11)


def test_measured_times_never_fall_with_width():
    clock = FakeClock()
    target = TimedTarget(clock, lambda width: 0.02 if width == 2 else 0.01)
    times = list(measure(target, clock=clock).values())
    assert times == sorted(times)


def test_costs_of_a_model_are_measured_once_and_kept(cache):
    target = TransformersTarget(tiny_model("llama"))
    first = MeasuredCosts(target).forward(3)
    (file,) = (cache / "costs").iterdir()
    second = MeasuredCosts(target, clock=lambda: pytest.fail("measured again"))
    assert second.forward(3) == first
    key = json.loads(file.read_text())["key"]
    assert key["threads"] == torch.get_num_threads()


def test_batches_are_measured_when_they_are_first_asked_for(cache):
    target = TransformersTarget(tiny_model("llama"))
    costs = MeasuredCosts(target)
    costs.forward(1)
    costs.forward(1, 3)
    found = store.load(store.key_of(target, threads=torch.get_num_threads()))
    assert sorted(found) == [1, 4]


@pytest.mark.parametrize(
    "change", ["threads", "model", "mtp_verify", "dtype", "is_prepacked", "is_fused"]
)
def test_another_key_measures_anew(cache, change):
    key = store.key_of(TransformersTarget(tiny_model("llama")), threads=1)
    store.save(key, {1: {1: 0.5}})
    assert store.load(key) == {1: {1: 0.5}}
    assert store.load({**key, change: "other"}) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 1, "seconds": {}}'])
def test_a_damaged_file_is_no_file(cache, text):
    key = {"model": "x"}
    store.save(key, {1: {1: 0.5}})
    store.path_of(key).write_text(text)
    assert store.load(key) == {}


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MTP_VERIFY_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="MTP_VERIFY_CACHE"):
        store.save({"model": "x"}, {1: {1: 0.5}})
