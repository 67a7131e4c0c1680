"""Random calls at the Python gate; `python -m tests.fuzzing` runs any number of them."""

from __future__ import annotations

import warnings

import pytest

from tests.fuzzing.cases import InvariantError, run

SEED = 1
CASES = 3000


@pytest.mark.parametrize("start", range(0, 4 * CASES, CASES))
def test_no_call_panics_changes_what_it_refuses_or_answers_twice(start):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, about values that no user would pass.
        for case in range(start, start + CASES):
            try:
                run(SEED, case)
            except InvariantError as error:
                pytest.fail(f"python -m tests.fuzzing --start {case} --cases 1: {error}")
