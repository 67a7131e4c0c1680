"""Rows as models have them: peaked, nearly tied, in 16 bits, with sums that are not 1."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify import _core
from mtp_verify.verifier import growers

P = np.array([0.1, 0.7, 0.15, 0.05])
PARAMS = mv.SamplingParams()
SIBLINGS = [
    ("swor", "rrsw"),
    ("swor", "traversal"),
    ("top_plus_one", "hu"),
    ("top_plus_one", "lifted_hu"),
]
# Of float32, float16 and bfloat16 rows: by how much the likeliest token leads.
GAPS = [(torch.float32, 18), (torch.float32, 36), (torch.float16, 9), (torch.bfloat16, 8)]


def logits_of(*rows):
    with np.errstate(divide="ignore"):
        return np.log(np.array(rows)).astype(np.float32)


def pairs(law, q):
    """Every pair of children that a law can draw from the weights q, with its probability."""
    top = int(np.argmax(q))
    for first, second in itertools.permutations(range(len(q)), 2):
        if law == "swor":
            share = q[first] / q.sum() * (q[second] / np.delete(q, first).sum())
            yield [first, second], None, share
        elif second == top:
            # The drawn child is tested before the likeliest one, which the law always adds.
            yield [first, top], [False, True, False], q[first] / np.delete(q, top).sum()


def law_of_first_token(law, rule, q, p=P):
    """The exact law: over all drafts, and over the verifier's noise."""
    found = np.zeros(len(p))
    weights = q.double().numpy()
    logits = logits_of(p, *([np.full(len(p), 1 / len(p))] * 2))
    for tokens, sampled, share in pairs(law, weights):
        if share == 0:
            continue
        draft = mv.Draft(
            mv.TokenTree([-1, 0, 0]), [-1, *tokens], law, probs=q[None], sampled=sampled
        )
        for verdict, weight in _core.verdicts(draft, logits, PARAMS._core, rule):
            found[verdict.tokens[0]] += share * weight
    return found


@pytest.mark.parametrize(("law", "rule"), SIBLINGS)
@pytest.mark.parametrize(("dtype", "gap"), GAPS)
def test_what_is_left_of_a_peaked_row_is_the_targets(law, rule, dtype, gap):
    q = torch.tensor([0.0, -gap, -gap - 1, -gap - 2]).softmax(0).to(dtype)
    found = law_of_first_token(law, rule, q)
    assert np.abs(found - P).sum() / 2 < 1e-6


@pytest.mark.parametrize("temperature", [0.2, 1.0])
@pytest.mark.parametrize(("law", "rule"), SIBLINGS)
def test_growers_at_low_temperatures_leave_the_targets_law(law, rule, temperature):
    """4,000 steps: a total variation of 0.1 is found, and 0.06 is seen once in 10^9 runs."""
    warm = mv.SamplingParams(temperature=temperature)
    row = np.float32([0, -8, -8.2, -8.4]) if temperature < 1 else np.float32([0, -36, -37, -38])
    target = np.float32(temperature) * logits_of(P, *([np.full(4, 0.25)] * 2))
    shape = growers.TreeShape.by_depth(2)
    count, steps = np.zeros(4), 4000
    for seed in range(steps):
        grower = growers.Fixed(shape, law, root=0, params=warm, seed=seed, position=7)
        draft = grower.grow(lambda paths: np.stack([row] * len(paths)))
        verdict = mv.verify(draft, target, warm, rule=rule, seed=seed, position=7)
        count[verdict.tokens[0]] += 1
    assert np.abs(count / steps - P).sum() / 2 < 0.06


def test_the_mean_of_the_accepted_of_a_peaked_row():
    """The first child is kept with 0.1; else the second, whose law is below the residual's."""
    q = torch.tensor([0.0, -18, -19, -20]).softmax(0)[None]
    draft = mv.Draft(mv.TokenTree([-1, 0, 0]), [-1, 0, 1], "swor", probs=q)
    logits = logits_of(P, P, P)
    assert mv.expected_accepted(draft, logits, rule="rrsw") == pytest.approx(1, abs=1e-6)


def random_draft(rng, law, vocab, spread):
    """A tree of any form with tokens that its law may draw, or None if there is none."""
    num_nodes = int(rng.integers(2, 7))
    parents = [-1, *(int(rng.integers(0, node)) for node in range(1, num_nodes))]
    tokens = [-1, *rng.integers(0, vocab, num_nodes - 1).tolist()]
    given = {}
    if law not in ("deterministic", "unknown"):
        q = torch.tensor(rng.normal(0, spread, (num_nodes, vocab)), dtype=torch.float32)
        dtype = (torch.float32, torch.float64, torch.bfloat16)[int(rng.integers(3))]
        given = {"probs": q.softmax(1).to(dtype), "rows": list(range(num_nodes))}
    if law == "mixed":
        given["sampled"] = [False, *rng.integers(0, 2, num_nodes - 1).astype(bool).tolist()]
    try:
        return mv.Draft(mv.TokenTree(parents), tokens, law, **given)
    except mv.MtpVerifyError:
        return None


