"""`assert_drafter` passes right drafters of every law, and finds what is wrong with the others.

A wrong drafter passes, and a right one fails, with probability 1e-9 at most (the default alpha)
where the bias is a total variation of 0.1; the biases here are larger. Seeds are fixed.
"""

from __future__ import annotations

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify.drafters import NGram, Suffix
from mtp_verify.testing import assert_drafter
from mtp_verify.verifier.growers import Chain, Coupled, Fixed, TreeShape

VOCAB = 4
LOGITS = (np.random.default_rng(3).normal(size=(VOCAB, VOCAB)) * 1.2).astype(np.float32)
PROMPT = [1, 2, 0, 1, 2]


def softmax(row, temperature=1.0):
    weights = np.exp(row.astype(float) / temperature)
    return weights / weights.sum()


class Grown(mv.Drafter):
    makes_trees = True

    def __init__(self, make, laws=()):
        self.make = make
        if laws:
            self.laws = laws

    def propose(self, requests, budgets):
        drafts = []
        for request, budget in zip(requests, budgets, strict=True):
            if not budget:
                drafts.append(mv.Draft.chain([]))
                continue
            place = {
                "seed": request.seed,
                "position": request.position,
                "root": request.tokens[-1],
                "eos_ids": request.eos_ids,
            }
            grower = self.make(min(budget, 3), place)
            drafts.append(
                grower.grow(lambda paths, r=request: LOGITS[[(r.tokens + p)[-1] for p in paths]])
            )
        return drafts


def fixed(law):
    shape = TreeShape.by_depth(2, 1)
    return lambda budget, place: Fixed(shape.cut(budget, budget), law, **place)


RIGHT = {
    "chain": lambda budget, place: Chain(budget, **place),
    "chain that stops": lambda budget, place: Chain(budget, min_top=0.5, **place),
    "greedy": lambda budget, place: Chain(budget, greedy=True, **place),
    "swor": fixed("swor"),
    "iid": fixed("iid"),
    "top_plus_one": fixed("top_plus_one"),
    "coupled": lambda budget, place: Coupled(TreeShape.by_depth(2, 1).cut(budget, budget), **place),
}


@pytest.mark.parametrize("name", RIGHT)
def test_growers_pass(name):
    assert_drafter(Grown(RIGHT[name]), PROMPT, VOCAB, min_tv=0.15)


@pytest.mark.parametrize("drafter", [NGram(), Suffix(min_match=1), Suffix(max_nodes=6)])
def test_copying_drafters_pass(drafter):
    assert_drafter(drafter, PROMPT, VOCAB)
    assert_drafter(drafter, PROMPT, VOCAB, eos_ids=[0])


class Own(mv.Drafter):
    """Draws by a generator of its own.

    Args:
        said: from the drafter's logits to the row that it says it drew from.
        keeps: whether a drawn token stays, given its probability.
        law: of its drafts.
    """

    laws = ("chain",)

    def __init__(self, said=softmax, keeps=lambda p: True, **changes):
        self.said, self.keeps = said, keeps
        vars(self).update(changes)

    def propose(self, requests, budgets):
        return [self.draft(*pair) for pair in zip(requests, budgets, strict=True)]

    def draft(self, request, budget):
        rng = np.random.default_rng([request.seed, request.position])
        tokens, rows = [], []
        for _ in range(min(2, budget)):
            logits = LOGITS[(request.tokens + tokens)[-1]]
            row = softmax(logits)
            token = int(rng.choice(VOCAB, p=row))
            if not self.keeps(row[token]):
                break
            tokens.append(token)
            rows.append(self.said(logits))
        return mv.Draft.chain(tokens, probs=np.array(rows)) if tokens else mv.Draft.chain([])


def test_a_generator_of_its_own_passes():
    assert_drafter(Own(), PROMPT, VOCAB)


@pytest.mark.parametrize(
    "drafter",
    [
        Own(lambda row: softmax(row, 0.5)),
        Own(lambda row: np.full(VOCAB, 1 / VOCAB)),
        Own(keeps=lambda p: p > 0.3),
    ],
    ids=["another temperature", "no row at all", "drops what is improbable"],
)
def test_rows_that_were_not_drawn_from_are_found(drafter):
    with pytest.raises(
        AssertionError, match=r"not follow the target's distribution: .* every drawn token"
    ):
        assert_drafter(drafter, PROMPT, VOCAB)


def changed(change, **attributes):
    drafter = Own(**attributes)
    draft = drafter.draft
    drafter.draft = lambda request, budget: change(draft(request, budget), request, budget)
    return drafter


def says_it_is_fixed(draft, request, budget):
    return mv.Draft(draft.tree, draft.tokens)


FORM = {
    "too large": (
        changed(lambda draft, request, budget: mv.Draft.chain([1, 1]), laws=()),
        "Own.propose: found 2 nodes, wanted at most its budget of 0",
    ),
    "another law": (Own(laws=("swor",)), 'of the law "chain", wanted one of its laws'),
    "a drawn draft that says deterministic": (
        changed(says_it_is_fixed, laws=()), 'behind one text by the law "deterministic", wanted',
    ),
    "siblings": (
        changed(lambda draft, r, b: mv.Draft(mv.TokenTree([-1, 0, 0][: b + 1]), [0, 1, 2][: b + 1]),
                laws=()),
        "found a draft with siblings, wanted a chain, or makes_trees",
    ),
    "a token of another vocabulary": (
        changed(lambda draft, r, b: mv.Draft.chain([VOCAB] * b), laws=()),
        "found token 4, wanted 0",
    ),
    "below the end": (
        changed(lambda draft, r, b: mv.Draft.chain([3] * b), laws=()), "node 2 below token 3",
    ),
    "no list": (changed(lambda draft, r, b: None, laws=()), "found None in place 0 of its list"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORM)
def test_drafts_of_a_wrong_form_are_found(name):
    drafter, message = FORM[name]
    with pytest.raises(AssertionError, match=message):
        assert_drafter(drafter, PROMPT, VOCAB, eos_ids=[3] if name == "below the end" else [])


def test_a_class_is_refused():
    with pytest.raises(TypeError, match="drafter: found the class NGram"):
        assert_drafter(NGram, PROMPT, VOCAB)


def test_prompts_are_checked():
    with pytest.raises(mv.errors.ParamsError, match="prompt: found no tokens"):
        assert_drafter(NGram(), [], VOCAB)
    with pytest.raises(mv.errors.ParamsError, match="prompt: found 4, wanted an integer <= 3"):
        assert_drafter(NGram(), [1, 4], VOCAB)
