"""The oracle itself: the exact law of its rules, and the published noise.

Every random choice of the reference's rules is enumerated over Fractions, drafts included, so the
law of a step is a sum over all branches and no sample. That it is the target's shows the rule
lossless; that its mean length equals the independently computed table shows it is the right rule.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from mtp_verify.verifier import alpha_star, reference
from mtp_verify.verifier.reference import Noise
from tests.property.models import MODELS, P, Q, cases, pairs, row, step

# From the specification's table: model, shape, law: E[emitted] of target_only, topdown, lifted.
EXPECTED = {
    ("A", (1, 1), "chain"): (1.6420, 2.1111, 2.2222),
    ("A", (1, 1), "deterministic"): (1.4444, 1.4444, 1.4444),
    ("A", (2, 1), "iid"): (1.9630, 2.2963, 2.4074),
    ("A", (2, 1), "swor"): (2.4444, 2.6667, 2.7778),
    ("A", (2, 1), "top_plus_one"): (2.4444, 2.6667, 2.7778),
    ("B", (1, 1), "chain"): (1.4329, 2.3889, 2.4167),
    ("B", (2, 1), "iid"): (1.7215, 2.4815, 2.5093),
    ("B", (2, 1), "swor"): (1.8657, 2.5278, 2.5556),
    ("B", (2, 1), "top_plus_one"): (1.9722, 2.6667, 2.7500),
    ("B", (2, 1), "deterministic"): (2.0, 2.0, 2.0),
    ("C", (1, 1), "chain"): (1.3333, 1.6667, 1.6667),
    ("C", (2, 1), "iid"): (1.5, 1.6667, 1.6667),
    ("C", (2, 1), "swor"): (1.6667, 1.6667, 1.6667),
    ("C", (2, 1), "top_plus_one"): (1.6667, 1.6667, 1.8333),
    ("E", (1, 1), "chain"): (1.2400, 1.9600, 2.0300),
    ("E", (2, 1), "iid"): (1.4200, 2.1520, 2.2220),
    ("E", (2, 1), "swor"): (1.5033, 2.2229, 2.3014),
    ("E", (2, 1), "top_plus_one"): (1.4400, 2.2267, 2.3200),
    ("E", (2, 1), "deterministic"): (1.3300, 1.3300, 1.3300),
    ("E", (1, 1, 1), "chain"): (None, 272 / 125, 1173 / 500),
    ("B", (1, 1, 1), "chain"): (None, 599 / 216, 209 / 72),
}


@pytest.mark.parametrize(("core", "law"), pairs())
def test_every_step_has_exactly_the_targets_law(core, law):
    for model, shape in cases(core, law):
        distance, _ = step(model, shape, law, core)
        assert distance == 0, (model, shape, float(distance))


# Found: 4e-16. A remainder that cancels moves a step by up to 0.43.
ROUNDING = 1e-15


@pytest.mark.parametrize(("core", "law"), pairs())
def test_rounding_moves_a_step_no_further_than_rounding_does(core, law):
    for model, shape in cases(core, law):
        distance, _ = step(model, shape, law, core, float)
        assert distance < ROUNDING, (model, shape, float(distance))


@pytest.mark.parametrize(("model", "shape", "law"), EXPECTED)
def test_mean_lengths_are_the_table(model, shape, law):
    for core, wanted in zip(
        ("target_only", "topdown", "lifted"), EXPECTED[model, shape, law], strict=True
    ):
        if wanted is not None:
            _, length = step(model, shape, law, core, float)
            assert length == pytest.approx(wanted, abs=6e-5), core


@pytest.mark.parametrize(
    ("model", "best", "selected"),
    [
        ("A", "212/81", "212/81"),
        ("B", "287/108", "887/324"),
        ("C", "65/36", "65/36"),
        ("D", "11123/4096", "2961/1024"),
        ("E", "294/125", "9401/4000"),
    ],
)
def test_two_paths_give_the_stated_lengths(model, best, selected):
    for core, length in (("gbv", best), ("global_resolution", selected)):
        _, found = step(model, (2, 1), "iid", core, float)
        assert found == pytest.approx(float(Fraction(length)), abs=1e-12), core


@pytest.mark.parametrize("model", sorted(MODELS))
def test_one_level_is_the_best_there_is(model):
    target, drafter = row(model, P, ()), row(model, Q, ())
    for n in (1, 2, 3):
        _, found = step(model, (n,), "iid", "global_resolution", float)
        best = alpha_star(target.astype(float), (drafter / drafter.sum()).astype(float), n, "iid")
        assert found == pytest.approx(1 + best, abs=1e-12), n


def test_kseq_finds_the_root_of_e():
    # The root is found by bisection, to 40 binary digits.
    assert step("E", (2,), "iid", "kseq", float)[1] == pytest.approx(7 / 4, abs=1e-11)


def test_philox_gives_the_published_answers():
    ones = 0xFFFFFFFF
    cases = [
        ([0] * 2, [0] * 4, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([ones] * 2, [ones] * 4, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0xA4093822, 0x299F31D0],
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ]
    for key, counter, answer in cases:
        words = reference.philox(key, np.array(counter, np.uint32))
        assert " ".join(f"{int(word):08x}" for word in words) == answer


def test_draws_never_land_on_probability_zero():
    row = np.array([0.0, 0.3, 0.0, 0.7, 0.0])
    tokens = {Noise(3, position).draw(0, row) for position in range(200)}
    assert tokens == {1, 3}


def test_race_has_the_law_of_the_row():
    row = np.array([0.5, 0.25, 0.0, 0.25])
    count = 4000
    wins = np.bincount([Noise(1, p).race(0, row) for p in range(count)], minlength=4) / count
    # Hoeffding at 1e-9 for each token: sqrt(log(2e9) / (2 * 4000)) = 0.052.
    assert np.abs(wins - row).max() < 0.052
