"""Rows that another thread overwrites while they are read: an error of ours, never a panic."""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify import _core
from mtp_verify.verifier import growers
from mtp_verify.verifier.growers import TreeShape

V = 5000
SECONDS = 10
PARAMS = [
    mv.SamplingParams(),
    mv.SamplingParams(temperature=0.3),
    mv.SamplingParams(top_p=0.5),
    mv.SamplingParams(top_k=50),
    mv.SamplingParams(temperature=0),
    mv.SamplingParams(min_p=0.1, top_p=0.9, top_k=4500),
]
LOSSY = [mv.lossy.typical(0.3, 0.1), mv.lossy.topk(2), mv.lossy.threshold(0.1)]
CHAIN = mv.TokenTree(range(-1, 4))
TREE = mv.TokenTree([-1, 0, 0, 1, 1])


class Rows:
    """Five rows of logits and of probabilities, overwritten and put back without end."""

    def __init__(self) -> None:
        self.clean = np.random.default_rng(0).normal(size=(5, V)).astype(np.float32) * 3
        self.logits = self.clean.copy()
        weights = np.exp(self.clean - self.clean.max(axis=1, keepdims=True))
        self.fair = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
        self.probs = self.fair.copy()
        self.ends = False

    def write(self) -> None:
        logits = (np.nan, -np.inf, np.inf, 0.0, 1e30, -1e30, 50.0)
        probs = (0.0, np.nan, 1.0, -1.0, 5.0, 1 / V)
        turn = 0
        while not self.ends:
            turn += 1
            row = turn % 5
            self.logits[row] = logits[turn % 7]
            self.probs[row] = probs[turn % 6]
            self.logits[row, turn * 7 % V] = logits[turn % 3]
            self.logits[row] = self.clean[row]
            self.probs[row] = self.fair[row]


def calls(rows: Rows, turn: int):
    """What reads rows, under one of the settings."""
    params, noise = PARAMS[turn % len(PARAMS)], {"seed": turn, "position": 3}
    best = (-rows.clean).argsort(axis=1)
    shapes = {
        "chain": (CHAIN, [-1, *best[:4, 0].tolist()]),
        "swor": (TREE, [-1, *best[0, :2].tolist(), *best[1, :2].tolist()]),
        "iid": (TREE, [-1, *best[0, :2].tolist(), *best[1, :2].tolist()]),
        "top_plus_one": (TREE, [-1, *best[0, 1::-1].tolist(), *best[1, 1::-1].tolist()]),
    }
    for law, (tree, tokens) in shapes.items():
        for given in ({"probs": rows.probs}, {"logits": rows.logits, "params": params}):
            try:
                draft = mv.Draft(tree, tokens, law=law, **given)
            except mv.MtpVerifyError:
                continue
            rules = [rule["name"] for rule in mv.rules() if law in rule["laws"]]
            for rule in rules:
                yield lambda r=rule, d=draft: mv.verify(
                    d, rows.logits, params, rule=r, top_logprobs=turn % 3, **noise
                )
                yield lambda r=rule, d=draft: mv.expected_accepted(d, rows.logits, params, r)
            for lossy in LOSSY:
                yield lambda e=lossy, d=draft: mv.verify(d, rows.logits, params, lossy=e, **noise)
    yield lambda: _core.top_tokens(rows.logits, 5)
    yield lambda: _core.shaped_row(rows.logits[0], params)
    yield lambda: _core.draw(rows.logits[0], params, turn, 0, 1)
    for make in (
        lambda: growers.Heap(6),
        lambda: growers.Stochastic(5, **noise),
        lambda: growers.Fixed(TreeShape.by_depth(3, 1), "swor", **noise),
        lambda: growers.Coupled(TreeShape.by_depth(3, 1), **noise),
    ):
        yield lambda m=make: m().grow(lambda paths: rows.logits[: len(paths)])


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_writer_makes_errors_of_ours_and_no_log_probability_that_is_none():
    """Before there was this test, 10 s gave 100 panics and 300 infinite log-probabilities."""
    rows, failed, refused = Rows(), Counter(), 0
    writer = threading.Thread(target=rows.write)
    writer.start()
    try:
        end, turn = time.monotonic() + SECONDS, 0
        while time.monotonic() < end:
            turn += 1
            for call in calls(rows, turn):
                try:
                    result = call()
                except mv.errors.InternalError as error:
                    failed[str(error)] += 1
                except mv.MtpVerifyError:
                    refused += 1
                else:
                    if isinstance(result, mv.Verdict):
                        legal = np.isfinite(result.logprobs) & (result.logprobs <= 0)
                        failed["log-probability"] += int((~legal).sum())
                    elif isinstance(result, float) and not 0 <= result <= 4 + 1e-6:
                        failed["expected_accepted"] += 1
    finally:
        rows.ends = True
        writer.join()
    assert refused > 100, "nothing was changed in time"
    assert not +failed, failed
