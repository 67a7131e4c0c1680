from __future__ import annotations

import numpy as np
import pytest

from mtp_verify.testing import (
    assert_same_law,
    assert_sampler_has_law,
    exact_law,
    min_num_samples,
    mutants,
)

PROMPT = [1, 2]
RIGHT = mutants.engine(vocab=3)
LAW = exact_law(RIGHT.rows, PROMPT, 2)
NUM = min_num_samples(9, min_tv=0.05)


def test_a_right_sampler_passes():
    assert_same_law(RIGHT(PROMPT, NUM, 0), LAW, min_tv=0.05)


def test_a_wrong_sampler_fails_and_the_message_says_where():
    wrong = mutants.engine("biased", vocab=3, tv=0.06)
    with pytest.raises(AssertionError, match=r"total variation 0\.0.*most at \("):
        assert_same_law(wrong(PROMPT, NUM, 0), LAW, min_tv=0.05)


def test_too_few_samples_fail_with_the_number_needed():
    with pytest.raises(AssertionError, match=f"{NUM} are needed"):
        assert_same_law(RIGHT(PROMPT, 100, 0), LAW, min_tv=0.05)


def test_a_string_of_probability_0_fails():
    law = exact_law(lambda path: [0.0, 0.0, -np.inf], [0], 1)
    samples = np.zeros((20_000, 1), np.int64)
    samples[5] = 2
    with pytest.raises(AssertionError, match=r"probability 0, the first: \(2,\)"):
        assert_same_law(samples, law, min_tv=0.1)


def test_a_wrong_sampler_is_found_with_few_samples():
    drawn = []

    def sampler(engine):
        def draw(start, count):
            drawn.append(count)
            return engine(PROMPT, count, start)

        return draw

    total = assert_sampler_has_law(sampler(RIGHT), LAW, min_tv=0.05)
    assert total == sum(drawn) >= NUM
    drawn.clear()
    with pytest.raises(AssertionError, match="the law differs"):
        assert_sampler_has_law(sampler(mutants.engine("emits_argmax", vocab=3)), LAW, min_tv=0.05)
    assert sum(drawn) < NUM / 4
