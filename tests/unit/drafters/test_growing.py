"""Growers on a device: the very drafts that the core's growers make of the same rows."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.drafters import Request
from mtp_verify.drafters.growing import FixedForm, Ranked
from mtp_verify.drafters.sketch import Sketch, merged
from mtp_verify.verifier import growers
from mtp_verify.verifier.growers import TreeShape
from tests.host_reads import HostReads
from tests.slow import few

CPU = torch.device("cpu")
PARAMS = {
    "plain": mv.SamplingParams(),
    "greedy": mv.SamplingParams(temperature=0.0),
    "top": mv.SamplingParams(temperature=0.4, top_k=3, top_p=0.8),
    "min_p": mv.SamplingParams(min_p=0.1, preset="vllm"),
    # Penalties are for the target's rows.
    "bias": mv.SamplingParams(logit_bias={0: 50.0}, repetition_penalty=2.0),
}
SHAPES = {
    "wide": TreeShape.by_depth(3, 2),
    "ragged": TreeShape(mv.TokenTree([-1, 0, 0, 0, 1, 1, 2, 4, 6, 6, 6])),
    "paths": TreeShape.paths(2, 3),
    "chain": TreeShape.by_depth(1, 1, 1),
}
LAWS = ["deterministic", "iid", "swor", "top_plus_one", "chain", "coupled"]
FILLED = [
    pair for pair in itertools.product(LAWS, SHAPES) if pair[0] != "chain" or pair[1] == "chain"
]
SIZES = (2, 9)
SPREADS = (0.0, 2.0, 90.0)
ENDS = [frozenset(), frozenset({0, 3, 9})]


def test_nothing_is_read_on_the_host():
    drafts = [Sketch.of(random_draft(np.random.default_rng(1), 9), CPU) for _ in range(2)]
    request, rows = request_of(ends=ENDS[1]), torch.randn(1, 9).repeat(9, 1)
    shape = SHAPES["ragged"].tree
    forms = [
        FixedForm(shape, law, PARAMS["top"], request, None, CPU) for law in LAWS if law != "chain"
    ]
    forms.append(FixedForm(mv.TokenTree([-1, 0, 1]), "chain", PARAMS["plain"], request, None, CPU,
                           min_path=0.1, min_confidence=0.1))  # fmt: skip
    forms.append(Ranked(6, 3, 3, PARAMS["plain"], request, None, CPU, min_score=0.01))
    with HostReads() as reads:
        merged(drafts, 5)
        for form in forms:
            while form.size:
                form.extend(rows[: form.size])
            form.finish()
    assert reads.places == []


def rows_for(size, seed, spread):
    """Rows by the token path, as a model gives them."""

    def row(path):
        generator = torch.Generator().manual_seed(hash((seed, *path)) % (1 << 31))
        return spread * torch.randn(size, generator=generator)

    return row


def request_of(seed=7, position=11, ends=frozenset()):
    return Request(0, [1] * (position + 1), 1, seed=seed, eos_ids=ends)


def run(form, row):
    """Lead a grower on a device; its places are read by the test alone."""
    paths = [[]]
    rows = row([])[None]
    while True:
        form.extend(rows)
        if not form.size:
            break
        above = form.above.tolist() if isinstance(form.above, torch.Tensor) else form.above
        pairs = zip(above, form.tokens.tolist(), strict=True)
        paths = [[*paths[place], token] for place, token in pairs]
        rows = torch.stack([row(path) for path in paths])
    return form.finish()


def on_host(sketch, vocab=None):
    sketch = replace(sketch, vocab=vocab)
    return sketch.draft(1, sketch.table.numpy(), sketch.logits)


def assert_same(found, wanted):
    assert found.law == wanted.law
    assert found.tree.parents.tolist() == wanted.tree.parents.tolist()
    assert found.tokens.tolist() == wanted.tokens.tolist()


def verdicts(draft, size):
    """Verdicts that depend on which nodes were sampled, and from which rows."""
    rows = torch.randn(draft.num_nodes, size, generator=torch.Generator().manual_seed(3))
    return mv.verify_batch([draft] * 8, rows.repeat(8, 1), seeds=range(8), positions=[5] * 8)


@pytest.mark.parametrize("ends", [*few(ENDS[:1], []), ENDS[1]], ids=["", "ends"])
@pytest.mark.parametrize("name", few(PARAMS, ["top"]))
@pytest.mark.parametrize(("law", "shape"), FILLED)
def test_a_fixed_shape_is_filled_as_on_the_host(law, shape, name, ends):
    tree = SHAPES[shape].tree
    params = PARAMS[name]
    for size, spread in itertools.product(SIZES, SPREADS):
        row, request = rows_for(size, 5, spread), request_of(seed=2**64 - size, ends=ends)
        own = {"root": 1, "eos_ids": ends, "params": params, "seed": request.seed, "position": 11}
        if law == "coupled":
            grower = growers.Coupled(SHAPES[shape], **own)
        else:
            grower = growers.Fixed(SHAPES[shape], law, **own)
        wanted = grower.grow(lambda paths, row=row: torch.stack([row(path) for path in paths]))
        sketch = run(FixedForm(tree, law, params, request, None, CPU), row)
        found = on_host(sketch)
        assert_same(found, wanted)
        assert verdicts(found, size) == verdicts(wanted, size)
        assert sketch.num_nodes >= found.num_nodes


@pytest.mark.parametrize("min_score", few([0.0, 0.01, 0.3, 1.0], [0.0, 0.3]))
@pytest.mark.parametrize("name", few(PARAMS, ["plain", "top"]))
@pytest.mark.parametrize("limits", [(1, 1, 1), (6, 3, 2), (9, 9, 9), (12, 4, 1), (5, 2, 8)])
def test_the_best_nodes_are_those_of_the_host(limits, name, min_score):
    nodes, depth, children = limits
    params = PARAMS[name]
    for size, spread, ends in itertools.product(SIZES, SPREADS, ENDS):
        row, request = rows_for(size, 6, spread), request_of(ends=ends)
        grower = growers.Heap(
            nodes, max_depth=depth, max_children=children, min_score=min_score, root=1,
            eos_ids=ends, params=params,
        )  # fmt: skip
        wanted = grower.grow(lambda paths, row=row: torch.stack([row(path) for path in paths]))
        form = Ranked(*limits, params, request, None, CPU, min_score=min_score)
        sketch = run(form, row)
        found = on_host(sketch)
        assert_same(found, wanted)
        assert max(found.tree.depths) <= sketch.bounds[0]


@pytest.mark.parametrize("min_path", few([0.0, 0.05, 0.4, 1.0], [0.0, 0.4]))
@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("name", few(PARAMS, ["plain", "top"]))
def test_a_chain_stops_where_it_does_on_the_host(name, greedy, min_path):
    params, law = PARAMS[name], "deterministic" if greedy else "chain"
    for size, spread, ends in itertools.product(SIZES, SPREADS, ENDS):
        row, request = rows_for(size, 8, spread), request_of(ends=ends)
        grower = growers.Chain(
            5, greedy=greedy, min_path=min_path, root=1, eos_ids=ends, params=params, seed=7,
            position=11,
        )  # fmt: skip
        wanted = grower.grow(lambda paths, row=row: torch.stack([row(path) for path in paths]))
        tree = mv.TokenTree(range(-1, 5))
        form = FixedForm(tree, law, params, request, None, CPU, min_path=min_path)
        assert_same(on_host(run(form, row)), wanted)


@pytest.mark.parametrize("law", ["swor", "coupled", "deterministic", "top_plus_one"])
def test_columns_may_stand_for_other_tokens(law):
    vocab = np.array([3, 4, 9, 30, 31, 32, 60, 7])
    words = torch.from_numpy(vocab)
    row, request = rows_for(len(vocab), 9, 2.0), request_of(ends=frozenset({31}))
    own = {"root": 1, "eos_ids": [31], "seed": 7, "position": 11, "vocab": vocab}
    shape = SHAPES["wide"]
    grower = growers.Coupled(shape, **own) if law == "coupled" else growers.Fixed(shape, law, **own)
    wanted = grower.grow(lambda paths: torch.stack([row(path) for path in paths]))
    sketch = run(FixedForm(shape.tree, law, mv.SamplingParams(), request, words, CPU), row)
    assert_same(on_host(sketch, vocab), wanted)


def random_draft(generator, size):
    count = int(generator.integers(1, size))
    parents = [-1]
    tokens: list[int] = [1]
    taken = set()
    while len(parents) <= count:
        pair = int(generator.integers(0, len(parents))), int(generator.integers(0, 4))
        if pair not in taken:
            taken.add(pair)
            parents.append(pair[0])
            tokens.append(pair[1])
    return mv.Draft(mv.TokenTree(parents), tokens)


def test_drafts_are_merged_as_on_the_host():
    generator = np.random.default_rng(0)
    for _ in range(60):
        drafts = [random_draft(generator, 9) for _ in range(int(generator.integers(1, 4)))]
        limit = int(generator.integers(1, 16))
        wanted = growers.merge(drafts, max_nodes=limit)
        sketches = [Sketch.of(draft, CPU) for draft in drafts]
        sketch = merged(sketches, limit)
        assert_same(on_host(sketch), wanted)
        # What was merged may be merged again.
        again = growers.merge([wanted, drafts[0]], max_nodes=limit)
        assert_same(on_host(merged([sketch, sketches[0]], limit)), again)
