"""The drafters that copy from history: what they draft, and when they forget."""

from __future__ import annotations

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify.drafters import Drafter, NGram, Request, Suffix


def request(tokens, id=0, **more):
    return Request(id=id, tokens=list(tokens), prompt_len=len(tokens), seed=0, **more)


def drafted(drafter, tokens, budget=99, **more):
    one = request(tokens, **more)
    drafter.start(one)
    (draft,) = drafter.propose([one], [budget])
    drafter.release(one)
    return draft


@pytest.mark.parametrize("drafter", [NGram(), Suffix(), Suffix(max_nodes=8)])
def test_follows_the_protocol_and_declares_its_law(drafter):
    assert isinstance(drafter, Drafter)
    draft = drafted(drafter, [1, 2, 3, 4, 1, 2, 3])
    assert draft.law == "deterministic"
    assert draft.tokens[0] == 3
    assert draft.num_nodes > 1


def test_ngram_copies_the_most_recent_occurrence():
    # 1 2 was followed by 3, later by 4 9.
    draft = drafted(NGram(num_tokens=3), [1, 2, 3, 1, 2, 4, 9, 1, 2])
    assert draft.tokens.tolist() == [2, 4, 9, 1]
    assert draft.tree.parents.tolist() == [-1, 0, 1, 2]


def test_ngram_prefers_the_longer_match():
    # The last 2 was followed by 9 more recently, but 1 2 only by 3.
    tokens = [1, 2, 3, 5, 2, 9, 1, 2]
    assert drafted(NGram(num_tokens=1), tokens).tokens.tolist() == [2, 3]
    assert drafted(NGram(1, 1, 1), tokens).tokens.tolist() == [2, 9]


def test_ngram_needs_a_match_of_min_ngram():
    assert drafted(NGram(3, 2), [1, 5, 2, 5]).num_nodes == 1
    assert drafted(NGram(3, 1), [1, 5, 2, 5]).num_nodes > 1


def test_suffix_gives_chains_unless_asked_for_trees():
    tokens = [7, 1, 2, 8, 7, 1, 3, 7, 1, 2, 9, 7, 1]
    chain = drafted(Suffix(), tokens)
    assert not Suffix().makes_trees
    assert chain.tokens.tolist() == [1, 2, 9]
    #     1
    #    / \
    #   2   3      2 twice, 3 once; below 2 the more recent 9 first
    #  9 8  7
    tree = drafted(Suffix(max_nodes=8), tokens)
    assert Suffix(max_nodes=8).makes_trees
    assert tree.tree.parents.tolist() == [-1, 0, 0, 1, 1, 2]
    assert tree.tokens.tolist() == [1, 2, 3, 9, 8, 7]


def test_suffix_depth_is_limited_by_the_match_and_by_num_tokens():
    tokens = [*range(20), *range(4)]
    assert drafted(Suffix(), tokens).num_nodes == 1 + 4
    assert drafted(Suffix(depth_factor=2.0), tokens).num_nodes == 1 + 8
    assert drafted(Suffix(3, depth_factor=2.0), tokens).num_nodes == 1 + 3


@pytest.mark.parametrize("drafter", [NGram(num_tokens=8), Suffix(max_nodes=8, depth_factor=9.0)])
@pytest.mark.parametrize("budget", [0, 1, 3])
def test_budgets_are_honoured(drafter, budget):
    draft = drafted(drafter, [4, 5, 4, 5, 4, 5, 4, 5, 4, 6, 4, 5], budget)
    assert draft.num_nodes == 1 + budget


@pytest.mark.parametrize("drafter", [NGram(), Suffix(), Suffix(max_nodes=8)])
def test_nothing_is_drafted_below_the_end_of_sequence(drafter):
    draft = drafted(drafter, [1, 2, 3, 0, 9, 8, 1, 2, 3], eos_ids=frozenset({0, 77}))
    assert draft.tokens.tolist() == [3, 0]


@pytest.mark.parametrize("drafter", [NGram(), Suffix()])
@pytest.mark.parametrize("tokens", [[5], [1, 2, 3]])
def test_no_match_gives_the_empty_draft(drafter, tokens):
    draft = drafted(drafter, tokens)
    assert draft.tokens.tolist() == tokens[-1:]


@pytest.mark.parametrize("make", [NGram, Suffix, lambda: Suffix(max_nodes=6)])
def test_incremental_drafts_equal_those_from_scratch(make):
    rng = np.random.default_rng(0)
    drafter = make()
    requests = [request(rng.integers(0, 4, 5), id=i) for i in range(3)]
    for one in requests:
        drafter.start(one)
    for _ in range(30):
        drafts = drafter.propose(requests, [9, 4, 0])
        for one, draft, budget in zip(requests, drafts, [9, 4, 0], strict=True):
            fresh = drafted(make(), one.tokens, budget)
            assert draft.tokens.tolist() == fresh.tokens.tolist()
            assert draft.tree.parents.tolist() == fresh.tree.parents.tolist()
            one.tokens.extend(rng.integers(0, 4, rng.integers(1, 4)).tolist())
        drafter.commit([], None)


def test_release_forgets_and_tolerates_unknown_requests():
    drafter = NGram()
    one = request([1, 2, 1, 2])
    drafter.start(one)
    drafter.release(one)
    drafter.release(one)
    assert not drafter._states
    # An id that comes back starts afresh.
    other = request([3, 4, 3], id=one.id)
    drafter.start(other)
    assert drafter.propose([other], [1])[0].tokens.tolist() == [3, 4]


def test_history_beyond_max_history_is_forgotten():
    tokens = [1, 2, *range(100, 130), 1]
    assert drafted(NGram(num_tokens=1), tokens).tokens.tolist() == [1, 2]
    assert drafted(NGram(num_tokens=1, max_history=16), tokens).num_nodes == 1
    assert drafted(Suffix(min_match=1), tokens).tokens.tolist() == [1, 2]
    assert drafted(Suffix(min_match=1, max_history=16), tokens).num_nodes == 1


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: NGram(0), "max_ngram"),
        (lambda: NGram(2, 3), "min_ngram"),
        (lambda: NGram(-1), "max_ngram"),
        (lambda: NGram(num_tokens=0), "num_tokens"),
        (lambda: NGram(max_history=1), "max_history"),
        (lambda: Suffix(0), "num_tokens"),
        (lambda: Suffix(max_nodes=0), "max_nodes"),
        (lambda: Suffix(max_children=0), "max_children"),
        (lambda: Suffix(min_match=0), "min_match"),
        (lambda: Suffix(depth_factor=float("nan")), "depth_factor"),
        (lambda: Suffix(min_score=-0.1), "min_score"),
        (lambda: Suffix(max_context=0), "max_context"),
    ],
)
def test_bad_parameters_are_named_at_construction(make, name):
    with pytest.raises(mv.errors.ParamsError, match=name) as error:
        make()
    assert error.value.slug == "param_out_of_range"


def test_tokens_out_of_range_are_refused_and_nothing_is_appended():
    index = mv._core.NGramIndex(2, 1, 64)
    index.extend(np.array([1, 2, 1], np.int64))
    for bad in ([5, -1], [5, 2**32]):
        with pytest.raises(mv.errors.ParamsError, match="index 1"):
            index.extend(bad)
    assert len(index) == 3
    assert index.propose(2, []) == ([-1, 0, 1], [1, 2, 1])
