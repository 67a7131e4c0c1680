"""A bad drafter costs speed and nothing else: NaN in its weights, tokens that the target lacks.

That the law of what is emitted stays where rows are bad behind some tokens only is enumerated in
`test_lossless.py`.
"""

from __future__ import annotations

import copy
import gc
import warnings

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.decoder.drafted import cleaned
from mtp_verify.drafters import REGISTRY, Heads, Model
from mtp_verify.models.target import as_target
from mtp_verify.verifier.growers import TreeShape
from tests.heads import tiny_head
from tests.models import VOCAB, StubDrafter, prompt, tiny_model
from tests.unit.decoder.test_device_matrix import CASES, MODES, TARGETS, WARM, make, target

NAN, INF = float("nan"), float("inf")
BAD = {"nan": NAN, "inf": INF, "nothing": -INF}


def spoil(thing, value=NAN):
    """Give a head, a model, or whatever a drafter holds of them, weights that make no sense."""
    with torch.no_grad():
        for parameter in thing.parameters():
            parameter.fill_(value)
    return thing


def spoilt(name, mode):
    """Return a drafter of the registry over heads and models whose weights are NaN."""
    drafter = make(name, mode)
    for part in getattr(drafter, "drafters", (drafter,)):
        if hasattr(part, "head"):
            shared = part.head.shared
            part.head = spoil(copy.deepcopy(part.head, {id(shared): shared}))
        if hasattr(part, "target"):
            part.target = as_target(copy.deepcopy(part.target.model))
            spoil(part.target.model)  # Later: a model that is found so is refused.
    return drafter


def run(drafter, params, *, is_device=False, rule="auto"):
    cache = "static" if is_device else None
    decoder = mv.Decoder(target(), drafter, params, rule, batching="together", cache=cache)
    for index, length in enumerate((9, 3)):
        ids = prompt(length, seed=20 + index)[0]
        decoder.submit(ids, max_new_tokens=8, seed=50 + index, eos_token_id=())
    done = {}
    while decoder.num_unfinished:
        decoder.step()
        done |= decoder.results()
    assert all(found.errors == [None] for found in done.values())
    return [done[number] for number in sorted(done)]


def tokens(runs):
    return [found.tokens for found in runs]


NEEDING = [(name, mode) for name, mode in CASES if REGISTRY[name].needs != "text"]


@pytest.mark.parametrize("is_device", [False, True], ids=["host", "device"])
@pytest.mark.parametrize(("name", "mode"), NEEDING)
def test_weights_of_nan_cost_speed_and_are_said_once(name, mode, is_device):
    for kind, params in TARGETS.items():
        drafter = spoilt(name, mode)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = run(drafter, params, is_device=is_device)
        said = [str(w.message) for w in caught if "costs speed" in str(w.message)]
        names = {type(part).__name__ for part in getattr(drafter, "drafters", (drafter,))}
        assert said
        assert {text.partition(":")[0] for text in said} <= names | {name}
        assert len(said) == len(set(said))
        if kind == "greedy":
            assert tokens(found) == tokens(run(None, params))
        if name != "Combined":  # Which goes on with what its other drafters have.
            assert all(one.stats.drafted == 0 for one in found)


@pytest.mark.parametrize("value", BAD, ids=str)
@pytest.mark.parametrize("is_device", [False, True], ids=["host", "device"])
def test_a_head_that_fails_at_its_second_level_drafts_the_first(value, is_device, recwarn):
    head = tiny_head("deepseek-3", target())
    spoil(head.levels[1], BAD[value])
    for settings in (
        {"num_tokens": 3}, {"num_tokens": 3, "params": WARM}, {"max_nodes": 7},
        {"shape": TreeShape.by_depth(2, 2), "params": WARM},
    ):  # fmt: skip
        found = run(Heads(head, **settings), TARGETS["greedy"], is_device=is_device)
        assert tokens(found) == tokens(run(None, TARGETS["greedy"]))
        assert all(one.stats.drafted > 0 for one in found)


def test_both_paths_draft_the_same_where_some_rows_are_bad(recwarn):
    head = tiny_head("deepseek-3", target())
    for settings in (
        {"num_tokens": 3, "params": WARM}, {"max_nodes": 7, "max_children": 3},
        *({"shape": TreeShape.by_depth(3, 2, 1), "law": law, "params": WARM}
          for law in ("swor", "iid", "top_plus_one", "deterministic", "coupled")),
    ):  # fmt: skip
        runs = []
        for is_device in (False, True):
            drafter = Heads(_Patchy(head), **settings)
            runs.append(run(drafter, TARGETS["drawn"], is_device=is_device))
        assert tokens(runs[0]) == tokens(runs[1])
        assert [one.stats.drafted for one in runs[0]] == [one.stats.drafted for one in runs[1]]


class _Patchy:
    """A head whose rows are NaN behind every third token."""

    def __init__(self, head):
        self._head = head

    def __getattr__(self, name):
        return getattr(self._head, name)

    def step_batch(self, states, parents, words):
        found = self._head.step_batch(states, parents, words)
        return [
            torch.where((own % 3 == 0)[:, None], NAN, rows)
            for own, rows in zip(words, found, strict=True)
        ]


