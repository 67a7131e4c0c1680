"""Growers under random rows and settings: trees of their law, within budget, reproducible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mtp_verify as mv
from mtp_verify.testing import draw_logits
from mtp_verify.verifier import growers
from mtp_verify.verifier.growers import Chain, Coupled, Fixed, Heap, Stochastic, TreeShape, Union

LAWS = ["iid", "swor", "top_plus_one", "mixed", "deterministic"]


def table(seed, vocab):
    """Rows with ties, peaks and -inf; at least one token is left in each."""
    rng = np.random.default_rng(seed)
    rows = (rng.integers(-8, 8, size=(53, vocab)) / 2).astype(np.float32)
    rows[rng.random(rows.shape) < 0.3] = -np.inf
    rows[:, int(rng.integers(vocab))] = 0.0
    rows[::2], _ = draw_logits(rng, vocab, 27)
    return lambda paths: np.stack(
        [rows[sum((i + 5) * t for i, t in enumerate(path, 1)) % 53] for path in paths]
    )


def makers(shape, nodes, depth, counts, hits):
    noise = {"seed": 8, "position": 2}
    yield lambda **kw: Chain(depth, min_path=0.01, **noise, **kw), depth
    for law in LAWS:
        size = shape.tree.num_nodes - 1
        yield lambda law=law, **kw: Fixed(shape, law, samples=2, **noise, **kw), size
    yield lambda **kw: Stochastic(nodes, max_depth=depth, **noise, **kw), nodes
    yield lambda **kw: Heap(nodes, max_depth=depth, max_children=3, **kw), nodes
    yield lambda **kw: Coupled(shape, **noise, **kw), shape.tree.num_nodes - 1
    most = max(nodes, hits.num_nodes - 1)
    yield lambda **kw: Union(hits, counts, max_nodes=nodes, **noise, **kw), most


@given(
    seed=st.integers(0, 1 << 20),
    vocab=st.integers(1, 9),
    counts=st.lists(st.integers(0, 4), max_size=3),
    nodes=st.integers(0, 12),
    depth=st.integers(0, 4),
    temperature=st.sampled_from([0.0, 0.05, 0.7, 1.0]),
    top_k=st.sampled_from([0, 2]),
    eos=st.booleans(),
)
def test_drafts_are_trees_of_their_law_within_their_budget(
    seed, vocab, counts, nodes, depth, temperature, top_k, eos
):
    source = table(seed, vocab)
    shape = TreeShape.by_depth(*counts)
    params = mv.SamplingParams(temperature=temperature, top_k=top_k)
    ends = {0} if eos else set()
    hits = mv.Draft.chain([t % vocab for t in range(depth)])
    for make, most in makers(shape, nodes, depth, counts, hits):
        draft = make(params=params, eos_ids=ends).grow(source)  # Its constructor checks the law.
        assert draft.num_nodes <= most + 1
        again = make(params=params, eos_ids=ends).grow(source)
        assert draft.tokens.tolist() == again.tokens.tolist()
        assert draft.tree == again.tree
        paths = [[int(draft.tokens[n]) for n in draft.tree.path(i)] for i in range(draft.num_nodes)]
        if draft.law != "mixed" or not isinstance(make(), Union):  # Hits stay whole.
            assert not any(token in ends for path in paths for token in path[:-1])
        rule = "coupled" if draft.law == "coupled" else "auto"
        verdict = mv.verify(draft, source(paths), rule=rule, seed=8, position=2)
        assert len(verdict.tokens) == verdict.num_accepted + 1


@given(seed=st.integers(0, 1 << 20), lookahead=st.integers(1, 9), nodes=st.integers(1, 12))
def test_lookahead_does_not_change_a_draft(seed, lookahead, nodes):
    source = table(seed, 7)
    one, many = (
        Stochastic(nodes, max_depth=3, lookahead=n, seed=1, position=0) for n in (1, lookahead)
    )
    first, second = one.grow(source), many.grow(source)
    assert first.tokens.tolist() == second.tokens.tolist()
    assert first.tree == second.tree


@given(
    rates=st.lists(st.integers(0, 10), min_size=1, max_size=3).filter(lambda r: sum(r) > 0),
    nodes=st.integers(1, 5),
    depth=st.integers(1, 3),
)
def test_the_optimal_shape_beats_every_other(rates, nodes, depth):
    rates = [rate / (2 * sum(rates)) for rate in rates]
    shape = TreeShape.optimal(rates, max_nodes=nodes, max_depth=depth)

    def accepted(parents):
        reach, rank, level = [1.0], [0] * len(parents), [0]
        for parent in parents[1:]:
            rate = rates[rank[parent]] if rank[parent] < len(rates) else 0.0
            rank[parent] += 1
            reach.append(reach[parent] * rate)
            level.append(level[parent] + 1)
        return sum(reach[1:]) if max(level) <= depth else -1.0

    def search(parents):
        yield accepted(parents)
        if len(parents) <= nodes:
            for parent in range(len(parents)):
                yield from search([*parents, parent])

    assert shape.accepted == pytest.approx(max(search([-1])))
    assert accepted(shape.tree.parents.tolist()) == pytest.approx(shape.accepted)


@given(st.lists(st.lists(st.floats(0, 1), max_size=5), min_size=1, max_size=4), st.integers(0, 12))
def test_allocation_takes_the_largest_gains(scores, budget):
    scores = [sorted(request, reverse=True) for request in scores]
    counts = growers.allocate(scores, budget)
    every = sorted((s for request in scores for s in request), reverse=True)
    taken = sum(sum(request[:n]) for request, n in zip(scores, counts, strict=True))
    assert sum(counts) == min(budget, len(every))
    assert taken == pytest.approx(sum(every[:budget]))
