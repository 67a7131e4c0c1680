"""SGLang's tensors in and out, its semantics by an independent reference, the hook by a stand-in.

The engine itself is not needed: its kernels' contract is written down here a second time, from
what they do to given coins.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
from fractions import Fraction
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mtp_verify as mv
from mtp_verify.integrations import sglang
from mtp_verify.testing import strategies
from mtp_verify.testing.stats import l1_radius

#   0
#  / \
# 1   2        columns 3, 4 hang below 1; column 5 is not linked
# |\
# 3 4
NEXT_TOKEN = [1, 3, -1, -1, -1, -1]
NEXT_SIBLING = [-1, 2, -1, 4, -1, -1]


# ---- the reference: the engine's rule as its kernel carries it out, given coins -----------------


def reference(tokens, next_token, next_sibling, rows, coin, max_depth):
    """Return the columns of the path and the emitted tokens; thresholds are 1.

    `coin(steps)` gives the next uniform; the result changes at the `steps` only.
    """
    path, emitted, column = [0], [], 0
    residual = list(rows[0])
    while len(path) < max_depth:
        children = []
        child = next_token[column]
        while child != -1:
            children.append(child)
            child = next_sibling[child]
        if not children:
            break
        sums = list(itertools.accumulate(rows[column][tokens[child]] for child in children))
        uniform = coin(sums)
        for child, total in zip(children, sums, strict=True):
            if rows[column][tokens[child]] > 0 and uniform < total:
                break
            residual[tokens[child]] = 0
        else:
            break
        emitted.append(tokens[child])
        path.append(child)
        column, residual = child, list(rows[child])
    whole = sum(residual)
    sums = [total / whole for total in itertools.accumulate(residual)]
    uniform = coin(sums)
    return path, [*emitted, next(t for t, total in enumerate(sums) if uniform < total)]


class _MoreCoinsError(Exception):
    pass


def reference_law(*args):
    """The exact law of the reference's emitted tokens: each cell between the steps, once."""
    tokens, next_token, next_sibling, rows, max_depth = args
    law = {}

    def explore(coins, volume):
        left = list(coins)

        def coin(steps):
            if not left:
                raise _MoreCoinsError(steps)
            return left.pop(0)

        try:
            _, emitted = reference(tokens, next_token, next_sibling, rows, coin, max_depth)
        except _MoreCoinsError as more:
            inner = {step for step in more.args[0] if 0 < step < 1}
            edges = sorted({Fraction(0), Fraction(1), *inner})
            for low, high in itertools.pairwise(edges):
                explore([*coins, (low + high) / 2], volume * (high - low))
            return
        law[tuple(emitted)] = law.get(tuple(emitted), 0) + volume

    explore([], Fraction(1))
    return law


def target_law(tokens, next_token, next_sibling, rows, max_depth):
    """Sample from the target and follow the child that has the token."""
    law = {}

    def walk(column, depth, weight, emitted):
        for token, p in enumerate(rows[column]):
            if p == 0:
                continue
            child = next_token[column] if depth < max_depth else -1
            while child != -1 and tokens[child] != token:
                child = next_sibling[child]
            if child == -1:
                key = (*emitted, token)
                law[key] = law.get(key, 0) + weight * p
            else:
                walk(child, depth + 1, weight * p, (*emitted, token))

    walk(0, 1, Fraction(1), ())
    return law


def random_tree(rng, num):
    return mv.TokenTree([-1, *(int(rng.integers(0, node)) for node in range(1, num + 1))])


def distinct_tokens(rng, tree, vocab):
    tokens = np.zeros(tree.num_nodes, np.int64)
    for node in range(tree.num_nodes):
        children = tree.children(node)
        tokens[children] = rng.permutation(vocab)[: len(children)]
    return tokens


def twelfths(rng, vocab):
    weights = rng.multinomial(12, np.ones(vocab) / vocab)
    return [Fraction(int(weight), 12) for weight in weights]


