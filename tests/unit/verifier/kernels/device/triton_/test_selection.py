"""Places order tokens as a sort does, and a crossing is where running sums reach a goal."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from mtp_verify.verifier.kernels.device.triton_ import selection

BITS = 11
SIZE = 64
# Signed zeros, neighbours, subnormal numbers, the ends of float32.
LOGITS = st.one_of(
    st.floats(width=32, allow_nan=False),
    st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2**-23, -1.0, 1e-45, -1e-45, 3.4e38, -3.4e38, -np.inf]),
)


@triton.jit
def place(y, tokens, out, cuts, ends, N: tl.constexpr, TOKEN_BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, N)
    order = selection.order_of(tl.load(y + at), tl.load(tokens + at), TOKEN_BITS)
    cut, end = selection.end_of(order, TOKEN_BITS)
    tl.store(out + at, order)
    tl.store(cuts + at, cut)
    tl.store(ends + at, end)


@triton.jit
def cross(order, measure, low, high, goal, out, N: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, N)[None, :]
    places, measures = tl.load(order + at), tl.load(measure + at)
    bottom, top, wanted = tl.load(low), tl.load(high), tl.load(goal)
    tl.store(out, selection.crossing(places, measures, bottom, top, wanted))


@given(st.lists(LOGITS, min_size=SIZE, max_size=SIZE), st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_places_order_tokens_and_give_them_back(logits, random) -> None:
    y = torch.tensor(logits, dtype=torch.float32)
    tokens = torch.tensor(random.sample(range(2**BITS), SIZE), dtype=torch.int32)
    order, cuts, ends = torch.zeros(SIZE, dtype=torch.int64), y.clone(), tokens.clone()
    place[1,](y, tokens, order, cuts, ends, N=SIZE, TOKEN_BITS=BITS)
    assert order.argsort().flip(0).tolist() == np.lexsort((tokens, -y.double().numpy())).tolist()
    assert torch.equal(cuts, y + 0.0)
    assert torch.equal(ends, tokens + 1)


@given(
    st.lists(st.integers(-(2**40), 2**40), min_size=SIZE, max_size=SIZE, unique=True),
    st.lists(st.integers(0, 2**50), min_size=SIZE, max_size=SIZE),
    st.floats(0, 1.1),
)
@settings(max_examples=40)
def test_a_crossing_is_where_running_sums_reach_the_goal(places, measures, share) -> None:
    order, measure = torch.tensor(places), torch.tensor(measures)
    goal = int(share * sum(measures))
    ranked = order.argsort(descending=True)
    reached = np.flatnonzero(np.cumsum(measure[ranked].numpy()) >= goal)
    # Below all of them lies the place that is returned if the goal is beyond all sums.
    low, high = min(places) - 5, max(places)
    wanted = int(order[ranked[int(reached[0])]]) if len(reached) else low
    out = torch.zeros(1, dtype=torch.int64)
    one = [torch.tensor([value]) for value in (low, high, goal)]
    cross[1,](order, measure, *one, out, N=SIZE)
    assert int(out) == wanted
