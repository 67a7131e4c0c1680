"""Shaped rows value for value against the libraries that the presets are named after.

transformers: its own processors, in its own order. vLLM: the algorithm of its torch path
(`v1/sample/sampler.py`, `ops/topk_topp_sampler.py`, 0.32.0) written out. Two differences are
allowed and counted: which of several equal logits stay at the top-p cut (as many must), and rows
whose mass at the cut is within 1e-5 of top_p (their float32 sums against float64).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mtp_verify as mv
from mtp_verify.testing import draw_logits
from mtp_verify.testing.logit_rows import KINDS
from mtp_verify.verifier import reference
from mtp_verify.verifier.reference import FLOOR
from tests.property.tally import Tally

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

NEAR = 1e-5  # one of the two differences that are allowed
TALLY = Tally()
EXAMPLES = settings().max_examples  # The profile's: 100, ten times that at night.


@pytest.fixture(scope="module", autouse=True)
def _report():
    yield
    TALLY.report("shaping", ["tied at the cut", "near the cut"], 0.5)


def transformers_row(logits, params):
    """(V,) float32 logits after transformers' processors; dropped tokens are -inf."""
    from transformers.generation import logits_process as lp

    steps = [lp.TemperatureLogitsWarper(params.temperature)] if params.temperature != 1 else []
    if params.top_k > 0:
        steps.append(lp.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(lp.TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        steps.append(lp.MinPLogitsWarper(params.min_p))
    # generate() widens to float32 before it calls them.
    return lp.LogitsProcessorList(steps)(None, logits.float()[None].clone())[0]


def vllm_row(logits, params):
    """The same by vLLM's order: temperature, min-p, then top-k and top-p on one sorted copy."""
    row = logits.float() / torch.tensor(params.temperature, dtype=torch.float32)
    if params.min_p > 0:
        probs = row.softmax(-1)
        row = row.masked_fill(probs < params.min_p * probs.max(), -torch.inf)
    ascending, order = row.sort(dim=-1, descending=False)
    if params.top_k > 0:
        threshold = ascending[-min(params.top_k, len(row))]
        ascending = ascending.masked_fill(ascending < threshold, -torch.inf)
    if params.top_p < 1:
        dropped = ascending.softmax(-1).cumsum(-1) <= 1 - params.top_p
        dropped[-1] = False
        ascending = ascending.masked_fill(dropped, -torch.inf)
    return torch.empty_like(row).scatter_(-1, order, ascending)


LIBRARY = {"transformers": transformers_row, "vllm": vllm_row}


def before_top_p(logits, params):
    """The row that top-p sees, as descending (V,) float64 probabilities."""
    min_p = 0.0 if params.preset == "transformers" else params.min_p
    seen = dataclasses.replace(params, top_p=1.0, min_p=min_p)
    return np.sort(reference.shaped(logits.float().numpy(), seen))[::-1]


def assert_close(found, wanted, scaled):
    """To 1e-6 relative, beside the rounding of `logit - max` in float32, as libraries have it."""
    visible = wanted >= FLOOR
    distance = (scaled.max() - scaled.astype(np.float64))[visible]
    allowed = (1e-6 + 2.0**-24 * distance) * wanted[visible]
    assert (np.abs(found - wanted)[visible] <= allowed).all()
    assert (found[~visible] <= FLOOR * (1 + 1e-5)).all()


def check(logits, params):
    """Compares one row; counts the allowed differences."""
    TALLY["cases"] += 1
    theirs = LIBRARY[params.preset](logits, params)
    kept_by_them = theirs.isfinite().numpy()
    ours = np.asarray(mv._core.shaped_row(logits, params))
    assert ours.dtype == np.float64
    assert ours.sum() == pytest.approx(1, abs=1e-9)
    scaled = (logits.float() / torch.tensor(params.temperature, dtype=torch.float32)).numpy()
    visible = torch.softmax(theirs.double(), -1).numpy() >= FLOOR * (1 + 1e-5)
    visible |= ~kept_by_them
    kept, wanted = (ours > 0) & visible, kept_by_them & visible
    if not np.array_equal(kept, wanted):
        assert params.top_p < 1
        if kept.sum() == wanted.sum():
            # As many of the same logits: the choice among equals at the cut differs.
            TALLY["tied at the cut"] += 1
            np.testing.assert_array_equal(np.sort(scaled[kept]), np.sort(scaled[wanted]))
        else:
            TALLY["near the cut"] += 1
            fewer, more = sorted([kept, wanted], key=np.sum)
            np.testing.assert_array_equal(
                np.sort(scaled[fewer]), np.sort(scaled[more])[-fewer.sum() :]
            )
            mass = np.cumsum(before_top_p(logits, params))[fewer.sum() - 1 : more.sum() - 1]
            assert np.abs(mass - params.top_p).max() < NEAR
            return
    expected = torch.softmax(theirs.double(), -1).numpy()
    order_ours = np.lexsort((ours, scaled))[::-1]
    order_theirs = np.lexsort((expected, scaled))[::-1]
    assert_close(ours[order_ours], expected[order_theirs], scaled[order_ours])
    # The readable twin keeps exactly what the core keeps, ties included.
    twin = reference.shaped(logits.float().numpy(), params)
    if not np.array_equal((ours > 0) & visible, (twin > 0) & visible):
        TALLY["near the cut"] += 1
        mass = np.cumsum(before_top_p(logits, params))
        assert np.abs(mass - params.top_p).min() < 1e-6
    else:
        assert_close(ours, twin, scaled)


PARAMS = st.builds(
    mv.SamplingParams,
    temperature=st.sampled_from([1.0, 0.05, 0.2, 0.7, 1.5]),
    top_k=st.sampled_from([0, 1, 3, 20, 50, 5000]),
    top_p=st.sampled_from([1.0, 0.95, 0.9, 0.5, 0.1, 1e-3]),
    min_p=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    preset=st.sampled_from(["transformers", "vllm"]),
)


def random_row(seed, vocab, dtype, grid, spread):
    """A few large logits over a wide floor, some rows masked; a grid makes many ties."""
    rng = np.random.default_rng(seed)
    row = rng.normal(0, spread, vocab).astype(np.float32)
    row[rng.integers(0, vocab, 1 + vocab // 50)] += 2 * spread
    if grid:
        row = np.round(row * grid) / np.float32(grid)
    if vocab > 2 and rng.random() < 0.3:
        row[rng.integers(0, vocab, vocab // 3)] = -np.inf
        row[rng.integers(0, vocab)] = 0.0
    return torch.from_numpy(row).to(dtype)


DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@settings(max_examples=2 * EXAMPLES)
@given(
    seed=st.integers(0, 2**32 - 1),
    vocab=st.sampled_from([1, 2, 7, 100, 1023, 1025, 5000]),
    dtype=DTYPES,
    grid=st.sampled_from([0, 1, 4]),
    spread=st.sampled_from([0.5, 2.0, 6.0]),
    params=PARAMS,
)
def test_normal_rows_equal_the_librarys(seed, vocab, dtype, grid, spread, params):
    check(random_row(seed, vocab, dtype, grid, spread), params)


@settings(max_examples=2 * EXAMPLES)
@given(
    seed=st.integers(0, 2**32 - 1),
    vocab=st.sampled_from([1, 2, 7, 100, 512, 1025]),
    dtype=DTYPES,
    kind=st.sampled_from(KINDS),
    params=PARAMS,
)
def test_rows_of_models_equal_the_librarys(seed, vocab, dtype, kind, params):
    row, _ = draw_logits(np.random.default_rng(seed), vocab, kind=kind)
    check(torch.from_numpy(row[0]).to(dtype), params)


@pytest.mark.parametrize("preset", ["transformers", "vllm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shaping",
    [
        {},
        {"top_k": 50},
        {"top_p": 0.9},
        {"min_p": 0.05},
        {"top_k": 50, "top_p": 0.9},
        {"top_k": 8000, "top_p": 0.8, "min_p": 0.01},
    ],
)
def test_rows_of_fifty_thousand_tokens_equal_the_librarys(preset, dtype, shaping):
    for seed, grid, spread in [(1, 0, 3.0), (2, 8, 3.0), (3, 0, 0.3)]:
        params = mv.SamplingParams(temperature=0.7, preset=preset, **shaping)
        check(random_row(seed, 50_000, dtype, grid, spread), params)


@settings(max_examples=EXAMPLES)
@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1.0, 1.5, 2.0, -3.0, -np.inf]), min_size=1),
    params=PARAMS,
)
@example(values=[1.0, 1.0, 1.0, 1.0], params=mv.SamplingParams(top_p=0.5))
@example(values=[1.0, 1.0, 0.0], params=mv.SamplingParams(top_k=1))
def test_rows_of_ties_equal_the_librarys(values, params):
    if max(values) == -np.inf:
        values = [*values, 0.0]
    check(torch.tensor(values), params)


@pytest.mark.parametrize("preset", ["transformers", "vllm"])
def test_logits_that_become_equal_when_divided_are_ties(preset):
    # Neighbouring float32 values: temperature 1.5 maps some pairs to one quotient.
    row = np.float32(1.5) + np.arange(64, dtype=np.float32) * np.float32(2**-23)
    logits = torch.from_numpy(np.random.default_rng(0).permutation(row))
    merged = len(np.unique(row / np.float32(1.5)))
    assert merged < 64
    for top_k in range(1, 64):
        check(logits, mv.SamplingParams(temperature=1.5, top_k=top_k, preset=preset))


def test_specification_examples_of_the_two_orders():
    # Row D0: 1/2, 1/4, 1/8, 1/8. The crossing token stays; min-p before top-p leaves one token.
    logits = torch.tensor([1 / 2, 1 / 4, 1 / 8, 1 / 8]).log2() * np.log(2)
    row = reference.shaped(logits.numpy(), mv.SamplingParams(top_p=0.7))
    np.testing.assert_allclose(row, [2 / 3, 1 / 3, 0, 0], rtol=1e-6)
    params = mv.SamplingParams(top_p=0.6, min_p=0.3)
    np.testing.assert_allclose(mv._core.shaped_row(logits, params), [2 / 3, 1 / 3, 0, 0], rtol=1e-6)
    params = mv.SamplingParams(top_p=0.6, min_p=0.3, preset="vllm")
    np.testing.assert_allclose(mv._core.shaped_row(logits, params), [1, 0, 0, 0])


@settings(max_examples=EXAMPLES)
@given(
    values=st.lists(st.sampled_from([0.0, 1.0, 2.0, -np.inf]), min_size=1, max_size=2000),
    temperature=st.sampled_from([0.0, 5e-6]),
)
def test_greedy_rows_are_one_hot_at_the_lowest_maximum(values, temperature):
    logits = np.array([0.0, *values], np.float32)
    params = mv.SamplingParams(temperature=temperature, preset="vllm")
    row = np.asarray(mv._core.shaped_row(logits, params))
    assert row[np.argmax(logits)] == row.sum() == 1
    np.testing.assert_array_equal(row, reference.shaped(logits, params))
