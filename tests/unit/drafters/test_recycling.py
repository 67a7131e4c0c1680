"""Token recycling: what the table holds, what is drafted from it, whole generations."""

from __future__ import annotations

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.drafters import Drafter, Recycling, Request
from mtp_verify.verifier.growers import TreeShape
from tests.models import prompt, tiny_model


def request(tokens, number=0, eos_ids=()):
    return Request(
        id=number,
        tokens=list(tokens),
        prompt_len=len(tokens),
        seed=number,
        eos_ids=frozenset(eos_ids),
    )


def propose(drafter, made, budget=100):
    draft = drafter.propose([made], [budget])[0]
    assert draft.law == "deterministic"
    return draft.tree.parents.tolist(), draft.tokens.tolist()


def test_it_is_a_drafter():
    assert isinstance(Recycling(), Drafter)
    assert Recycling().shape.tree.num_nodes == 81
    assert not Recycling(TreeShape.by_depth(1, 1)).makes_trees


def test_neighbours_in_the_text_come_most_recent_first():
    # After 1: 2, then 3. After 2: 1, after 3: 1.
    drafter = Recycling(TreeShape.by_depth(2, 1))
    made = request([1, 2, 1, 3, 1])
    drafter.start(made)
    assert propose(drafter, made) == ([-1, 0, 0, 1, 2], [1, 3, 2, 1, 1])
    made.tokens += [2, 1]
    assert propose(drafter, made)[1] == [1, 2, 3, 1, 1]


def test_rows_replace_what_the_text_said():
    drafter = Recycling(TreeShape.by_depth(2, 1), num_successors=2)
    made = request([1, 2, 1])
    draft = drafter.propose([made], [9])[0]
    logits = np.full((draft.num_nodes, 10), -np.inf, np.float32)
    logits[:, [5, 6, 7]] = [3.0, 4.0, 1.0]
    drafter.observe([made], [draft], [logits])
    # Token 1 (the root) and token 2 now have successors 6 and 5, whatever stood in the text.
    assert propose(drafter, made)[1] == [1, 6, 5]
    made.tokens += [2]
    assert propose(drafter, made)[1] == [2, 6, 5]
    logits[0, 3] = np.nan
    drafter.observe([made], [draft], [logits])  # Rows of NaN teach nothing, and end nothing.
    assert propose(drafter, made)[1] == [2, 6, 5]


def test_budget_end_tokens_and_unknown_tokens():
    drafter = Recycling(TreeShape.by_depth(2, 2, 2))
    made = request([1, 2, 1, 3, 1])
    assert [len(propose(drafter, made, budget)[1]) for budget in (-1, 0, 1, 5)] == [1, 1, 2, 6]
    made.eos_ids = frozenset([3])
    parents, tokens = propose(drafter, made)
    assert 3 in tokens
    assert all(tokens[parent] != 3 for parent in parents[1:])
    assert propose(drafter, request([9], number=5)) == ([-1], [9])


def test_tables_are_shared_only_if_asked():
    for shared in (False, True):
        drafter = Recycling(shared=shared)
        first, second = request([4, 5]), request([4], number=1)
        drafter.start(first)
        drafter.release(first)
        assert len(propose(drafter, second)[1]) == (2 if shared else 1)
        drafter.release(second)
        drafter.release(second)


def test_requests_that_draw_alike_learn_nothing_from_each_other():
    def drafted(number, seed, params=None, tokens=(4,)):
        params = params or mv.SamplingParams()
        made = Request(id=number, tokens=list(tokens), prompt_len=1, seed=seed, params=params)
        drafter.start(made)
        return len(drafter.propose([made], [9])[0].tokens) - 1

    drafter = Recycling(shared=True)
    drafted(0, seed=7, tokens=[4, 5])
    assert drafted(1, seed=8) == 1
    assert drafted(2, seed=7) == 0
    assert drafted(0, seed=7) == 1  # The first itself, started again after it had to make room.
    assert drafted(3, seed=7, params=mv.SamplingParams(temperature=0.0)) == 1


def test_a_store_that_remembers_too_many_seeds_begins_anew(monkeypatch):
    monkeypatch.setattr("mtp_verify.drafters.recycling._MOST_SEEDS", 2)
    drafter = Recycling(shared=True)
    for number, tokens, nodes in ((0, [4, 5], 1), (1, [4], 1), (2, [4], 0), (3, [4], 0)):
        made = Request(id=number, tokens=tokens, prompt_len=1, seed=number)
        drafter.start(made)
        made.tokens = tokens[:1]
        assert drafter.propose([made], [9])[0].num_nodes - 1 == nodes


def test_parameters_out_of_range_are_named():
    with pytest.raises(mv.errors.ParamsError, match="max_nodes"):
        Recycling(max_nodes=0)
    with pytest.raises(mv.errors.ParamsError, match="num_successors"):
        Recycling(num_successors=0)


@pytest.mark.parametrize("params", [mv.SamplingParams(temperature=0.0), mv.SamplingParams()])
def test_output_equals_plain_decoding(params):
    rule = "auto" if params.is_greedy else "coupled"
    decoder = Decoder(tiny_model("llama"), Recycling(max_nodes=8), params, rule)
    plain = decoder.generate(prompt(), max_new_tokens=24, seed=5, speculate=False)
    drafted = decoder.generate(prompt(), max_new_tokens=24, seed=5)
    assert drafted.tokens == plain.tokens
    assert drafted.stats.drafted > 0
