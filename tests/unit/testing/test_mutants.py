from __future__ import annotations

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify.testing import exact_law, mutants, stats


@pytest.mark.parametrize("mistake", mutants.ENGINES)
def test_only_the_right_engine_has_the_targets_law(mistake):
    engine = mutants.engine(mistake, tv=0.1)
    law = exact_law(engine.rows, [1], 3)
    found = stats.fit(law.counts(engine([1], 20_000, 3)), law.probs)
    # Shared noise leaves every single sample's law right: only pairs show it.
    is_right = mistake in {"none", "rows_share_noise"}
    assert (found.p_value > 1e-6) == is_right


def test_rows_that_share_noise_come_in_equal_pairs():
    samples = mutants.engine("rows_share_noise")([1], 6, 0)
    assert np.array_equal(samples[::2], samples[1::2])


def test_the_biased_engine_is_off_by_what_it_says():
    engine = mutants.engine("biased", tv=0.1)
    law = exact_law(engine.rows, [1], 1)
    shares = law.counts(engine([1], 100_000, 0)) / 100_000
    assert np.abs(shares - law.probs).sum() / 2 == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("make", [mutants.engine, mutants.accept])
def test_unknown_mistakes_are_refused_with_the_known_ones(make):
    with pytest.raises(mv.errors.ParamsError, match="wanted one of: none"):
        make("magic")
