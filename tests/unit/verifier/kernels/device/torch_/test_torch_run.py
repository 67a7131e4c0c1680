"""Steps in torch operators decide what the core decides, for every law, rule, source and shape."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.verifier.kernels.device import layout
from mtp_verify.verifier.kernels.device.torch_ import Workspace, run
from tests import steps
from tests.random_requests import CORES, DTYPES, LAWS, random_request, random_shaping

if TYPE_CHECKING:
    from mtp_verify.verifier.words import Law

# Shorter than a lane's stripe, no multiple of anything, a block and one more, several blocks.
WIDTHS = (1, 2, 7, 33, 2049, 5000)


def decide(requests: list[steps.Request], **options: Any) -> layout.Step:
    step = steps.step_of(requests, **options)
    run(step, Workspace(step.capacity))
    return step


def shaping(rng: np.random.Generator) -> mv.SamplingParams:
    return random_shaping(
        rng, temperature=(0.0, 0.4, 1.0, 1.7), top_k=(0, 1, 4, 5000), top_p=(1.0, 0.5, 0.95),
        min_p=(0.0, 0.05, 1.0),
    )  # fmt: skip


def many(rng: np.random.Generator, count: int, vocab: int, **options: Any) -> list[steps.Request]:
    return [
        random_request(
            rng,
            LAWS[rng.integers(len(LAWS))],
            CORES[rng.integers(len(CORES))],
            vocab=vocab,
            near=(0.0, 1e-6, 0.5, 2.0),
            spread=float(rng.choice([0.1, 2.0, 8.0])),
            **options,
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("law", LAWS)
def test_every_law_and_rule(rng: np.random.Generator, law: Law, core: str) -> None:
    requests = [random_request(rng, law, core, vocab=11, nodes=9) for _ in range(8)]
    assert steps.assert_equal_to_core(decide(requests), requests) == 0


@pytest.mark.parametrize("vocab", WIDTHS)
@pytest.mark.parametrize("is_logits", [False, True])
def test_every_shaping_dtype_and_width(
    rng: np.random.Generator, vocab: int, is_logits: bool
) -> None:
    for dtype in DTYPES:
        requests = [
            request
            for _ in range(4)
            for request in many(
                rng, 2, vocab, params=shaping(rng), dtype=dtype, is_logits=is_logits
            )
        ]
        assert steps.assert_equal_to_core(decide(requests), requests) == 0


@pytest.mark.parametrize("is_logits", [False, True])
def test_sub_vocabularies_and_masks(rng: np.random.Generator, is_logits: bool) -> None:
    for vocab in (5, 40, 2100):
        columns = rng.permutation(vocab)[: 2 * vocab // 3 + 1].tolist()
        requests = many(rng, 12, vocab, columns=columns, masked=True, is_logits=is_logits)
        steps.assert_equal_to_core(decide(requests), requests)


@pytest.mark.parametrize("core", ["topdown", "lifted"])
def test_deep_chains_and_wide_trees(rng: np.random.Generator, core: str) -> None:
    path = list(range(-1, 40))
    chain = random_request(rng, "chain", core, parents=path, near=(0.01,))
    branches = [-1, *[0] * 6, *[1] * 5, *[3] * 4, *[12] * 3, *[16] * 3]
    wide = random_request(rng, "swor", core, parents=branches, near=(3.0,))
    assert len(wide.parents) > 12
    alone = random_request(rng, "iid", core, nodes=0)
    requests = [
        replace(request, start=start)
        for request, start in zip((alone, chain, wide, alone), (0, 7, 1 << 40, 3), strict=True)
    ]
    assert steps.assert_equal_to_core(decide(requests), requests) == 0


def test_neither_order_nor_company_changes_a_bit(rng: np.random.Generator) -> None:
    requests = many(rng, 9, 40)
    together = decide(requests).outcomes
    order = rng.permutation(len(requests))
    shuffled = decide([requests[i] for i in order]).outcomes
    for place, request in enumerate(order):
        for name in ("num_accepted", "logprobs", "margin", "tokens"):
            one = getattr(together, name)[request]
            assert torch.equal(one, getattr(shuffled, name)[place])
    for b, request in enumerate(requests):
        alone = decide([request], spare=(0, 0)).outcomes
        count = int(alone.num_accepted[0]) + 1
        assert torch.equal(alone.logprobs[0, :count], together.logprobs[b, :count])
        assert torch.equal(alone.margin[0], together.margin[b])


def test_rows_are_worked_on_in_any_parts(rng: np.random.Generator) -> None:
    step = steps.step_of(many(rng, 6, 2100, params=mv.SamplingParams(top_p=0.9)))
    other = steps.again(step)

    class InOnes(Workspace):
        def parts(self, count: int, width: int) -> Any:
            del width
            return (slice(i, i + 1) for i in range(count))

    run(step, Workspace(step.capacity))
    run(other, InOnes(step.capacity))
    for one, two in zip(step.outcomes, other.outcomes, strict=True):
        assert torch.equal(one, two)


def test_a_step_s_memory_serves_other_data(rng: np.random.Generator) -> None:
    requests = [random_request(rng, "chain", "lifted", vocab=30) for _ in range(5)]
    step = steps.step_of(requests)
    workspace = Workspace(step.capacity)
    run(step, workspace)
    steps.assert_equal_to_core(step, requests)
    for request in requests:
        # Of the same memory that the step reads: it stands there in the opposite order.
        request.logits.copy_(request.logits.flip(1))
        request.seed += 2
    assert step.drafted is not None
    logits = torch.cat([r.logits for r in requests]).flip(0)
    step.logits[steps.SPARE[1] :].copy_(logits)
    step.requests.seed[: len(requests)] += 2
    run(step, workspace)
    steps.assert_equal_to_core(step, requests)


def test_replaced_rows_are_read_in_place_of_the_logits(rng: np.random.Generator) -> None:
    requests = many(rng, 6, 40)
    step = steps.step_of(requests)
    rows = len(step.nodes.request)
    total = rows - steps.SPARE[1]
    is_replaced = torch.from_numpy(rng.random(rows) < 0.5)
    own = step.logits[step.nodes.place.long()]
    count = int(is_replaced.sum())
    shadow_of = torch.full((rows,), -1, dtype=torch.int32)
    shadow_of[is_replaced] = torch.arange(count, dtype=torch.int32)
    logits = step.logits.clone()
    logits[step.nodes.place[is_replaced].long()] = 3.0
    step = step._replace(
        logits=logits, edited=layout.Edited(shadow=own[is_replaced], shadow_of=shadow_of)
    )
    assert 0 < count < total
    run(step, Workspace(step.capacity))
    assert steps.assert_equal_to_core(step, requests) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("core", CORES)
def test_rows_that_are_no_distributions_are_errors_where_they_are_read(
    rng: np.random.Generator, value: float, core: str
) -> None:
    requests = []
    for law in LAWS:
        for _ in range(4):
            request = random_request(rng, law, core, near=(0.3,))
            node = rng.integers(len(request.parents))
            request.logits[node, slice(None) if value == -np.inf else 3] = value
            requests.append(request)
    step = decide(requests)
    steps.assert_equal_to_core(step, requests)
    bad = step.outcomes.status[: len(requests)] > 0
    assert bad.any()
    assert not bad.all()


def test_drafter_s_rows_that_are_no_distributions(rng: np.random.Generator) -> None:
    requests = []
    for core in ("topdown", "lifted"):
        for value in (np.nan, -0.5, np.inf, 0.3):
            for _ in range(3):
                request = random_request(rng, "swor", core, near=(0.3,))
                node = rng.integers(len(request.parents))
                assert request.drafter is not None
                request.drafter[node, 3] += value
                requests.append(request)
    step = decide(requests)
    steps.assert_equal_to_core(step, requests)
    found = set(step.outcomes.status[: len(requests)].tolist())
    assert {0, layout.NOT_FINITE, layout.NOT_NORMALISED} <= found


def test_logits_that_are_far_from_zero(rng: np.random.Generator) -> None:
    for shift in (3e6, -3e6, 1e9):
        requests = many(rng, 6, 5000)
        for request in requests:
            request.logits += shift
        assert steps.assert_equal_to_core(decide(requests), requests) == 0
    # A block of a mask's least numbers before everything else.
    requests = many(rng, 6, 5000)
    for request in requests:
        request.logits[:, :2048] = torch.finfo(torch.float32).min
    steps.assert_equal_to_core(decide(requests), requests)


def test_without_float64_decisions_are_nearly_the_same(rng: np.random.Generator) -> None:
    requests = many(rng, 40, 300)
    step = steps.step_of(requests)
    exact = steps.again(step)
    workspace = Workspace(step.capacity)
    run(exact, workspace)
    workspace.wide = torch.float32
    run(step, workspace)
    # A number of 24 bits differs from one of 53 by 6e-8: no threshold of these is as near.
    assert torch.equal(step.outcomes.tokens, exact.outcomes.tokens)
    assert torch.allclose(step.outcomes.logprobs, exact.outcomes.logprobs, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_random_batches(seed: int) -> None:
    near = 0
    for number in range(1000):
        rng = np.random.default_rng([seed, number])
        vocab = int(rng.choice([*WIDTHS, 3, 16, 100]))
        columns = rng.permutation(vocab)[: 2 * vocab // 3 + 1].tolist()
        requests = many(
            rng,
            int(rng.integers(1, 9)),
            vocab,
            nodes=int(rng.choice([1, 4, 14])),
            params=shaping(rng),
            dtype=DTYPES[rng.integers(3)],
            is_logits=bool(rng.integers(2)),
            columns=columns if rng.random() < 0.3 else None,
            masked=bool(rng.random() < 0.2),
        )
        near += steps.assert_equal_to_core(decide(requests), requests)
    assert near <= 1
