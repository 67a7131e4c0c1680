"""`loop_law`: what it lists, what it refuses, and that it leaves no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify import _core
from mtp_verify.caches.paged import PagePool
from mtp_verify.caches.settings import Paged
from mtp_verify.caches.slots import SlotCache
from mtp_verify.testing import BatchTableTarget, loop_law
from mtp_verify.verifier import growers, kernels
from mtp_verify.verifier.growers import TreeShape

ROWS = np.log(np.array([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5], [0.125, 0.375, 0.5]], np.float32))
FLAT = np.zeros((4, 3), np.float32)


def draw(row, *address):
    return kernels.select(row).draw(row, *address)


def test_a_draw_and_a_verdict_are_listed_with_their_probabilities():
    def step():
        token = draw(ROWS[:1], mv.SamplingParams(), 0, 4, 1)
        probs = np.exp(ROWS[:1])
        draft = mv.Draft(mv.TokenTree([-1, 0]), [-1, token], law="chain", probs=probs)
        verdict = mv.verify(draft, ROWS[1:], rule="token", seed=0, position=4)
        return token, verdict.num_accepted

    law = loop_law(step)
    assert sum(law.values()) == pytest.approx(1)
    # q = 1/2, 1/4, 1/4 and p = 1/4, 1/4, 1/2: token 0 is kept half the time, the others always.
    assert law == pytest.approx({(0, 0): 0.25, (0, 1): 0.25, (1, 1): 0.25, (2, 1): 0.25})


GROWERS = {
    "chain": lambda: growers.Chain(2, seed=0, position=0),
    "swor": lambda: growers.Fixed(TreeShape.by_depth(2, 1), "swor", seed=0, position=0),
    "stochastic": lambda: growers.Stochastic(3, lookahead=2, seed=0, position=0),
    "union": lambda: growers.Union(mv.Draft.chain([1]), [1, 1], seed=0, position=0),
}


@pytest.mark.parametrize("name", GROWERS)
def test_every_branch_of_a_grower_is_a_draft_that_it_can_draw(name):
    def source(paths):
        return np.stack([ROWS[sum(path) % 3] for path in paths])

    def grow():
        draft = GROWERS[name]().grow(source)
        draft.validate()
        return tuple(draft.tree.parents.tolist()), tuple(draft.tokens.tolist())

    law = loop_law(grow)
    assert sum(law.values()) == pytest.approx(1)
    assert grow() in law  # With real noise again.


@pytest.mark.parametrize("form", ["list", "packed", "padded"])
def test_batches_are_listed_in_every_form(form):
    drafts = [mv.Draft.chain([1]), mv.Draft.chain([])]
    logits = {
        "list": [FLAT[:2], FLAT[:1]],
        "packed": FLAT[:3],
        "padded": np.zeros((2, 2, 3), np.float32),
    }[form]

    def step():
        verdicts = mv.verify_batch(drafts, logits, seeds=[0, 1], positions=[0, 0])
        return tuple(verdicts[b].num_accepted for b in range(2))

    assert loop_law(step) == pytest.approx({(0, 0): 2 / 3, (1, 0): 1 / 3})


def test_a_number_answers_one_question():
    def twice(rows):
        def step():
            found = [
                mv.verify(mv.Draft.chain([]), row, seed=0, position=0).tokens[0] for row in rows
            ]
            return tuple(int(token) for token in found)

        return step

    # The same question has the same answer, as it does with real noise.
    assert loop_law(twice([FLAT[:1], FLAT[:1]])) == pytest.approx(
        {(token, token): 1 / 3 for token in range(3)}
    )
    with pytest.raises(mv.errors.ParamsError, match="answers two questions") as caught:
        loop_law(twice([ROWS[:1], ROWS[1:2]]))
    assert caught.value.slug == "noise_used_twice"


def test_an_error_is_a_branch_of_its_own():
    rows = FLAT[:2].copy()
    rows[1] = np.nan

    def step():
        try:
            verdicts = mv.verify_batch([mv.Draft.chain([1])], [rows], seeds=[0], positions=[0])
        except mv.errors.NumericsError as error:
            return error.slug, error.sequence
        return verdicts[0].tokens.tolist()[0]

    law = loop_law(step)
    assert law == pytest.approx({0: 1 / 3, 2: 1 / 3, ("row_not_finite", 0): 1 / 3})


def test_what_has_no_branches_is_refused_and_all_is_put_back():
    before = kernels.select(FLAT)
    draft = mv.Draft.chain([1])

    def lossy():
        mv.verify(draft, FLAT[:2], seed=0, position=0, lossy=mv.lossy.threshold(0.2))

    def race():
        grower = growers.Coupled(TreeShape.by_depth(1), seed=0, position=0)
        drawn = grower.grow(lambda paths: FLAT[: len(paths)])
        mv.verify(drawn, FLAT[:2], rule="coupled", seed=0, position=0)

    with pytest.raises(mv.errors.ParamsError, match="lossy"):
        loop_law(lossy)
    with pytest.raises(mv.errors.DraftError, match="shares the verifier's noise"):
        loop_law(race)
    with pytest.raises(mv.errors.ParamsError, match="more than 2 branches"):
        loop_law(lambda: int(draw(FLAT[:1], mv.SamplingParams(), 0, 0, 0)), max_runs=2)
    assert kernels.select(FLAT) is before


def test_branches_of_the_core_are_checked():
    grower = growers.Chain(1, seed=0, position=3)._core
    assert grower.branches(ROWS[:1]) == pytest.approx([0.5, 0.25, 0.25])
    assert grower.address == (0, 3)
    with pytest.raises(mv.errors.ParamsError, match="branch"):
        grower.extend(ROWS[:1], 3)
    assert grower.extend(ROWS[:1], 2)
    assert grower.tokens.tolist() == [-1, 2]
    found = _core.verdicts(mv.Draft.chain([1]), FLAT[:2], mv.SamplingParams()._core, "auto")
    assert sum(weight for _, weight in found) == pytest.approx(1)
    assert {tuple(verdict.tokens.tolist()) for verdict, _ in found} == {
        (0,), (2,), (1, 0), (1, 1), (1, 2),
    }  # fmt: skip


def test_a_table_of_many_sequences_sees_what_its_cache_shows():
    rows = {}

    def table(path):
        return rows.setdefault(path, torch.full((4,), float(len(rows))))

    target = BatchTableTarget(table, 4)
    for cache in (SlotCache(target.new_kv()), PagePool(target.new_kv(), Paged(16, 2)).new_cache()):
        for text in ([1, 2], [3]):
            cache.add(text, is_known=False)
            slot = len(cache.lengths) - 1
            cache.aim(len(text), target.device, slot)
            target.forward(torch.tensor([text]), None, None, cache, num_logits=1)
            cache.extend(slot, len(text))
        cache.reserve([3, 1])
        tokens = torch.tensor([[0, 1, 2], [0, 0, 0]])
        positions = torch.tensor([[2, 3, 3], [1, 1, 1]])
        ancestors = torch.eye(3, dtype=torch.bool).repeat(2, 1, 1)
        ancestors[0, 1:, 0] = True
        logits, _ = target.forward_slots(tokens, positions, ancestors, cache)
        for node, path in ((0, (1, 2, 0)), (1, (1, 2, 0, 1)), (2, (1, 2, 0, 2))):
            assert torch.equal(logits[0, node], rows[path])
        assert torch.equal(logits[1, 0], rows[3, 0])
        # A node that does not see its parent sees no path.
        cache.drop(0)
        cache.drop(1)
        cache.reserve([3, 1])
        ancestors[0, 2, 0] = False
        logits, _ = target.forward_slots(tokens, positions, ancestors, cache)
        assert logits[0, 2].isnan().all()