@pytest.mark.parametrize("spread", [2.0, 20.0])
def test_what_is_asked_before_changes_no_answer(spread):
    """Enumerating a rule replays its questions in other orders."""
    rng = np.random.default_rng(16)
    rules = {rule["name"]: [law for law in rule["laws"] if law != "coupled"] for rule in mv.rules()}
    del rules["greedy"]
    tried = 0
    while tried < 3000:
        rule = str(rng.choice(list(rules)))
        law, vocab = str(rng.choice(rules[rule])), int(rng.integers(2, 6))
        draft = random_draft(rng, law, vocab, spread)
        if draft is None or rule == "gbv":  # gbv takes paths of one length alone.
            continue
        tried += 1
        logits = rng.normal(0, spread, (draft.num_nodes, vocab)).astype(np.float32)
        found = mv.expected_accepted(draft, logits, rule=rule)
        assert 0 <= found <= draft.num_nodes - 1
        assert found == mv.expected_accepted(draft, logits, rule=rule)


@pytest.mark.parametrize(
    ("row", "temperature"),
    [([1.5e9, 1.5e9 - 128, 0], 1.0), ([1.0, 1.0 - 2**-20, 0], 1e-8), ([-3e38, 3e38, 0], 1.0)],
)
def test_logits_that_are_far_from_0_keep_their_order(row, temperature):
    params = mv.SamplingParams(temperature=temperature)
    draft = mv.Draft(mv.TokenTree([-1]), [-1])
    for seed in range(50):
        verdict = mv.verify(draft, np.float32([row]), params, seed=seed, position=0)
        assert verdict.tokens.tolist() == [int(np.argmax(row))]


@pytest.mark.parametrize("low", [-1e9, -(2.0**20) - 1, np.finfo(np.float32).min])
@pytest.mark.parametrize("largest", [0.0, 1.0, -3.0])
def test_tokens_that_are_masked_by_low_logits_change_no_bit(low, largest, rng):
    """Where the first block is far from 0 and the row is not, nothing is taken off its logits."""
    row = np.float32(rng.normal(-20, 3, (1, 5000)))
    row[0, 3000] = largest
    row[0, :2048] = low
    masked = np.where(row == np.float32(low), -np.inf, row).astype(np.float32)
    wanted = _core.shaped_row(masked, PARAMS)
    np.testing.assert_array_equal(_core.shaped_row(row, PARAMS), wanted)


def test_callers_that_flush_denormals_change_nothing():
    rows = [np.float32([row]) for row in ([0.0] * 7, [-1e-40] * 7, [1e-40, 2e-40, 0])]
    draft = mv.Draft(mv.TokenTree([-1]), [-1])

    def found():
        return [
            mv.verify(draft, row, params, seed=3, position=0).tokens.tolist()
            for row in rows
            for params in (mv.SamplingParams(temperature=0), PARAMS)
        ]

    wanted = found()
    assert torch.set_flush_denormal(True)
    try:
        assert found() == wanted
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("temperature", [4e38, 1e300, 1e-46, 1e-39])
def test_temperatures_that_are_no_normal_float32_are_refused(temperature):
    draft = mv.Draft(mv.TokenTree([-1]), [-1])
    with pytest.raises(mv.errors.ParamsError, match="temperature"):
        mv.verify(
            draft, np.float32([[0, -np.inf]]), mv.SamplingParams(temperature=temperature),
            seed=0, position=0,
        )  # fmt: skip


@pytest.mark.parametrize("total", [0.9991, 1.0009, 0.998])
@pytest.mark.parametrize(("law", "rule"), SIBLINGS)
def test_rows_of_probabilities_are_divided_by_their_sums(law, rule, total):
    q = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64) * total
    found = law_of_first_token(law, rule, q)
    assert np.abs(found - P).sum() / 2 < 1e-6


@pytest.mark.parametrize("total", [0.998, 0.95])
def test_whether_a_row_is_refused_does_not_depend_on_the_noise(total):
    """A row that sums to 0.998 is taken, one of 0.95 is not: whatever is drawn and accepted."""
    q = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64) * total
    logits = np.float32([[3, 0, 0, 0]] * 2)
    outcomes = set()
    for seed in range(64):
        draft = mv.Draft.chain([seed % 3], q)
        try:
            mv.verify(draft, logits, rule="token", seed=seed, position=0)
            outcomes.add("taken")
        except mv.errors.NumericsError:
            outcomes.add("refused")
    assert outcomes == {"taken" if total > 0.99 else "refused"}


def test_params_of_another_class_are_named():
    draft = mv.Draft(mv.TokenTree([-1]), [-1])
    with pytest.raises(mv.errors.ParamsError, match="params"):
        mv.verify(draft, np.zeros((1, 4), np.float32), {"temperature": 1.0}, seed=0, position=0)


@pytest.mark.parametrize("rule", ["block", "traversal"])
def test_a_row_that_allows_nothing_is_met_as_often_as_its_token_is_drawn(rule):
    """Lifted rules read rows of nodes before they keep them: with 1/2 here, for 1/10.

    2,000 steps: 1/10 is off by 0.04 once in 10^9 runs.
    """
    q = torch.tensor([[0.5, 0.5, 0.0]] * 2)
    law = "chain" if rule == "block" else "swor"
    rows = logits_of([0.1, 0.5, 0.4], [1.0] * 3, [1.0] * 3)
    count, rng = 0, np.random.default_rng(12)
    for seed in range(2000):
        token = int(rng.integers(2))
        tokens = [-1, token, int(rng.integers(2))]
        draft = mv.Draft(mv.TokenTree([-1, 0, 1]), tokens, law, probs=q, rows=[0, 1, -1])
        rows[1] = -np.inf if token == 0 else 0
        try:
            mv.verify(draft, rows, rule=rule, seed=seed, position=0)
        except mv.errors.NumericsError as error:
            count += error.slug == "row_empty"
    assert abs(count / 2000 - 0.1) < 0.04