@pytest.mark.parametrize("case", range(6))
def test_the_engines_rule_is_target_only_for_distinct_siblings(case):
    rng = np.random.default_rng(case)
    tree = random_tree(rng, 4)
    while max(len(tree.children(node)) for node in range(5)) > 3:
        tree = random_tree(rng, 4)
    tokens = distinct_tokens(rng, tree, 3).tolist()
    rows = [twelfths(rng, 3) for _ in range(5)]
    for max_depth in (2, 5):
        args = (tokens, *(x.tolist() for x in sglang.links_from_tree(tree)), rows, max_depth)
        assert reference_law(*args) == target_law(*args)


def test_duplicate_siblings_break_the_engines_rule_by_one_half():
    rows = [[Fraction(1, 2), Fraction(3, 10), Fraction(1, 5)]] * 3
    args = ([0, 0, 0], [1, -1, -1], [-1, 2, -1], rows, 3)
    wrong, right = reference_law(*args), target_law(*args)
    firsts = [
        [sum(p for key, p in law.items() if key[0] == t) for t in range(3)]
        for law in (wrong, right)
    ]
    assert sum(abs(a - b) for a, b in zip(*firsts, strict=True)) / 2 == Fraction(1, 2)


# ---- links ---------------------------------------------------------------------------------------


def test_links_of_a_literal_tree():
    tree, columns = sglang.tree_from_links(NEXT_TOKEN, NEXT_SIBLING)
    assert tree.parents.tolist() == [-1, 0, 0, 1, 1]
    assert columns.tolist() == [0, 1, 2, 3, 4]
    back = sglang.links_from_tree(tree, 6)
    assert [links.tolist() for links in back] == [NEXT_TOKEN, NEXT_SIBLING]


def test_ten_thousand_random_trees_come_back():
    rng = np.random.default_rng(7)
    for _ in range(10_000):
        tree = random_tree(rng, int(rng.integers(0, 24)))
        width = tree.num_nodes + int(rng.integers(0, 4))
        found, columns = sglang.tree_from_links(*sglang.links_from_tree(tree, width))
        assert found == tree
        assert columns.tolist() == list(range(tree.num_nodes))


@given(
    tree=strategies.trees(max_nodes=20, max_depth=8),
    more=st.integers(0, 5),
    random=st.randoms(use_true_random=False),
)
@settings(max_examples=200)
def test_columns_in_any_order_give_the_same_tree(tree, more, random):
    num, width = tree.num_nodes, tree.num_nodes + more
    places = [0, *random.sample(range(1, width), num - 1)]
    next_token, next_sibling = [-1] * width, [-1] * width
    for node in range(num):
        children = tree.children(node)
        random.shuffle(children)
        if children:
            next_token[places[node]] = places[children[0]]
        for one, other in itertools.pairwise(children):
            next_sibling[places[one]] = places[other]
    found, columns = sglang.tree_from_links(next_token, next_sibling)
    nodes = [places.index(column) for column in columns]
    assert sorted(nodes) == list(range(num))
    assert nodes[0] == 0
    for node, parent in enumerate(found.parents[1:], 1):
        assert tree.parents[nodes[node]] == nodes[parent]


@pytest.mark.parametrize(
    ("next_token", "next_sibling", "message"),
    [
        ([1, 0], [-1, -1], "column 0 is linked twice"),
        ([1, -1, -1], [-1, 2, 1], "column 1 is linked twice"),
        ([2, -1], [-1, -1], "column 2 is not in 1 .. 1"),
        ([-2, -1], [-1, -1], "column -2 is not in"),
        ([1, -1], [-1], "1 next siblings"),
        ([], [], "the root at least"),
    ],
)
def test_links_that_are_no_tree_are_refused(next_token, next_sibling, message):
    with pytest.raises(mv.errors.DraftError, match=message):
        sglang.tree_from_links(next_token, next_sibling)


def test_a_width_below_the_trees_is_refused():
    with pytest.raises(mv.errors.DraftError, match="wanted 3 at least"):
        sglang.links_from_tree(mv.TokenTree([-1, 0, 0]), 2)