def test_only_the_request_whose_rows_are_bad_drafts_nothing(recwarn):
    class Sometimes(_Patchy):
        def read_batch(self, states, hidden, words):
            found = self._head.read_batch(states, hidden, words)
            for state, own in zip(states, words, strict=True):
                state.is_bad = getattr(state, "is_bad", len(own) == 9)
            return [
                rows * NAN if state.is_bad else rows
                for state, rows in zip(states, found, strict=True)
            ]

        def step_batch(self, states, parents, words):
            return self._head.step_batch(states, parents, words)

    found = run(Heads(Sometimes(tiny_head("eagle", target()))), TARGETS["greedy"])
    assert [one.stats.drafted > 0 for one in found] == [False, True]
    assert tokens(found) == tokens(run(None, TARGETS["greedy"]))


def test_a_model_in_its_generation_is_warned_of_by_name():
    with pytest.raises(mv.errors.UnsupportedModelError, match="rows hold NaN"):
        Model(spoil(tiny_model("llama", seed=2)))
    drafter = spoilt("Model", "greedy")
    with pytest.warns(UserWarning, match="Model: drafter row 0: NaN .* costs speed"):
        found = mv.Decoder(target(), drafter, WARM).generate(prompt(), max_new_tokens=4, seed=1)
    plain = mv.Decoder(target(), None, WARM).generate(prompt(), max_new_tokens=4, seed=1)
    assert found.tokens == plain.tokens
    del drafter
    gc.collect()  # What was warned of is not kept alive, nor another one taken for it.
    with pytest.warns(UserWarning, match="costs speed"):
        mv.Decoder(target(), spoilt("Model", "greedy"), WARM).generate(
            prompt(), max_new_tokens=4, seed=1
        )


class Foreign(StubDrafter):
    """Drafts tokens of another vocabulary at some nodes."""

    makes_trees = True
    laws = ("deterministic", "chain")

    def __init__(self, make):
        super().__init__()
        self.make = make

    def draft(self, request, budget):
        return self.make(request.tokens[-1]) if budget > 3 else super().draft(request, budget)


def test_tokens_that_the_target_lacks_are_left_out():
    tree = mv.TokenTree([-1, 0, 0, 1, 2])
    drafter = Foreign(lambda root: mv.Draft(tree, [root, VOCAB + 5, 1, 2, VOCAB]))
    with pytest.warns(UserWarning, match=rf"Foreign: found token {VOCAB + 5} at node 1, outside"):
        found = run(drafter, TARGETS["greedy"])
    assert tokens(found) == tokens(run(None, TARGETS["greedy"]))
    assert found[0].stats.drafted > 0
    logits = np.zeros((1, 2), np.float32)
    drafter = Foreign(
        lambda root: mv.Draft(
            mv.TokenTree([-1, 0]), [root, 1], law="chain", logits=logits,
            params=mv.SamplingParams(), vocab=[1, VOCAB],
        )
    )  # fmt: skip
    with pytest.warns(UserWarning, match=rf"rows over token {VOCAB}, outside"):
        found = run(drafter, TARGETS["drawn"])
    assert all(one.stats.drafted == 0 for one in found)


def draft_of(law, **rows):
    return mv.Draft(mv.TokenTree([-1, 0, 0, 1, 1, 2]), [7, 1, 2, 3, 4, 5], law=law, **rows)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("kind", ["logits", "probs", "torch"])
def test_a_draft_is_cut_above_the_level_below_the_bad_row(kind, value):
    for bad, left in ((None, 6), (3, 6), (2, 3), (1, 3), (0, 1)):
        rows = np.full((4, 8), 1 / 8, np.float32)
        if bad is not None:
            rows[bad, 6 if kind == "probs" else slice(None)] = value
        given = {"probs": rows} if kind == "probs" else {"params": mv.SamplingParams()}
        if kind != "probs":
            given["logits"] = torch.from_numpy(rows) if kind == "torch" else rows
        draft = draft_of("swor", **given, rows=[0, 1, 2, 3, -1, -1])
        found, what = cleaned(draft, 8)
        assert found.num_nodes == left
        assert bool(what) == (left < 6)
        assert found.tokens.tolist() == [7, 1, 2, 3, 4, 5][:left]
        if left == 6:
            assert found is draft
        assert cleaned(draft, 8, checks_rows=True)[0] is draft
        verdict = mv.verify(found, np.zeros((left, 8), np.float32), seed=1, position=1)
        assert verdict.lossless


def test_flags_of_drawn_nodes_are_kept():
    rows = np.zeros((3, 8), np.float32)
    rows[1] = NAN
    flags = [False, True, False, True, False, True]
    more = {"params": mv.SamplingParams(), "sampled": flags}
    draft = draft_of("top_plus_one", logits=rows, rows=[0, 1, 2, -1, -1, -1], **more)
    found, _ = cleaned(draft, 8)
    assert (found.law, found.sampled) == ("top_plus_one", flags[:3])


def test_every_drafter_of_the_registry_says_that_it_looks_at_rows():
    assert set(MODES) == set(REGISTRY)
    assert all(make(*case).checks_rows for case in CASES)
