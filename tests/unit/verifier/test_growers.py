"""Growers: the protocol, the drafts' laws and rows, shapes on disk, shared budgets."""

from __future__ import annotations

import json

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify import _core
from mtp_verify.verifier import growers
from mtp_verify.verifier.growers import Chain, Coupled, Fixed, Heap, Stochastic, TreeShape, Union

V = 40
TABLE = np.random.default_rng(0).normal(size=(97, V)).astype(np.float32) * 2


def rows(paths):
    """Logits after each path: any function of it."""
    return np.stack([TABLE[sum((i + 3) * t for i, t in enumerate(path, 1)) % 97] for path in paths])


def target(draft):
    return rows(
        [[int(draft.tokens[n]) for n in draft.tree.path(i)] for i in range(len(draft.tree))]
    )


NOISE = {"seed": 3, "position": 5}
SHAPE = TreeShape.by_depth(3, 2)
MAKERS = {
    "chain": lambda **kw: Chain(4, **kw),
    "iid": lambda **kw: Fixed(TreeShape.paths(3, 2), "iid", **kw),
    "swor": lambda **kw: Fixed(SHAPE, "swor", **kw),
    "top_plus_one": lambda **kw: Fixed(SHAPE, "top_plus_one", **kw),
    "mixed": lambda **kw: Fixed(SHAPE, "mixed", samples=2, **kw),
    "deterministic": lambda **kw: Fixed(SHAPE, "deterministic", **kw),
    "stochastic": lambda **kw: Stochastic(7, **kw),
    "coupled": lambda **kw: Coupled(SHAPE, **kw),
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_rule_of_the_law_takes_the_draft(name):
    draft = MAKERS[name](**NOISE).grow(rows)
    assert draft.law == ("swor" if name == "stochastic" else name)
    assert draft.num_nodes > 4
    legal = [rule["name"] for rule in mv.rules() if draft.law in rule["laws"]]
    for rule in [*legal, "auto"]:
        if rule != "greedy" and not (rule in ("token", "block") and not draft.tree.is_chain):
            verdict = mv.verify(draft, target(draft), rule=rule, **NOISE)
            assert len(verdict.tokens) == verdict.num_accepted + 1


def test_the_drafter_as_its_own_target_is_accepted_to_the_end():
    for name in ("chain", "swor", "iid"):
        draft = MAKERS[name](**NOISE).grow(rows)
        depth = max(draft.tree.depths)
        assert mv.verify(draft, target(draft), **NOISE).num_accepted == depth


def test_first_coupled_children_win_the_verifiers_race_of_the_same_rows():
    wide = np.random.default_rng(1).normal(size=(4, 3001)).astype(np.float32)
    for params in (mv.SamplingParams(), mv.SamplingParams(top_p=0.6), mv.SamplingParams(top_k=3)):
        draft = Coupled(TreeShape.by_depth(2, 1, 1), params=params, **NOISE).grow(
            lambda paths: wide[[len(path) for path in paths]]
        )
        logits = wide[np.asarray(draft.tree.depths)]
        verdict = mv.verify(draft, logits, params, rule="coupled", **NOISE)
        assert verdict.path.tolist() == [1, 3, 5]


def test_a_chain_draws_what_the_core_draws():
    params = mv.SamplingParams(temperature=0.7, top_k=9)
    draft = Chain(4, params=params, **NOISE).grow(rows)
    path = []
    for node in range(1, 5):
        drawn = _core.draw(rows([path])[0], params, NOISE["seed"], NOISE["position"], node)
        assert draft.tokens[node] == drawn
        path.append(drawn)


def test_the_protocol_step_by_step():
    grower = Fixed(TreeShape.by_depth(2, 1), root=9, **NOISE)
    assert (grower.frontier(), grower.law) == ([0], "swor")
    grower.extend(rows([[]]))
    assert grower.frontier() == [1, 2]
    assert grower.path(2) == [grower.tokens[2]]
    early = grower.finish()
    assert (early.num_nodes, early.tokens[0]) == (3, 9)
    grower.extend(rows([grower.path(1), grower.path(2)]))
    assert grower.frontier() == []
    assert grower.finish().tree.parents.tolist() == [-1, 0, 0, 1, 2]
    # What was given early is not changed by what came later.
    assert early.num_nodes == 3
    mv.verify(early, target(early), **NOISE)


def test_torch_rows_of_every_dtype():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        grower = Stochastic(6, **NOISE)
        draft = grower.grow(lambda paths: torch.from_numpy(rows(paths)).to(dtype).requires_grad_())  # noqa: B023
        assert draft.num_nodes == 7
        mv.verify(draft, torch.from_numpy(target(draft)).to(dtype), **NOISE)


def test_one_row_at_a_time_may_be_a_vector():
    chain = Chain(2, **NOISE)
    chain.extend(TABLE[0])
    chain.extend(TABLE[1])
    draft = chain.finish()
    assert (
        draft.tokens.tolist()
        == Chain(2, **NOISE).grow(lambda paths: TABLE[len(paths[0])][None]).tokens.tolist()
    )
    draft.validate()


def test_sub_vocabularies_map_columns_to_tokens():
    vocab = np.arange(V)[::-2]
    for name, make in MAKERS.items():
        draft = make(vocab=vocab, **NOISE).grow(lambda paths: rows(paths)[:, : len(vocab)])
        assert set(draft.tokens[1:].tolist()) <= set(vocab.tolist()), name
        mv.verify(draft, target(draft), **NOISE)
    with pytest.raises(mv.errors.DraftError, match="distinct"):
        Chain(2, vocab=[3, 3], **NOISE)


def test_greedy_parameters_give_a_deterministic_chain():
    draft = Chain(3, params=mv.SamplingParams(temperature=0), **NOISE).grow(rows)
    assert draft.law == "deterministic"
    assert draft.tokens[1] == rows([[]])[0].argmax()


def test_heap_takes_the_best_nodes_by_brute_force():
    def softmax(path):
        row = rows([path])[0].astype(np.float64)
        return np.exp(row - row.max()) / np.exp(row - row.max()).sum()

    level, every = [([], 1.0)], []
    for _ in range(3):
        level = [
            ([*path, token], score * q)
            for path, score in level
            for token, q in enumerate(softmax(path))
            if score * q > 1e-4
        ]
        every += level
    every.sort(key=lambda pair: -pair[1])
    heap = Heap(12, max_depth=3)
    draft = heap.grow(rows)
    best = {tuple(path) for path, _ in every[:12]}
    assert {tuple(int(draft.tokens[n]) for n in draft.tree.path(i)) for i in range(1, 13)} == best
    np.testing.assert_allclose(heap.scores, [score for _, score in every[:12]], rtol=1e-5)
    # Numbers during growth and in the draft: the same tokens.
    assert heap.tokens[heap.origins()].tolist() == draft.tokens.tolist()
    assert heap.finish(5).tokens.tolist() == draft.tokens.tolist()[:6]


def test_heap_settings():
    narrow = Heap(20, max_children=2, width=1, max_depth=4).grow(rows)
    assert max(len(narrow.tree.children(node)) for node in range(narrow.num_nodes)) == 2
    assert max(narrow.tree.depths) == 4
    cheap, dear = (
        Heap(20, max_depth=4, times=[1 + slope * n for n in range(21)]).grow(rows).num_nodes
        for slope in (0.001, 0.2)
    )
    assert dear < cheap
    ends = list(range(V))
    assert max(Heap(9, eos_ids=ends).grow(rows).tree.depths) == 1


def test_budget_goes_where_it_adds_most():
    heaps = [Heap(8, max_depth=3) for _ in range(3)]
    for shift, heap in enumerate(heaps):
        heap.grow(lambda paths: rows([[shift, *path] for path in paths]))  # noqa: B023
    drafts = growers.share(heaps, 10)
    assert sum(draft.num_nodes - 1 for draft in drafts) == 10
    taken = [
        s for heap, d in zip(heaps, drafts, strict=True) for s in heap.scores[: len(d.tree) - 1]
    ]
    left = [
        s for heap, d in zip(heaps, drafts, strict=True) for s in heap.scores[len(d.tree) - 1 :]
    ]
    assert min(taken) >= max(left)
    assert all(draft.num_nodes >= 3 for draft in growers.share(heaps, 10, minimum=2))
    with pytest.raises(mv.errors.ParamsError, match="budget"):
        growers.allocate([[0.5], [0.5]], 1, minimum=1)


def test_union_keeps_the_hits_and_draws_beside_them():
    hits = growers.merge([mv.Draft.chain([1, 2, 3]), mv.Draft.chain([1, 5])])
    assert hits.tree.parents.tolist() == [-1, 0, 1, 2, 1]
    union = Union(hits, [1, 1], max_nodes=8, **NOISE)
    draft = union.grow(rows)
    assert (draft.law, draft.num_nodes) == ("mixed", 8)
    paths = {tuple(int(draft.tokens[n]) for n in draft.tree.path(i)) for i in range(8)}
    assert {(1,), (1, 2), (1, 2, 3), (1, 5)} < paths
    verdict = mv.verify(draft, target(draft), **NOISE)
    assert verdict.rule == "lifted_hu"
    with pytest.raises(mv.errors.DraftError, match="deterministic"):
        Union(MAKERS["swor"](**NOISE).grow(rows), [1], **NOISE)
    with pytest.raises(mv.errors.DraftError, match="at least one"):
        growers.merge([])
    alone = Union(mv.Draft.chain([]), [], **NOISE)
    assert (alone.frontier(), alone.finish().num_nodes) == ([], 1)


def test_a_shape_is_cut_by_levels_and_nodes():
    shape = TreeShape.by_depth(2, 2, 1)
    assert shape.cut(99) is shape
    assert shape.cut(99, 2).tree.parents.tolist() == [-1, 0, 0, 1, 1, 2, 2]
    assert shape.cut(3, 2).tree.parents.tolist() == [-1, 0, 0, 1]
    assert shape.cut(0).tree.parents.tolist() == [-1]
    assert shape.cut(9, 0).tree.parents.tolist() == [-1]
    assert (
        shape.num_paths,
        TreeShape.by_depth(2, 1, 1).num_paths,
        TreeShape.stem(3).num_paths,
    ) == (
        0,
        2,
        1,
    )


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    "make", [TreeShape.paths, lambda k, n: TreeShape.by_depth(k, *[1] * (n - 1))]
)
def test_paths_of_one_length_stay_such(make, count):
    for budget in range(1, 3 * count + 2):
        for depth in range(1, 5):
            found = make(count, 3).cut(budget, depth)
            assert found.num_paths == min(count, budget)
            length = max(1, min(3, depth, budget // count))
            assert found.tree.num_nodes - 1 == length * found.num_paths <= budget


def test_shapes_are_saved_and_loaded(tmp_path):
    path = tmp_path / "shape.json"
    shape = TreeShape.optimal([0.6, 0.2, 0.1], max_nodes=6, max_depth=3)
    assert shape.accepted == pytest.approx(202 / 125)
    shape.save(path)
    assert TreeShape.load(path) == shape
    for text in ("", "[]", '{"format": "other"}', json.dumps({"format": "mtp-verify shape"})):
        path.write_text(text)
        with pytest.raises(mv.errors.ParamsError, match="shape"):
            TreeShape.load(path)
    path.write_text(json.dumps({"format": "mtp-verify shape", "version": 1, "parents": [-1, 4]}))
    with pytest.raises(mv.errors.DraftError, match="parent 4"):
        TreeShape.load(path)
    path.write_text("[" * 100_000)
    with pytest.raises(mv.errors.ParamsError, match="not JSON"):
        TreeShape.load(path)
    fine = {"format": "mtp-verify shape", "version": 1, "parents": [-1, 0]}
    for wrong in ({"accepted": "many"}, {"acceptance": [None]}, {"acceptance": [{}]}):
        path.write_text(json.dumps({**fine, **wrong}))
        with pytest.raises(mv.errors.ParamsError, match=f"{next(iter(wrong))}: found"):
            TreeShape.load(path)


def test_a_shape_is_cut_to_a_number_of_nodes():
    shape = TreeShape.by_depth(2, 2)
    assert shape.cut(3).tree.parents.tolist() == [-1, 0, 0, 1]
    assert shape.cut(0).tree.num_nodes == 1
    assert shape.cut(2**63) is shape
    for wrong in (-1, -5, 2**70, 1.5, "all"):
        with pytest.raises(mv.errors.ParamsError, match="max_nodes: found"):
            shape.cut(wrong)


def test_the_fastest_size_is_chosen_by_measured_times():
    verify_times = [1 + 0.02 * n for n in range(17)]
    sizes = {"max_nodes": 16, "max_depth": 8, "verify_times": verify_times}
    slow = TreeShape.optimal([0.8, 0.1], draft_times=[2.0 * d for d in range(9)], **sizes)
    quick = TreeShape.optimal([0.8, 0.1], draft_times=[0.05 * d for d in range(9)], **sizes)
    assert slow.tree.num_nodes == 1 < quick.tree.num_nodes
    with pytest.raises(mv.errors.ParamsError, match="one of them"):
        TreeShape.optimal([0.8], max_nodes=2, max_depth=2, draft_times=[0.0])


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Chain(-1, **NOISE), mv.errors.ParamsError, "num_tokens"),
        (lambda: Chain(1, seed=-1, position=0), mv.errors.ParamsError, "seed"),
        (lambda: Chain(1, seed=0, position=1 << 40), mv.errors.ParamsError, "position"),
        (lambda: Chain(1, eos_ids=[-3], **NOISE), mv.errors.ParamsError, "eos_ids"),
        (lambda: Fixed(SHAPE, "chain", **NOISE), mv.errors.DraftError, "one path"),
        (lambda: Fixed(SHAPE, "unknown", **NOISE), mv.errors.DraftError, "fixed shapes"),
        (lambda: Fixed(SHAPE, "nonsense", **NOISE), mv.errors.DraftError, "use one of"),
        (lambda: Heap(1 << 20), mv.errors.ParamsError, "max_nodes"),
        (lambda: Heap(4, width=0), mv.errors.ParamsError, "width"),
        (lambda: Heap(4, min_score=2.0), mv.errors.ParamsError, "min_score"),
        (lambda: Heap(4, times=[1.0, -1.0]), mv.errors.ParamsError, "times"),
        (lambda: Stochastic(4, lookahead=0, **NOISE), mv.errors.ParamsError, "lookahead"),
        (lambda: TreeShape.by_depth(1000, 1000), mv.errors.ParamsError, "nodes of a shape"),
        (lambda: TreeShape.by_depth(-1), mv.errors.ParamsError, "counts"),
        (
            lambda: TreeShape.optimal([0.9, 0.2], max_nodes=2, max_depth=1),
            mv.errors.ParamsError,
            "at most 1",
        ),
    ],
)
def test_bad_parameters_are_named(make, error, text):
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("missing", ["seed", "position"])
def test_noise_has_an_address_or_there_is_no_grower(name, missing):
    """Two drafts of one default address would share their noise; settings that draw nothing too."""
    given = {key: value for key, value in NOISE.items() if key != missing}
    with pytest.raises(TypeError, match=missing):
        MAKERS[name](**given)
    with pytest.raises(TypeError, match=missing):
        Union(mv.Draft.chain([1]), [1], **given)
    with pytest.raises(TypeError, match=missing):
        Chain(2, greedy=True, **given)


def test_rows_that_do_not_fit_leave_the_grower_as_it_was():
    grower = Stochastic(5, lookahead=1, **NOISE)
    bad = TABLE[:1].copy()
    bad[0, 7] = np.nan
    for logits, error in [
        (TABLE[:2], mv.errors.DraftError),
        (TABLE[0].astype(np.float64), mv.errors.DraftError),
        (bad, mv.errors.NumericsError),
        (np.full((1, V), -np.inf, np.float32), mv.errors.NumericsError),
    ]:
        with pytest.raises(error):
            grower.extend(logits)
        assert grower.frontier() == [0]
    grower.extend(rows([[]]))
    with pytest.raises(mv.errors.DraftError, match="40"):
        grower.extend(TABLE[:1, :8])
    whole = Stochastic(5, lookahead=1, **NOISE).grow(rows)
    assert grower.grow(rows).tokens.tolist() == whole.tokens.tolist()
