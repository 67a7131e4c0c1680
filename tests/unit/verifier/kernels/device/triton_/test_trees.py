"""`topdown` and `lifted` in the interpreter: every law, every branch, errors where they come up."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify import _core
from mtp_verify.verifier.kernels.device import layout
from mtp_verify.verifier.kernels.device.triton_ import Workspace, run, trees
from tests.random_requests import DTYPES, SAMPLED, random_request, random_requests
from tests.steps import Request, assert_equal_to_core, step_of

RULES = ("topdown", "lifted")
# The largest number below 1 that a choice is made by.
MOST = 1 - 2.0**-53
ONE = mv.SamplingParams()


def decide(requests: list[Request], **how: Any) -> layout.Step:
    """Run the step of some requests in a workspace that held another one."""
    step = step_of(requests, **how)
    workspace = Workspace(step.capacity, "cpu")
    for tensor in (*workspace.tests, *workspace.stops, *workspace.states):
        tensor.fill_(77 if tensor.dtype == torch.int32 else torch.nan)
    run(step, workspace)
    return step


def decide_by(requests: list[Request], numbers: Any) -> layout.Outcomes:
    """Return the outcomes with numbers in place of the noise."""
    given = torch.tensor(np.array(numbers), dtype=torch.float64)
    return decide(requests, given=given, spare=(0, 0)).outcomes


def same(request: Request, count: int) -> list[Request]:
    """Return a request again and again, under seeds of their own."""
    return [replace(request, seed=seed) for seed in range(count)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", range(5))
def test_verdicts_are_the_core_s(rule, case):
    rng = np.random.default_rng([RULES.index(rule), case])
    requests = random_requests(rng, [rule], vocab=[1, 2, 17, 40, 300][case], masked=case == 3)
    step = decide(requests, spare=(case % 2, case), order=rng)
    assert assert_equal_to_core(step, requests) == 0


@pytest.mark.parametrize("law", SAMPLED)
@pytest.mark.parametrize("rule", RULES)
def test_every_law_is_decided_as_by_the_core(rule, law, rng):
    temperature = float(rng.choice([0.8, 1.0]))
    columns = sorted(rng.choice(9, 5, False).tolist()) if rng.random() < 0.4 else None
    requests = [
        random_request(
            rng, law, rule, vocab=9, nodes=7, kinds=("plain",), spread=spread,
            near=(0.0, 1e-3, 1.0), columns=columns, is_logits=temperature < 1,
            drafted_as=mv.SamplingParams(temperature=temperature),
        )
        for spread in (0.2, 1.0, 4.0)
    ]  # fmt: skip
    assert assert_equal_to_core(decide(requests), requests) == 0


def test_many_siblings_are_left_out_side_by_side(rng):
    # More than are summed together.
    target = torch.tensor(rng.normal(0, 1, (13, 40))).float()
    drafter = target + torch.tensor(rng.normal(0, 0.5, target.shape)).float()
    requests = [
        Request(
            [-1, *[0] * 12], [-1, *rng.permutation(40)[:12].tolist()], "mixed", target, ONE, rule,
            sampled=[False, *[True] * 10, *[False] * 2], drafter=drafter, drafted_as=ONE,
        )
        for rule in RULES
    ]  # fmt: skip
    assert assert_equal_to_core(decide(requests), requests) == 0


@pytest.mark.parametrize(("law", "dtype"), list(zip(["swor", "mixed", "iid"], DTYPES, strict=True)))
def test_removed_tokens_of_several_blocks_are_left_out(law, dtype, rng):
    # Children lie in both blocks, where the block that holds none keeps its sum.
    vocab = 2100
    target = torch.tensor(rng.normal(0, 1, (5, vocab)))
    target[:, [3, 500, 2047, 2048, 2099]] += 7.0
    request = random_request(
        rng, law, "lifted", vocab=vocab, nodes=4, dtype=dtype, target=target.to(dtype), near=(0.5,)
    )
    requests = [request, replace(request, rule="topdown", seed=1)]
    assert assert_equal_to_core(decide(requests), requests) == 0


SMALL = {
    "chain": ([-1, 0, 1], [-1, 0, 1], None),
    "iid": ([-1, 0, 0, 1], [-1, 0, 0, 1], None),
    "swor": ([-1, 0, 0, 0, 2], [-1, 0, 1, 2, 0], None),
    "top_plus_one": ([-1, 0, 0, 2, 2], [-1, 0, 2, 1, 0], [False, True, False, True, False]),
    "mixed": ([-1, 0, 0, 0, 3], [-1, 0, 1, 2, 1], [False, True, True, False, False]),
}


@pytest.mark.parametrize("law", SAMPLED)
@pytest.mark.parametrize("rule", RULES)
def test_given_numbers_lead_into_every_branch(rule, law, rng):
    parents, tokens, sampled = SMALL[law]
    vocab = 4 if law == "swor" else 3
    logits = rng.normal(0, 0.5, (len(parents), vocab)).astype(np.float32)
    # Sampled tokens are likelier than under the target, so that they may be rejected.
    q = rng.uniform(0.1, 0.12, (len(parents), vocab))
    for node, parent in enumerate(parents[1:], 1):
        is_sampled = sampled is None or sampled[node]
        q[parent, tokens[node]] += 0.4 if is_sampled else 0.6
    q /= q.sum(1, keepdims=True)
    request = Request(
        parents, tokens, law, torch.tensor(logits), ONE, rule,
        sampled=sampled, drafter=torch.tensor(q).float(),
    )  # fmt: skip
    draft = request.draft
    found = _core.verdicts(draft, logits, ONE._core, rule)
    # Rounding opens branches as likely as itself.
    verdicts = [(verdict, share) for verdict, share in found if share > 1e-12]
    assert abs(sum(share for _, share in verdicts) - 1) < 1e-12
    given = [_numbers(draft, rule, verdict, verdicts) for verdict, _ in verdicts]
    outcomes = decide_by(same(request, len(verdicts)), np.concatenate(given))
    assert len({tuple(verdict.path) for verdict, _ in verdicts}) >= 2
    for b, (verdict, _) in enumerate(verdicts):
        length = len(verdict.path)
        assert outcomes.num_accepted[b] == length
        assert outcomes.path[b, :length].tolist() == verdict.path.tolist()
        assert outcomes.tokens[b, : length + 1].tolist() == verdict.tokens.tolist()
        assert outcomes.status[b] == 0


def _numbers(draft: Any, rule: str, verdict: Any, verdicts: list[Any]) -> np.ndarray:
    """Return (N + 1, 2) numbers that lead to a verdict: those to accept by, those to draw by."""
    numbers = np.full((draft.num_nodes, 2), MOST)
    path, tokens = verdict.path.tolist(), verdict.tokens.tolist()
    if rule == "lifted":
        numbers[path[-1:], 0] = 0.0
    else:
        numbers[path, 0] = 0.0
    for depth, node in enumerate([0, *path]):
        last = depth == len(path)
        if not last and (rule == "lifted" or draft.sampled[path[depth]]):
            continue
        # What may be drawn after the node: verdicts that come there and accept no sampled child.
        cells: dict[int, float] = defaultdict(float)
        for other, share in verdicts:
            way = other.path.tolist()
            if way[:depth] != path[:depth]:
                continue
            onward = way[depth : depth + 1]
            if not onward or (rule == "topdown" and not draft.sampled[onward[0]]):
                cells[int(other.tokens[depth])] += share
        total = sum(cells.values())
        before = sum(share for token, share in cells.items() if token < tokens[depth])
        numbers[node, 1] = (before + cells[tokens[depth]] / 2) / total
    return numbers


@pytest.mark.parametrize("vocab", [3, 2])
def test_a_residual_that_rounding_empties_falls_back(vocab):
    # What the first rejection leaves is on the second child, but for rounding: its test is one of
    # 1 - 4e-15, and refusing it leaves nothing.
    a, b = sorted(np.random.default_rng(504).uniform(0, 1, 2))
    p, q = np.array([a, 1 - a, 1e-20]), np.array([b, 1 - b, 3e-20])
    logits = np.log(p[:vocab]).astype(np.float32)[None].repeat(3, 0)
    request = Request(
        [-1, 0, 0], [-1, 0, 1], "swor", torch.tensor(logits), ONE, "topdown",
        drafter=torch.tensor(q[None, :vocab]).float(), rows=[0, -1, -1],
    )  # fmt: skip
    verdicts = _core.verdicts(request.draft, logits, ONE._core, "topdown")
    rare = {tuple(verdict.tokens) for verdict, share in verdicts if 0 < share < 1e-12}
    low, high = [[MOST, 0.1 * a]] * 3, [[MOST, MOST]] * 3
    outcomes = decide_by(same(request, 2), low + high)
    assert outcomes.status.tolist() == [layout.FALLBACK] * 2
    # The target's row without the rejected tokens, or all of it if it has no others.
    wanted = [2, 2] if vocab == 3 else [0, 1]
    assert outcomes.tokens[:, 0].tolist() == wanted
    assert rare == {(token,) for token in wanted}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_the_decision_does_not_read_may_be_bad(rule, value, rng):
    parents, tokens = [-1, 0, 0, 2, 3], [-1, 0, 1, 2, 0]
    drafter = torch.tensor(rng.dirichlet([1.0] * 4, 5)).float()
    good = torch.tensor(rng.normal(0, 1, (5, 4))).float()
    status = layout.EMPTY if value == -torch.inf else layout.NOT_FINITE
    statuses = []
    for node in range(5):
        logits = good.clone()
        logits[node, slice(None) if value == -torch.inf else 3] = value
        requests = same(Request(parents, tokens, "swor", logits, ONE, rule, drafter=drafter), 3)
        step = decide(requests, spare=(0, 0))
        assert assert_equal_to_core(step, requests) == 0
        outcomes = step.outcomes
        failed = outcomes.status != 0
        assert (outcomes.status[failed] == status).all()
        assert (outcomes.fault[failed] == node).all()
        statuses += outcomes.status.tolist()
    assert {0, status} == set(statuses)


@pytest.mark.parametrize("rule", RULES)
def test_faults_of_the_drafter_s_rows_are_errors_where_a_test_reads_them(rule):
    logits = torch.zeros(4, 3)
    tree = [-1, 0, 1, 2], [-1, 0, 2, 1], "chain"
    good = np.array([[0.5, 0.25, 0.25]] * 3, np.float32)
    index = [0, 1, 2, -1]
    low = good.copy()
    low[1] = 0.0
    low[1, 2] = 1e-30
    scaled = good * np.float32([[1.0], [0.5], [7.0]])
    root = good * np.float32([[0.9], [1.0], [1.0]])
    cases = [(scaled, 0, -1), (root, layout.NOT_NORMALISED, 0), (low, 0, -1)]
    for rows, status, fault in cases:
        request = Request(*tree, logits, ONE, rule, drafter=torch.tensor(rows), rows=index)
        requests = same(request, 3)
        step = decide(requests, spare=(0, 0))
        assert assert_equal_to_core(step, requests) == 0
        outcomes = step.outcomes
        assert set(outcomes.status.tolist()) == {status}
        assert set(outcomes.fault.tolist()) == {fault}


@pytest.mark.parametrize("rule", RULES)
def test_a_token_that_the_drafter_cannot_have_drawn_is_an_error(rule):
    # Rows of logits are not read when a draft is made.
    drafter = torch.tensor([[0.0, 1.0, 0.0], [-torch.inf, 0.0, 0.0]])
    request = Request(
        [-1, 0, 1], [-1, 1, 0], "chain", torch.zeros(3, 3), ONE, rule,
        drafter=drafter, rows=[0, 1, -1], drafted_as=ONE,
    )  # fmt: skip
    requests = same(request, 4)
    step = decide(requests, spare=(0, 0))
    assert assert_equal_to_core(step, requests) == 0
    is_refused = step.outcomes.status == layout.ZERO_DRAFT
    assert is_refused.any()
    assert step.outcomes.fault.tolist() == torch.where(is_refused, 2, -1).tolist()


@pytest.mark.parametrize("rule", RULES)
def test_faults_are_told_by_numbers_of_their_own_trees(rule, rng):
    # The first tree has nodes of no such numbers.
    requests = [random_request(rng, "chain", rule, nodes=0)]
    for node in range(3):
        request = random_request(
            rng, "chain", rule, parents=[-1, 0, 1, 2], near=(0.01,), kinds=("plain",)
        )
        request.drafter[node, 3] = torch.nan
        requests.append(request)
    step = decide(requests)
    assert assert_equal_to_core(step, requests) == 0
    assert step.outcomes.fault[: len(requests)].max() > 0


def test_no_bit_depends_on_the_sizes_of_programs(rng, monkeypatch):
    requests = random_requests(rng, RULES, count=2, vocab=2100, nodes=3)
    whole = decide(requests).outcomes
    monkeypatch.setattr(trees, "GROUP", 1)
    monkeypatch.setattr(trees, "FOLDED", 1)
    for one, other in zip(whole, decide(requests).outcomes, strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("case", range(40))
def test_many_verdicts_are_the_core_s(case):
    rng = np.random.default_rng([case, 19])
    requests = random_requests(rng, [*RULES, "target_only"], nodes=24, masked=case % 3 == 0)
    assert assert_equal_to_core(decide(requests, order=rng), requests) == 0