def test_the_engines_own_builder_agrees():
    # Selected entries of the candidates' table, as organize_draft_results hands them over: an entry
    # e of level l has parent group e // topk; group 0 is the root, group g the entry parents[g].
    rng = np.random.default_rng(2)
    for _ in range(200):
        topk, steps = int(rng.integers(1, 4)), int(rng.integers(2, 4))
        parents = np.concatenate([[-1], np.arange(topk * (steps - 1))])
        chosen = {0}
        for _ in range(6):
            entry = int(rng.integers(0, topk * (1 + topk * (steps - 1))))
            while True:
                chosen.add(entry)
                if entry < topk:
                    break
                entry = int(parents[entry // topk])
        selected = sorted(chosen)
        width = len(selected) + 1
        next_token, next_sibling = [-1] * width, [-1] * width
        expected = [-1]
        for entry in selected:
            group = entry // topk
            expected.append(0 if group == 0 else 1 + selected.index(int(parents[group])))
        for column in range(width - 1, 0, -1):  # the kernel's order: later columns first
            next_sibling[column] = next_token[expected[column]]
            next_token[expected[column]] = column
        tree, columns = sglang.tree_from_links(next_token, next_sibling)
        assert tree.parents.tolist() == expected
        assert columns.tolist() == list(range(width))


# ---- verify_trees --------------------------------------------------------------------------------


def tensors(trees, tokens, logits, *, depth=None, width=None):
    """The engine's tensors for a batch of trees; `logits` are (B, D, V) arrays."""
    width = width or max(tree.num_nodes for tree in trees)
    links = [sglang.links_from_tree(tree, width) for tree in trees]
    batch = len(trees)
    candidates = np.zeros((batch, width), np.int64)
    for b, row in enumerate(tokens):
        candidates[b, : len(row)] = row
    return {
        "predicts": torch.zeros(batch * width, dtype=torch.int32),
        "accept_index": torch.full((batch, depth or width), -1, dtype=torch.int32),
        "accept_token_num": torch.zeros(batch, dtype=torch.int32),
        "candidates": torch.from_numpy(candidates),
        "retrive_index": torch.arange(batch * width).reshape(batch, width),
        "retrive_next_token": torch.from_numpy(np.stack([x for x, _ in links])),
        "retrive_next_sibling": torch.from_numpy(np.stack([x for _, x in links])),
        "logits": torch.as_tensor(np.asarray(logits, np.float32)).reshape(batch * width, -1),
    }


def run(given, params=None, seeds=None, positions=None, **options):
    batch = len(given["accept_token_num"])
    sglang.verify_trees(
        **given,
        params=[params or mv.SamplingParams()] * batch,
        seeds=seeds or range(batch),
        positions=positions or [5] * batch,
        **options,
    )
    return emitted(given)


def emitted(given):
    out = []
    for index, num in zip(given["accept_index"], given["accept_token_num"], strict=True):
        rows = index[: num + 1]
        assert (rows >= 0).all()
        assert (index[num + 1 :] == -1).all()
        out.append(given["predicts"][rows].tolist())
    return out


def test_greedy_requests_equal_the_reference_on_many_trees():
    # One-hot rows: the reference's coins do not matter, so that every tensor must be equal.
    rng = np.random.default_rng(11)
    for _ in range(1_250):
        width, batch, vocab, depth = 9, 8, 4, int(rng.integers(1, 6))
        trees = [random_tree(rng, int(rng.integers(0, width))) for _ in range(batch)]
        tokens = [rng.integers(0, vocab, tree.num_nodes).tolist() for tree in trees]
        best = rng.integers(0, vocab, (batch, width))
        logits = np.where(np.arange(vocab) == best[..., None], 3.0, 0.0)
        one_hot = (np.arange(vocab) == best[..., None]).astype(int).tolist()
        given = tensors(trees, tokens, logits, depth=depth, width=width)
        found = run(given, mv.SamplingParams(temperature=0.0))
        for b in range(batch):
            links = (given[f"retrive_next_{name}"][b].tolist() for name in ("token", "sibling"))
            path, expected = reference(
                given["candidates"][b].tolist(), *links, one_hot[b], lambda _: 0.5, depth
            )
            assert found[b] == expected
            index = given["accept_index"][b, : len(path)].tolist()
            assert index == [b * width + column for column in path]


@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize("depth", [5, 2])
def test_sampled_requests_have_the_references_law(duplicates, depth):
    # The law of the reference is exact; Weissman's radius at error rates of 1e-9 and 8,000
    # samples finds a total variation of 0.05.
    rng = np.random.default_rng(3)
    tree = mv.TokenTree([-1, 0, 0, 1, 1, 3])
    tokens = [0, 0, 2, 1, 2, 0]
    rows = [twelfths(rng, 3) for _ in range(6)]
    links = [x.tolist() for x in sglang.links_from_tree(tree)]
    law = target_law(tokens, *links, rows, depth)
    assert law == reference_law(tokens, *links, rows, depth)
    if duplicates:  # the engine's rule would be biased; ours is not
        tree, tokens = mv.TokenTree([-1, 0, 0, 0]), [0, 0, 0, 1]
        links = [x.tolist() for x in sglang.links_from_tree(tree)]
        law = target_law(tokens, *links, rows[:4], depth)
        assert law != reference_law(tokens, *links, rows[:4], depth)
    batch, rounds = 64, 125
    with np.errstate(divide="ignore"):
        logits = np.log(np.array(rows[: tree.num_nodes], float))
    counts = dict.fromkeys(law, 0)
    for part in range(rounds):
        given = tensors([tree] * batch, [tokens] * batch, [logits] * batch, depth=depth)
        for string in run(given, seeds=range(part * batch, (part + 1) * batch)):
            counts[tuple(string)] += 1  # a string that the law excludes raises
    num = batch * rounds
    distance = sum(abs(counts[key] / num - float(p)) for key, p in law.items())
    assert distance < l1_radius(len(law), num, 1e-9)


def test_sampled_chains_use_the_drafters_rows():
    rng = np.random.default_rng(4)
    tree = mv.TokenTree([-1, 0, 1])
    probs = rng.dirichlet(np.ones(3), (1, 2)).astype(np.float32)
    given = tensors([tree], [[0, 1, 2]], rng.normal(size=(1, 3, 3)))
    found = run(given, seeds=[9], positions=[7], draft_probs=torch.from_numpy(probs))
    draft = mv.Draft.chain([1, 2], probs[0], root=0)
    expected = mv.verify(draft, given["logits"], seed=9, position=7)
    assert expected.rule == "block"
    assert found == [expected.tokens.tolist()]


def test_results_do_not_depend_on_the_batch():
    rng = np.random.default_rng(5)
    trees = [random_tree(rng, 5) for _ in range(4)]
    tokens = [rng.integers(0, 4, 6).tolist() for _ in range(4)]
    logits = rng.normal(size=(4, 6, 4))
    together = run(tensors(trees, tokens, logits), seeds=[1, 2, 3, 4])
    for b in range(4):
        alone = tensors([trees[b]], [tokens[b]], logits[b : b + 1])
        assert run(alone, seeds=[b + 1]) == [together[b]]


def test_rows_of_columns_out_of_order_belong_to_their_nodes():
    # Root 0, its only child in column 2, the child's in column 1.
    given = tensors([mv.TokenTree([-1, 0, 1])], [[0, 2, 1]], np.eye(3)[[1, 0, 2]][None] * 9)
    given["retrive_next_token"] = torch.tensor([[2, -1, 1]])
    assert run(given, mv.SamplingParams(temperature=0.0)) == [[1, 2, 0]]
    assert given["accept_index"].tolist() == [[0, 2, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predicts": torch.zeros(5, dtype=torch.int32)}, "predicts: found shape"),
        ({"logits": torch.zeros(5, 3)}, "logits: found shape"),
        ({"retrive_next_token": torch.tensor([[1, 0, -1]])}, "request 0: links of column 1"),
        ({"draft_probs": torch.zeros(1, 3, 3)}, "draft_probs: found shape"),
        ({"draft_probs": torch.zeros(1, 2, 3) + 1 / 3}, "branches"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message):
    given = tensors([mv.TokenTree([-1, 0, 0])], [[0, 1, 2]], np.zeros((1, 3, 3)))
    given["accept_index"].fill_(77)
    given |= change
    with pytest.raises(mv.errors.DraftError, match=message) as caught:
        run(given)
    assert (given["accept_index"] == 77).all()
    if "request" in message:
        assert caught.value.sequence == 0


def test_as_many_seeds_as_requests_are_wanted():
    given = tensors([mv.TokenTree([-1, 0])], [[0, 1]], np.zeros((1, 2, 3)))
    with pytest.raises(mv.errors.DraftError, match="seeds: found 2, wanted 1"):
        run(given, seeds=[1, 2])


def test_coupled_tokens_depend_on_seeds_and_not_on_drafts():
    rng = np.random.default_rng(8)
    table = rng.normal(size=(97, 5)).astype(np.float32)

    def row(path):
        return table[functools.reduce(lambda place, token: (place * 7 + token + 1) % 97, path, 0)]

    empty = mv.Draft(mv.TokenTree([-1]), [0])
    for seed in range(30):
        plain = []
        for step in range(6):
            verdict = mv.verify(
                empty, row([0, *plain])[None], rule="coupled", seed=seed, position=10 + step
            )
            plain += verdict.tokens.tolist()
        trees = [random_tree(rng, 5) for _ in range(3)]
        tokens = [distinct_tokens(rng, tree, 5) for tree in trees]
        rows = [
            [row([0, *own[tree.path(node)]]) for node in range(6)]
            for tree, own in zip(trees, tokens, strict=True)
        ]
        given = tensors(trees, tokens, np.array(rows))
        for tokens in run(given, seeds=[seed] * 3, positions=[10] * 3, rule="coupled"):
            assert tokens == plain[: len(tokens)]


# ---- the hook ------------------------------------------------------------------------------------


@pytest.fixture
def engine(monkeypatch):
    """A stand-in for the parts of SGLang 0.5.23 that the hook touches."""
    spec = SimpleNamespace(
        speculative_use_rejection_sampling=False,
        speculative_accept_threshold_single=1.0,
        speculative_accept_threshold_acc=1.0,
    )
    broadcasts = []
    group = SimpleNamespace(world_size=1, broadcast=lambda t, src: broadcasts.append((t, src)))
    registered = []

    def eagle_sample(
        verify_input, batch, logits_output, grammar_mask=None, uno_target_max_top_k=None, *,
        watermark_state=None, watermark_full_mask=True,
    ):  # fmt: skip
        raise AssertionError

    modules = {
        "sglang": {"__version__": "0.5.23"},
        "sglang.srt": {},
        "sglang.srt.runtime_context": {
            "get_spec": lambda: spec,
            "get_parallel": lambda: SimpleNamespace(tp_group=group, attn_tp_group=None),
        },
        "sglang.srt.layers": {},
        "sglang.srt.layers.dp_attention": {"is_dp_attention_enabled": lambda: False},
        "sglang.srt.speculative": {},
        "sglang.srt.speculative.spec_utils": {"SIMULATE_ACC_LEN": 0},
        "sglang.srt.speculative.eagle_utils": {"eagle_sample": eagle_sample},
        "sglang.srt.plugins": {},
        "sglang.srt.plugins.hook_registry": {
            "HookRegistry": SimpleNamespace(register=lambda *args: registered.append(args)),
            "HookType": SimpleNamespace(REPLACE="replace"),
        },
    }
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    return SimpleNamespace(
        spec=spec, group=group, broadcasts=broadcasts, registered=registered, modules=sys.modules
    )


def request(tree, tokens, logits, **info):
    """The hook's arguments for one request."""
    given = tensors([tree], [tokens], logits[None])
    verify_input = SimpleNamespace(
        draft_token=given["candidates"].reshape(-1),
        draft_token_num=tree.num_nodes,
        max_tree_depth=tree.num_nodes,
        retrieve_index=given["retrive_index"],
        retrieve_next_token=given["retrive_next_token"],
        retrieve_next_sibling=given["retrive_next_sibling"],
        draft_probs=None,
    )
    sampling = SimpleNamespace(
        **{
            "temperatures": torch.ones(1, 1),
            "top_ks": torch.tensor([1 << 30], dtype=torch.int32),
            "top_ps": torch.ones(1),
            "min_ps": torch.zeros(1),
            "is_all_greedy": False,
            "acc_additive_penalties": None,
            "acc_scaling_penalties": None,
            "logit_bias": None,
            "sampling_seed": torch.tensor([6]),
            "has_watermark_candidates": False,
        }
        | info
    )
    batch = SimpleNamespace(
        device="cpu",
        seq_lens=torch.tensor([5]),
        sampling_info=sampling,
        forward_mode=SimpleNamespace(is_idle=lambda: False),
    )
    return verify_input, batch, SimpleNamespace(next_token_logits=given["logits"])


TREE = mv.TokenTree([-1, 0, 0, 1])
LOGITS = np.random.default_rng(8).normal(size=(4, 3)).astype(np.float32)


def outcome(*arguments, **options):
    predict, lens, index = sglang.eagle_sample(*arguments, **options)
    assert (predict.dtype, lens.dtype, index.dtype) == (torch.int32,) * 3
    return predict[index[0, : lens[0]]].tolist()


def expected(params, logits=LOGITS, seed=6):
    draft = mv.Draft(TREE, [0, 1, 2, 0], law="unknown")
    return mv.verify(draft, logits, params, seed=seed, position=5).tokens.tolist()


def test_the_hook_verifies_with_the_requests_seed_and_parameters(engine):
    options = {
        "temperatures": torch.full((1, 1), 0.5),
        "top_ks": torch.tensor([2], dtype=torch.int32),
        "top_ps": torch.tensor([0.5]),
        "min_ps": torch.tensor([0.25]),
    }
    params = mv.SamplingParams(temperature=0.5, top_k=2, top_p=0.5, min_p=0.25)
    for seed in range(20):
        arguments = request(
            TREE, [0, 1, 2, 0], LOGITS, sampling_seed=torch.tensor([seed]), **options
        )
        assert outcome(*arguments) == expected(params, seed=seed)


@pytest.mark.parametrize(
    "greedy", [{"is_all_greedy": True}, {"top_ks": torch.tensor([1], dtype=torch.int32)}]
)
def test_greedy_requests_take_the_most_likely_tokens(engine, greedy):
    arguments = request(TREE, [0, 1, 2, 0], LOGITS, **greedy)
    assert outcome(*arguments) == expected(mv.SamplingParams(temperature=0.0))


def test_penalties_bias_and_grammar_shape_the_rows(engine):
    row = torch.tensor([[0.5, -1.0, 2.0]])
    scale = torch.tensor([[1.5, 2.0, 1.0]])
    bias = torch.tensor([[0.0, 3.0, 0.0]])

    def apply(logits):
        logits[:, 2] = -torch.inf

    arguments = request(
        TREE, [0, 1, 2, 0], LOGITS, acc_additive_penalties=row, acc_scaling_penalties=scale,
        logit_bias=bias,
    )  # fmt: skip
    shaped = torch.from_numpy(LOGITS) + row
    shaped = torch.where(shaped > 0, shaped / scale, shaped * scale) + bias
    shaped[:, 2] = -torch.inf
    found = outcome(*arguments, SimpleNamespace(apply=apply))
    assert found == expected(mv.SamplingParams(), shaped.numpy())


def test_without_seeds_torchs_generator_reproduces(engine):
    outcomes = []
    for seed in (1, 1, 2, 3, 4, 5):
        torch.manual_seed(seed)
        outcomes.append(outcome(*request(TREE, [0, 1, 2, 0], LOGITS, sampling_seed=None)))
    assert outcomes[0] == outcomes[1]
    assert len(set(map(tuple, outcomes))) > 1


def test_sampled_chains_are_declared_when_the_engine_samples_them(engine):
    engine.spec.speculative_use_rejection_sampling = True
    chain = mv.TokenTree([-1, 0, 1, 2])
    arguments = request(chain, [0, 1, 2, 0], LOGITS)
    probs = np.random.default_rng(1).dirichlet(np.ones(3), (1, 3)).astype(np.float32)
    arguments[0].draft_probs = torch.from_numpy(probs)
    draft = mv.Draft.chain([1, 2, 0], probs[0], root=0)
    verdict = mv.verify(draft, LOGITS, seed=6, position=5)
    assert outcome(*arguments) == verdict.tokens.tolist()


def test_ranks_are_given_the_first_ones_result(engine):
    engine.group.world_size = 2
    outcome(*request(TREE, [0, 1, 2, 0], LOGITS))
    assert [src for _, src in engine.broadcasts] == [0, 0, 0]


def test_an_idle_batch_gives_nothing(engine):
    arguments = request(TREE, [0, 1, 2, 0], LOGITS)
    arguments[1].forward_mode = SimpleNamespace(is_idle=lambda: True)
    assert [len(tensor) for tensor in sglang.eagle_sample(*arguments)] == [0, 0, 0]


def test_what_changes_the_law_is_refused_by_name(engine):
    engine.spec.speculative_accept_threshold_single = 0.3
    with pytest.raises(mv.errors.ParamsError, match="threshold-single"):
        outcome(*request(TREE, [0, 1, 2, 0], LOGITS))
    engine.spec.speculative_accept_threshold_single = 1.0
    arguments = request(TREE, [0, 1, 2, 0], LOGITS, has_watermark_candidates=True)
    with pytest.raises(mv.errors.ParamsError, match="a watermark"):
        outcome(*arguments, watermark_state=object())
    engine.modules["sglang.srt.speculative.spec_utils"].SIMULATE_ACC_LEN = 3
    with pytest.raises(mv.errors.ParamsError, match="simulated"):
        outcome(*request(TREE, [0, 1, 2, 0], LOGITS))


def test_the_plug_in_is_off_unless_asked_for(engine, monkeypatch):
    monkeypatch.delenv("MTP_VERIFY_SGLANG", raising=False)
    sglang.register()
    assert engine.registered == []
    monkeypatch.setenv("MTP_VERIFY_SGLANG", "yes")
    with pytest.raises(mv.errors.ParamsError, match="wanted one of: 0, 1, coupled"):
        sglang.register()
    monkeypatch.setenv("MTP_VERIFY_SGLANG", "1")
    sglang.register()
    target = "sglang.srt.speculative.eagle_utils.eagle_sample"
    assert engine.registered == [(target, sglang.eagle_sample, "replace")]


def test_the_hook_has_the_engines_signature(engine):
    theirs = engine.modules["sglang.srt.speculative.eagle_utils"].eagle_sample
    shapes = [
        [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
        for f in (theirs, sglang.eagle_sample)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("version", ["0.5.22", "0.6.0", "main"])
def test_unknown_versions_are_refused_and_left_alone(engine, monkeypatch, version):
    monkeypatch.setenv("MTP_VERIFY_SGLANG", "1")
    engine.modules["sglang"].__version__ = version
    with pytest.raises(mv.errors.UnsupportedModelError, match=version):
        sglang.register()
    assert engine.registered == []


def test_another_signature_is_refused(engine, monkeypatch):
    monkeypatch.setenv("MTP_VERIFY_SGLANG", "1")
    engine.modules["sglang.srt.speculative.eagle_utils"].eagle_sample = lambda verify_input: None
    with pytest.raises(mv.errors.UnsupportedModelError, match="left as it is"):
        sglang.register()
    assert engine.registered == []


def test_the_entry_point_names_the_hook():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    named = project["entry-points"]["sglang.srt.plugins"]["mtp_verify"]
    assert named == "mtp_verify.integrations.sglang:register"
