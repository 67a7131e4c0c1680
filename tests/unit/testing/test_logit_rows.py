from __future__ import annotations

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify.testing import draw_logits, recorded_logits
from mtp_verify.testing.logit_rows import KINDS


def softmax(rows, temperature=1.0):
    scaled = np.asarray(rows, np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def drawn(kind, vocab=300, count=200, dtype="float32"):
    return draw_logits(np.random.default_rng(5), vocab, count, kind=kind, dtype=dtype)


def test_recorded_logits_are_a_models():
    rows = recorded_logits()
    assert (rows.shape, rows.dtype) == ((48, 2, 512), np.float16)
    assert np.isfinite(rows).all()
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0, 0] = 0
    # Peaked where the temperature is low; at 1 they have some entropy, and ties.
    assert np.mean(1 - softmax(rows[:, 0], 0.2).max(axis=1) < 1e-6) > 0.1
    assert np.mean(softmax(rows[:, 0], 0.05).max(axis=1).astype(np.float32) == 1) > 0.4
    assert np.median(softmax(rows[:, 0]).max(axis=1)) < 0.7
    assert all(len(np.unique(row)) < 512 for row in rows.reshape(-1, 512))
    # The drafter knows something: both have the same first token more often than 1 in 512.
    assert np.mean(rows[:, 0].argmax(axis=1) == rows[:, 1].argmax(axis=1)) > 0.3


@pytest.mark.parametrize("vocab", [1, 2, 7, 512, 513, 3000])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_kind_and_width_are_rows(kind, vocab):
    for side in drawn(kind, vocab, 20):
        assert (side.shape, side.dtype) == ((20, vocab), np.float32)
        assert (side < np.inf).all()
        assert (side > -np.inf).any(axis=1).all()


def test_kinds_are_what_they_are_called():
    peaked, _ = drawn("peaked")
    assert (1 - softmax(peaked).max(axis=1) < 1e-9).sum() > 40
    flat, _ = drawn("flat")
    assert softmax(flat).max() < 1.1 / 300
    assert (np.ptp(flat, axis=1) == 0).sum() > 40
    tied, _ = drawn("tied")
    assert max(len(np.unique(row)) for row in tied) < 20
    target, drafter = drawn("masked")
    assert set(np.isfinite(target).sum(axis=1)) == {1, 2, 3}
    assert 60 < np.isfinite(drafter).all(axis=1).sum() < 140
    recorded, _ = drawn("recorded")
    known = {row.max() for row in recorded_logits()[:, 0].astype(np.float32)}
    assert {row.max() for row in recorded} <= known


def test_drafters_resemble_their_targets():
    for kind in ("peaked", "recorded"):
        target, drafter = drawn(kind)
        assert np.mean(target.argmax(axis=1) == drafter.argmax(axis=1)) > 0.3
        assert not np.array_equal(target, drafter)


def test_bfloat16_numbers_are_bfloat16s():
    torch = pytest.importorskip("torch")
    exact, _ = drawn(None)
    rows, _ = drawn(None, dtype="bfloat16")
    assert rows.dtype == np.float32
    rounded = torch.from_numpy(exact).to(torch.bfloat16).float()
    np.testing.assert_array_equal(rows, rounded.numpy())


def test_float16_numbers_are_float16s():
    exact, _ = drawn(None)
    rows, _ = drawn(None, dtype="float16")
    np.testing.assert_array_equal(rows, exact.astype(np.float16))
    assert rows.dtype == np.float16


def test_one_seed_gives_the_same_rows():
    for kind in (None, *KINDS):
        np.testing.assert_array_equal(drawn(kind), drawn(kind))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vocab": 0}, "vocab: found 0, wanted an integer >= 1"),
        ({"count": -1}, "count: found -1, wanted an integer >= 0"),
        ({"kind": "spiky"}, "kind: found 'spiky', wanted one of: flat, tied, masked"),
        ({"dtype": "int8"}, "dtype: found 'int8', wanted one of: float32"),
    ],
)
def test_what_cannot_be_drawn_is_refused(wrong, message):
    arguments = {"vocab": 3, "count": 1} | wrong
    with pytest.raises(mv.errors.ParamsError, match=message):
        draw_logits(np.random.default_rng(0), **arguments)
