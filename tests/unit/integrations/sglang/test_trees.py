"""SGLang's tensors in and out, and its semantics by an independent reference.

The engine itself is not needed: its kernels' contract is written down here a second time, from
what they do to given coins.
"""

from __future__ import annotations

import functools
import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.integrations import sglang
from mtp_verify.testing.stats import l1_radius
from tests.sglang_engine import distinct_tokens, random_tree, run, tensors

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


# ---- verify_trees --------------------------------------------------------------------------------


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
