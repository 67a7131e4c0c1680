"""The rows of a case: what the device is given is what the core reads."""

from __future__ import annotations

import numpy as np
import pytest

from mtp_verify.testing.device.cases import MODELS, Case
from mtp_verify.testing.device.rows import Rows
from mtp_verify.verifier.params import SamplingParams


def test_plain_rows_are_the_model_s():
    rows = Rows(Case(MODELS[0], "token", "chain", (1,)))
    assert rows.p(()) == pytest.approx([0.2, 0.3, 0.5], abs=1e-6)
    assert rows.p((0,)) == pytest.approx([0.4, 0.4, 0.2], abs=1e-6)
    assert rows.q((1,)) == pytest.approx([0.3, 0.3, 0.4], abs=1e-6)
    assert np.exp(rows.logits(())) == pytest.approx([2, 3, 5], abs=1e-5)
    assert rows.mask() is None
    assert rows.vocab is None


def test_long_rows_have_the_same_tokens_elsewhere():
    rows = Rows(Case(MODELS[2], "token", "chain", (1,), is_spread=True, forbidden=(1,)))
    given = rows.logits(())
    assert given.shape == (rows.width,)
    assert set(np.flatnonzero(given > -np.inf)) == set(rows.places)
    assert np.unpackbits(rows.mask().view(np.uint8), bitorder="little")[rows.places[1]] == 0
    assert rows.p(()) == pytest.approx(np.array([1, 0, 3, 4]) / 8, abs=1e-6)
    assert rows.drafter().sum(axis=1) == pytest.approx([1, 1], abs=1e-6)


def test_penalties_change_the_target_alone():
    rows = Rows(Case(MODELS[0], "token", "chain", (1,), SamplingParams(presence_penalty=np.log(2))))
    assert rows.p((0,)) == pytest.approx(np.array([2, 4, 2]) / 8, abs=1e-6)
    assert rows.q((0,)) == pytest.approx(np.array([5, 3, 2]) / 10, abs=1e-6)


def test_a_drafter_of_few_tokens_knows_no_others():
    rows = Rows(Case(MODELS[0], "token", "chain", (1,), vocab=(2, 0)))
    assert rows.q(()) == pytest.approx(np.array([3, 0, 4]) / 7, abs=1e-6)
    assert rows.drafter()[0] == pytest.approx(np.array([4, 3]) / 7, abs=1e-6)
    assert rows.vocab.tolist() == [2, 0]
