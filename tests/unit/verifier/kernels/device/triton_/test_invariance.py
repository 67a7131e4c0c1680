"""No bit of an outcome depends on companions, on capacities, or on how rows lie and are split."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import torch
import triton.language as tl

from mtp_verify.verifier.kernels.device import layout
from mtp_verify.verifier.kernels.device.triton_ import Workspace, run
from tests.random_requests import random_requests, random_shaping
from tests.steps import Request, step_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    import mtp_verify as mv

RULES = ("topdown", "lifted", "target_only", "coupled", "greedy")
# The interpreter takes a second a row: fast tests take the rule with most kernels.
BY_RULE = [
    rule if rule == "lifted" else pytest.param(rule, marks=pytest.mark.slow) for rule in RULES
]
PACKAGE = "mtp_verify.verifier.kernels.device.triton_"
pytestmark = pytest.mark.timeout(600)
# What rows are split by: launches, tiles, room of lists.
SPLITS: dict[str, dict[str, Any]] = {
    "stats": {"GROUP": 2, "PROGRAMS": 64},
    "race": {"PAIRS": 256},
    "walk": {"LANES": 2},
    "trees": {"GROUP": 1, "FOLDED": 2},
    "shaping": {"GROUP": 2, "ROOM": tl.constexpr(32)},
    "selection": {"ROOM": tl.constexpr(32), "TILE": tl.constexpr(512), "PIVOTS": tl.constexpr(2)},
}


def truncation(rng: np.random.Generator) -> mv.SamplingParams:
    return random_shaping(rng, top_k=(0, 3, 200), top_p=(1.0, 0.9, 0.6), min_p=(0.0, 0.05))


def requests_of(rng: np.random.Generator, rules: Sequence[str], **how: Any) -> list[Request]:
    """Return requests with truncated rows, under some of the rules."""
    how = {"vocab": 70, "nodes": 3, "count": 2, **how}
    return random_requests(rng, rules, shaping=truncation, **how)


def decide(step: layout.Step) -> layout.Outcomes:
    run(step, Workspace(step.capacity, "cpu"))
    return step.outcomes


def assert_same(one: layout.Outcomes, b: int, other: layout.Outcomes, at: int) -> None:
    """Assert that a request has the same outcome twice; one may have room for more levels."""
    for name in layout.Outcomes._fields:
        first, second = getattr(one, name)[b], getattr(other, name)[at]
        if first.dim() > 0:
            short, long = sorted((first, second), key=len)
            filler = 0 if name == "logprobs" else -1
            assert torch.equal(short, long[: len(short)]), name
            assert (long[len(short) :] == filler).all(), name
        else:
            assert torch.equal(first, second), name


@pytest.mark.parametrize("rule", BY_RULE)
def test_a_request_decides_alike_in_any_company(rng: np.random.Generator, rule: str) -> None:
    requests = requests_of(rng, [rule])
    whole = decide(step_of(requests))
    order = [1, 0]
    turned = decide(step_of([requests[b] for b in order], spare=(4, 5), order=rng))
    for place, b in enumerate(order):
        assert_same(whole, b, turned, place)
    alone = int(rng.integers(2))
    assert_same(whole, alone, decide(step_of([requests[alone]], spare=(0, 0))), 0)


@pytest.mark.parametrize("rule", BY_RULE)
def test_how_rows_are_split_changes_nothing(
    rng: np.random.Generator, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = requests_of(rng, [rule], vocab=2060, nodes=1, count=1)
    whole = decide(step_of(requests))
    for module, values in SPLITS.items():
        for name, value in values.items():
            monkeypatch.setattr(import_module(f"{PACKAGE}.{module}"), name, value)
    assert_same(whole, 0, decide(step_of(requests)), 0)


def test_how_rows_lie_in_memory_changes_nothing(rng: np.random.Generator) -> None:
    requests = requests_of(rng, ["lifted"])
    step = step_of(requests)
    wide = torch.full((len(step.logits), step.capacity.vocab + 3), torch.nan)
    apart = wide.to(step.logits.dtype)[:, 1:-2]
    apart.copy_(step.logits)
    whole = decide(step)
    moved = decide(step_of(requests)._replace(logits=apart))
    for b in range(2):
        assert_same(whole, b, moved, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_sixteen_bits_are_their_values(
    rng: np.random.Generator, dtype: torch.dtype
) -> None:
    requests = requests_of(rng, ["lifted"], dtype=dtype)
    wider = [
        replace(
            r, logits=r.logits.float(), drafter=None if r.drafter is None else r.drafter.float()
        )
        for r in requests
    ]
    narrow, wide = decide(step_of(requests)), decide(step_of(wider))
    for b in range(2):
        assert_same(narrow, b, wide, b)
