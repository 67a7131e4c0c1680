"""Counts that are drawn without their strings, and what power samples have."""

from __future__ import annotations

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify.certification.tally import Tally, power_of, samples_needed
from mtp_verify.testing import exact_law, mutants

ROWS = mutants.table_rows(4, 7)


def law_of(prompt, **settings):
    return exact_law(ROWS, prompt, 3, mv.SamplingParams(**settings))


def test_counts_of_a_law_pass_and_those_of_another_fail():
    # 2e8 strings, one fixed seed; a right tally fails with probability 8e-4 over seeds (8 tests at
    # 1e-4), and one that is wrong by 0.001 passes its joint test with probability below 1e-9.
    right, wrong = law_of((1, 2)), law_of((1, 2), temperature=1.01)
    assert np.abs(right.probs - wrong.probs).sum() / 2 > 0.001
    for probs, passes in ((right.probs, True), (wrong.probs, False)):
        tally = Tally(right)
        tally.add_counts(10**8, probs, np.random.default_rng(0))
        fits = dict(tally.fits())
        assert (min(fit.p_value for fit in fits.values()) > 1e-4) == passes
        assert (fits["joint"].p_value > 1e-9) == passes
        assert tally.halves.sum(axis=1).tolist() == [10**8] * 2
        assert (tally.neighbours.sum(), tally.next_seed.sum()) == (10**8, 10**8)


def test_counts_are_as_many_as_those_of_strings():
    law, rng = law_of((1, 2)), np.random.default_rng(0)
    for count in (0, 1, 7):
        drawn, counted = Tally(law), Tally(law)
        drawn.add(*rng.integers(0, 4, (2, count, 3)))
        counted.add_counts(count, law.probs, rng)
        for name in ("halves", "neighbours", "next_seed"):
            assert getattr(drawn, name).sum() == getattr(counted, name).sum()


def test_what_cannot_occur_is_never_counted():
    law = law_of((1, 2), top_k=2)
    tally = Tally(law)
    tally.add_counts(10**12, law.probs, np.random.default_rng(0))
    assert (law.probs == 0).any()
    assert not tally.halves[:, law.probs == 0].any()


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_k": 2}])
@pytest.mark.parametrize("min_tv", [0.1, 0.01])
def test_the_samples_needed_have_the_power_asked_for(settings, min_tv):
    laws = [law_of(prompt, **settings) for prompt in ((1, 2), (3,))]
    wanted = {"min_tv": min_tv, "alpha": 1e-4}
    needed = samples_needed(laws, power=0.99, **wanted)
    assert power_of(laws, num_samples=needed, **wanted) == pytest.approx(0.99, abs=0.01)
    assert power_of(laws, num_samples=needed // 4, **wanted) < 0.9
    assert power_of(laws, num_samples=0, **wanted) == 0
