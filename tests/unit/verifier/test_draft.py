"""`Draft`: laws, rows, sub-vocabularies, lifetimes."""

import gc

import numpy as np
import pytest

import mtp_verify as mv

PROBS = np.array([[0.5, 0.25, 0.25, 0], [0.25] * 4], np.float32)


def test_chain_is_deterministic_without_rows_and_sampled_with_them() -> None:
    assert mv.Draft.chain([1, 2]).law == "deterministic"
    draft = mv.Draft.chain(np.array([1, 2]), PROBS, root=9)
    assert draft.law == "chain"
    assert draft.tokens.tolist() == [9, 1, 2]
    assert draft.num_nodes == 3
    assert draft.tree.is_chain
    assert draft.sampled == [False, True, True]


def test_empty_drafts_are_plain_sampling() -> None:
    for draft in (mv.Draft.chain([]), mv.Draft(mv.TokenTree([-1]), [7])):
        verdict = mv.verify(draft, np.zeros((1, 4), np.float32), seed=1, position=0)
        assert verdict.num_accepted == 0
        assert len(verdict.tokens) == 1


def test_rows_are_borrowed_and_outlive_their_owner() -> None:
    probs = PROBS.copy()
    draft = mv.Draft.chain([1, 2], probs)
    del probs
    gc.collect()
    mv.verify(draft, np.zeros((3, 4), np.float32), seed=1, position=0)


def test_rows_may_be_shared_and_reordered() -> None:
    tree = mv.TokenTree([-1, 0, 1])
    swapped = mv.Draft(tree, [-1, 1, 3], law="chain", probs=PROBS[::-1].copy(), rows=[1, 0, -1])
    plain = mv.Draft(tree, [-1, 1, 3], law="chain", probs=PROBS)
    logits = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    for seed in range(50):
        found, wanted = (mv.verify(d, logits, seed=seed, position=0) for d in (swapped, plain))
        assert found.tokens.tolist() == wanted.tokens.tolist()


def test_double_precision_rows() -> None:
    mv.Draft.chain([1, 2], PROBS.astype(np.float64)).validate()


@pytest.mark.parametrize("bad", [-0.25, np.nan, np.inf])
def test_validate_reads_every_value(bad: float) -> None:
    probs = PROBS.copy()
    probs[1, 0] = bad
    draft = mv.Draft.chain([1, 2], probs)
    with pytest.raises(mv.errors.NumericsError, match="drafter row 1") as caught:
        draft.validate()
    assert caught.value.row == 1


def test_a_row_that_is_read_whole_is_checked_whole() -> None:
    probs = PROBS.copy()
    probs[0] = [0.5, 0.5, 0.5, -0.5]
    draft = mv.Draft.chain([1], probs[:1])
    logits = np.array([[0, -50, 0, 0], [0] * 4], np.float32)  # The draft is rejected.
    with pytest.raises(mv.errors.NumericsError, match=r"-0\.5 at token 3"):
        mv.verify(draft, logits, rule="token", seed=1, position=0)


def test_a_sub_vocabulary_equals_its_spread_form() -> None:
    rng = np.random.default_rng(3)
    vocab = np.array([7, 2, 5])  # Column j is token vocab[j], in any order.
    small = rng.dirichlet(np.ones(3), size=2).astype(np.float32)
    full = np.zeros((2, 9), np.float32)
    full[:, vocab] = small
    tree = mv.TokenTree([-1, 0, 1])
    mapped = mv.Draft(tree, [-1, 5, 7], law="chain", probs=small, vocab=vocab)
    spread = mv.Draft(tree, [-1, 5, 7], law="chain", probs=full)
    logits = rng.normal(size=(3, 9)).astype(np.float32)
    for rule in ("token", "block"):
        for seed in range(100):
            found, wanted = (
                mv.verify(d, logits, rule=rule, seed=seed, position=0) for d in (mapped, spread)
            )
            assert found.tokens.tolist() == wanted.tokens.tolist()


@pytest.mark.parametrize(
    ("vocab", "part"),
    [
        ([1, 2], "one token for each column"),
        ([1, 2, 2, 3], "distinct tokens"),
        ([1, 2, 3, -1], "token ids"),
    ],
)
def test_bad_maps_are_named(vocab: list[int], part: str) -> None:
    with pytest.raises(mv.errors.DraftError, match=part):
        mv.Draft(mv.TokenTree([-1, 0]), [-1, 1], law="chain", probs=PROBS, vocab=vocab)


def test_a_map_must_stay_inside_the_target_s_vocabulary() -> None:
    draft = mv.Draft(mv.TokenTree([-1, 0]), [-1, 1], law="chain", probs=PROBS, vocab=[0, 1, 2, 9])
    with pytest.raises(mv.errors.DraftError, match="token 9"):
        mv.verify(draft, np.zeros((2, 4), np.float32), seed=1, position=0)


def test_rows_over_another_vocabulary_are_refused() -> None:
    with pytest.raises(mv.errors.DraftError, match="4 tokens, wanted 5"):
        mv.verify(mv.Draft.chain([1], PROBS), np.zeros((2, 5), np.float32), seed=1, position=0)


def test_laws_without_rows_refuse_them() -> None:
    for law in ("deterministic", "unknown", "coupled"):
        with pytest.raises(mv.errors.DraftError, match="leave probs and logits out"):
            mv.Draft(mv.TokenTree([-1, 0]), [-1, 1], law=law, probs=PROBS)


def test_probs_and_logits_exclude_each_other() -> None:
    with pytest.raises(mv.errors.DraftError, match="not both"):
        mv.Draft(mv.TokenTree([-1, 0]), [-1, 1], law="chain", probs=PROBS, logits=PROBS)


def test_mixed_laws_need_to_know_what_was_sampled() -> None:
    tree = mv.TokenTree([-1, 0, 0])
    with pytest.raises(mv.errors.DraftError, match="needs `sampled`"):
        mv.Draft(tree, [-1, 0, 1], law="mixed", probs=PROBS)
    draft = mv.Draft(tree, [-1, 0, 1], law="mixed", probs=PROBS, sampled=[False, True, False])
    assert draft.sampled == [False, True, False]
    with pytest.raises(mv.errors.DraftError, match="sampled children before"):
        mv.Draft(tree, [-1, 0, 1], law="mixed", probs=PROBS, sampled=[False, False, True])
    with pytest.raises(mv.errors.DraftError, match="leave `sampled` out"):
        mv.Draft(tree, [-1, 0, 1], law="swor", probs=PROBS, sampled=[False, True, True])


def test_a_logits_draft_whose_token_was_cut_off_is_found_when_it_is_tested() -> None:
    params = mv.SamplingParams(top_k=1)
    draft = mv.Draft(
        mv.TokenTree([-1, 0]), [-1, 1], law="chain", logits=np.log(PROBS[:1] + 1e-9), params=params
    )
    with pytest.raises(mv.errors.DraftError, match="a sampled token has q > 0") as caught:
        mv.verify(draft, np.zeros((2, 4), np.float32), seed=1, position=0)
    assert caught.value.node == 1
