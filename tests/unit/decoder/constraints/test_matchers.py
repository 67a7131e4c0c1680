"""Masks along trees, by xgrammar, by llguidance and by a matcher of our own, word by word."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.decoder.constraints import Matcher
from mtp_verify.decoder.constraints.base import without
from tests.grammars import EOS, PATTERN, TOKENS, Finite, allowed_after, by_llguidance, by_xgrammar

VOCAB = 40  # wider than the tokenizer: padding at the end of the model's rows


def library(name: str, make):
    absent = importlib.util.find_spec(name) is None
    return pytest.param(make, id=name, marks=pytest.mark.skipif(absent, reason=f"needs {name}"))


LIBRARIES = [library("xgrammar", by_xgrammar), library("llguidance", by_llguidance)]
MAKERS = [
    pytest.param(lambda size: Finite(vocab_size=size), id="our own"),
    *(
        pytest.param(
            lambda size, make=case.values[0]: make(size).regex(PATTERN),
            id=case.id,
            marks=case.marks,
        )
        for case in LIBRARIES
    ),
]


def tokens_of(bits: np.ndarray) -> set[int]:
    return {token for token in range(VOCAB) if bits[token // 32] >> (token % 32) & 1}


def random_draft(rng: np.random.Generator, num_nodes: int) -> mv.Draft:
    """A tree whose tokens mostly go along a word, and otherwise anywhere."""
    parents, paths = [-1], [[]]
    tokens = [0]
    while len(parents) < num_nodes:
        parent = int(rng.integers(len(parents)))
        taken = {tokens[node] for node in range(1, len(parents)) if parents[node] == parent}
        right = sorted(allowed_after(paths[parent]) - taken)
        choices = right if right and rng.random() < 0.7 else sorted({*range(len(TOKENS))} - taken)
        if choices:
            token = int(rng.choice(choices))
            parents.append(parent)
            tokens.append(token)
            paths.append([*paths[parent], token])
    return mv.Draft(mv.TokenTree(parents), tokens)


def path_of(draft: mv.Draft, node: int) -> list[int]:
    return [int(draft.tokens[i]) for i in draft.tree.path(node)]


@pytest.mark.parametrize("make", MAKERS)
def test_masks_of_random_trees_are_those_of_every_word(make, rng):
    constraint = make(VOCAB)
    assert constraint.stop_ids == {EOS}
    for _ in range(60):
        matcher = constraint.start([1, 2, 3])
        prefix = [[], [0], [1, 2], [0, 6]][int(rng.integers(4))]
        matcher.commit(prefix)
        draft = random_draft(rng, int(rng.integers(1, 14)))
        bits, allowed = matcher.masks(draft)
        assert bits.shape == (draft.num_nodes, 2)
        for node in range(draft.num_nodes):
            path = prefix + path_of(draft, node)
            legal = all(path[i] in allowed_after(path[:i]) for i in range(len(path)))
            assert allowed[node] == legal, path
            free = not legal or EOS in path
            assert tokens_of(bits[node]) == (set(range(VOCAB)) if free else allowed_after(path))
        again, _ = matcher.masks(draft)
        assert np.array_equal(bits, again), "the matcher must stand where it stood"


@pytest.mark.parametrize("make", MAKERS)
def test_rows_lose_what_is_forbidden_before_anything_is_drawn(make):
    matcher = make(VOCAB).start([])
    rows = torch.arange(3.0 * VOCAB).view(3, VOCAB)
    kept = rows.clone()
    masked = matcher.mask_rows(rows, [[], [1], [6]])
    assert torch.equal(rows, kept)
    assert torch.isfinite(masked[0]).nonzero().flatten().tolist() == sorted(allowed_after([]))
    assert torch.isfinite(masked[1]).nonzero().flatten().tolist() == [2]
    assert torch.equal(masked[2], rows[2]), "a forbidden path keeps its row"
    part = matcher.mask_rows(rows[:, :3], [[], [1], [0]], vocab=np.array([5, 3, 2]))
    assert part.tolist() == [
        [-np.inf, 1.0, -np.inf],
        [-np.inf, -np.inf, 42.0],
        [-np.inf, 81.0, -np.inf],
    ]
    last = matcher.mask_rows(rows[:, :1], [[], [1], [0, 6]], vocab=np.array([5]))
    assert torch.equal(last, rows[:, :1]), "a row that would be empty stays whole"


@pytest.mark.parametrize("make", MAKERS)
def test_forbidden_tokens_cannot_be_committed(make):
    matcher = make(VOCAB).start([])
    with pytest.raises(mv.errors.InternalError, match="token 6 was emitted"):
        matcher.commit([0, 6, 6])


@pytest.mark.parametrize("make", MAKERS)
def test_nothing_follows_the_end_and_the_end_can_be_taken_back(make):
    matcher = make(VOCAB).start([])
    # After `a d` the grammar is done; after `a` it could go on, or end.
    for prefix in ([0, 6], [0]):
        matcher.commit([*prefix, EOS])
        assert not matcher.accept(0)
        assert not matcher.accept(EOS)
        matcher.rollback(1)
        assert matcher.accept(EOS)
        matcher.rollback(len(prefix) + 1)
    assert matcher.accept(1)


@pytest.mark.parametrize("make", LIBRARIES)
def test_broken_grammars_are_refused(make):
    with pytest.raises(mv.errors.ParamsError, match="refuses the grammar"):
        make().regex("(a")
    with pytest.raises(mv.errors.ParamsError, match="refuses the grammar"):
        make().json_schema('{"type": "nonsense"}')


@pytest.mark.parametrize("make", LIBRARIES)
def test_dead_ends_have_empty_masks(make):
    # No token of the vocabulary holds a `y`.
    matcher = make(VOCAB).regex("(ay|cc)y?").start([])
    draft = mv.Draft(mv.TokenTree([-1, 0, 1, 0, 3]), [9, 0, 1, 2, 2])
    for _ in range(2):
        bits, allowed = matcher.masks(draft)
        assert allowed.tolist() == [True, True, False, True, True]
        assert [tokens_of(row) for row in bits[allowed]] == [{0, 2}, set(), {2}, {EOS}]
    matcher.commit([0])
    assert tokens_of(matcher.masks(mv.Draft.chain([]))[0][0]) == set()


@pytest.mark.parametrize("make", LIBRARIES)
def test_requests_of_one_constraint_do_not_touch_each_other(make):
    constraint = make().regex(PATTERN)
    one, other = constraint.start([]), constraint.start([])
    one.commit([1])
    assert other.accept(0)
    assert not one.accept(0)


def test_a_vocabulary_below_the_tokenizers_is_refused():
    pytest.importorskip("llguidance")
    with pytest.raises(mv.errors.ParamsError, match=r"found 5, wanted .* 8 tokens"):
        by_llguidance(5)


def test_deterministic_drafts_lose_forbidden_nodes_with_all_below():
    draft = mv.Draft(mv.TokenTree([-1, 0, 0, 1, 2, 2, 4]), [9, 5, 1, 0, 2, 0, 0])
    _, allowed = Finite().start([]).masks(draft)
    assert allowed.tolist() == [True, False, True, False, True, False, True]
    smaller = without(draft, ~allowed)
    assert smaller.tree.parents.tolist() == [-1, 0, 1, 2]
    assert smaller.tokens.tolist() == [9, 1, 2, 0]
    assert smaller.law == "deterministic"


def test_a_matcher_that_raises_is_left_where_it_was():
    class Fragile(Matcher):
        place = 0

        def fill(self, mask):
            if self.place == 2:
                raise RuntimeError("out of fuel")
            mask[:] = -1

        def accept(self, token):
            self.place += 1
            return True

        def rollback(self, count):
            self.place -= count

    matcher = Fragile(4)
    with pytest.raises(RuntimeError, match="fuel"):
        matcher.masks(mv.Draft.chain([1, 2, 3]))
    assert matcher.place == 0
    with pytest.raises(RuntimeError, match="fuel"):
        matcher.mask_rows(torch.zeros(1, 4), [[1, 1]])
    assert matcher.place == 0
