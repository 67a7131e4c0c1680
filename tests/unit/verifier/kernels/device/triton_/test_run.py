"""Whole steps in the interpreter are the core's verdicts, whatever a batch is made of."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.verifier.kernels.device import layout
from mtp_verify.verifier.kernels.device.triton_ import Workspace, race, run, stats, walk
from tests.random_requests import DTYPES, RULES, random_requests, random_shaping
from tests.steps import Request, assert_equal_to_core, step_of

CORES = ("greedy", "target_only", "coupled")
RULES_OF_DEVICES = [
    "auto",
    *(
        name
        for name, rule in RULES.items()
        if rule["core"] not in ("kseq", "gbv", "global_resolution")
    ),
]
# Widths of rows: within a block, and beyond.
SHORT = (1, 2, 3, 5, 17, 33, 130)
LONG = (700, 2048, 2049, 4100)
DEFAULTS = {"FROM": "1000", "CASES": "1000"}


def decide(requests: list[Request], **how: Any) -> layout.Step:
    """Run the step of some requests."""
    step = step_of(requests, **how)
    run(step, Workspace(step.capacity, "cpu"))
    return step


def verify_at_random(case: int) -> tuple[int, int]:
    """Compare a random batch with the core; return the verdicts, and those too near to compare.

    Rows of several blocks take the interpreter a second: they are few, in small trees.
    """
    rng = np.random.default_rng(case)
    is_long = case % 25 == 0
    requests = random_requests(
        rng,
        RULES_OF_DEVICES,
        vocab=int(rng.choice(LONG if is_long else SHORT)),
        nodes=2 if is_long else 6,
        shaping=random_shaping if rng.random() < 0.5 else None,
        masked=bool(rng.random() < 0.3),
    )
    if rng.random() < 0.2:
        for request in requests:
            width = request.logits.shape[1]
            for node in range(int(rng.integers(2)), len(request.parents), 2):
                request.shadow[node] = torch.tensor(rng.normal(0, 3, width)).float()
    order = rng if rng.random() < 0.5 else None
    step = decide(requests, spare=(case % 2, case % 3), order=order)
    return len(requests), assert_equal_to_core(step, requests)


@pytest.mark.parametrize("part", range(10))
def test_verdicts_are_the_core_s(part):
    for case in range(12 * part, 12 * (part + 1)):
        assert verify_at_random(case)[1] == 0, f"case {case}"


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_many_verdicts_are_the_core_s(record_property):
    """Compare as many random batches as DEVICE_CASES says, from DEVICE_FROM on."""
    first, count = (int(os.environ.get(f"DEVICE_{name}", DEFAULTS[name])) for name in DEFAULTS)
    verdicts = near = 0
    for case in range(first, first + count):
        more, close = verify_at_random(case)
        verdicts, near = verdicts + more, near + close
    record_property("verdicts", verdicts)
    record_property("near", near)
    print(f"cases {first} to {first + count - 1}: {verdicts} verdicts, {near} near an edge")
    # One in 2^45 is expected for each token that is drawn.
    assert near <= 1


def test_one_batch_holds_all_cores(rng):
    requests = random_requests(rng, CORES, count=6, vocab=130)
    assert assert_equal_to_core(decide(requests), requests) == 0


def test_requests_that_are_not_used_stay_as_they_are(rng):
    requests = random_requests(rng, CORES, count=1, vocab=17)
    before = step_of(requests).outcomes
    after = decide(requests).outcomes
    for old, new in zip(before, after, strict=True):
        assert len(old) == 3
        assert torch.equal(old[1:], new[1:])


def test_no_bit_depends_on_companions_or_launches(rng, monkeypatch):
    requests = random_requests(rng, CORES, count=4, vocab=2500, nodes=3)
    whole = decide(requests).outcomes
    order = rng.permutation(4).tolist()
    monkeypatch.setattr(race, "PAIRS", 256)
    monkeypatch.setattr(walk, "LANES", 2)
    monkeypatch.setattr(stats, "GROUP", 4)
    found = decide([requests[b] for b in order]).outcomes
    for name in layout.Outcomes._fields:
        for place, b in enumerate(order):
            one, other = getattr(whole, name)[b], getattr(found, name)[place]
            assert torch.equal(one, other), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_bad_rows_are_errors_only_where_the_walk_comes(dtype):
    good = torch.full((4, 5), -4.0, dtype=dtype)
    for node, token in enumerate((1, 2, 4, 0)):
        good[node, token] = 4.0
    bad = {torch.nan: layout.NOT_FINITE, torch.inf: layout.NOT_FINITE, -torch.inf: layout.EMPTY}
    requests, wanted = [], []
    for core in CORES:
        for value, status in bad.items():
            for node in range(4):
                logits = good.clone()
                logits[node, slice(None) if value == -torch.inf else 3] = value
                params = mv.SamplingParams(temperature=0.0 if core == "greedy" else 0.1)
                tree = [-1, 0, 1, 2], [-1, 1, 2, 3], "deterministic"
                requests.append(Request(*tree, logits, params, core, seed=3, position=3))
                # The third token is refused, so the last row is not read.
                wanted.append((status, node) if node < 3 else (0, -1))
    step = decide(requests, spare=(0, 0))
    assert assert_equal_to_core(step, requests) == 0
    found = step.outcomes
    assert list(zip(found.status.tolist(), found.fault.tolist(), strict=True)) == wanted


@pytest.mark.parametrize("rule", ["token", "block"])
def test_a_sampled_token_without_probability_is_an_error(rule):
    logits, q = torch.zeros((4, 5)), torch.full((4, 5), 0.2)
    tree = [-1, 0, 1, 2], [-1, 1, 2, 3], "chain"
    own = {"seed": 3, "position": 3, "drafter": q}
    requests = [Request(*tree, logits, mv.SamplingParams(), rule, **own) for _ in range(2)]
    step = step_of(requests, spare=(0, 0))
    # Of the second request, the row after node 1, so node 2; its first token is surely accepted.
    row = int(step.nodes.drafted[4 + 1])
    step.drafted.rows[row, 2], step.drafted.rows[row, 0] = 0.0, 0.4
    run(step, Workspace(step.capacity, "cpu"))
    assert step.outcomes.status.tolist() == [0, layout.ZERO_DRAFT]
    assert step.outcomes.fault.tolist() == [-1, 2]


def test_a_finite_logit_that_overflows_leaves_nothing():
    logits = torch.tensor([[1.0, 3e38, 0.0]])
    params = mv.SamplingParams(temperature=0.1)
    requests = [Request([-1], [-1], "deterministic", logits, params, "coupled", seed=3)]
    step = decide(requests, spare=(0, 0))
    assert assert_equal_to_core(step, requests) == 0
    assert step.outcomes.status.tolist() == [layout.EMPTY]


def test_rows_are_read_in_the_place_of_others(rng):
    for core in CORES:
        requests = random_requests(
            rng, [core], count=2, vocab=130, dtype=torch.bfloat16, masked=True
        )
        for request in requests:
            for node in range(0, len(request.parents), 2):
                request.shadow[node] = torch.tensor(rng.normal(0, 3, 130)).float()
        assert assert_equal_to_core(decide(requests), requests) == 0


def test_outcomes_may_have_more_levels_than_trees(rng):
    narrow = step_of(random_requests(rng, CORES, count=2, vocab=17, nodes=4), spare=(0, 0))
    wide = narrow._replace(outcomes=layout.Outcomes(*map(_widened, narrow.outcomes)))
    for step in (narrow, wide):
        run(step, Workspace(step.capacity, "cpu"))
    depth = narrow.capacity.depth
    for name, one, other in zip(
        layout.Outcomes._fields, narrow.outcomes, wide.outcomes, strict=True
    ):
        if one.dim() == 1:
            assert torch.equal(one, other)
        else:
            assert torch.equal(one, other[:, : one.shape[1]])
            assert (other[:, one.shape[1] :] == (0 if name == "logprobs" else -1)).all()
    assert wide.outcomes.path.shape[1] == depth + 21


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    more = tensor[:, :1].expand(-1, 21, *tensor.shape[2:]) if tensor.dim() > 1 else tensor[:0]
    return torch.cat([tensor, more], 1) if tensor.dim() > 1 else tensor.clone()
