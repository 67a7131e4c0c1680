"""vLLM 0.34 without vLLM: drafts' rows are in a cache of their own, and there is no V1 runner."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.integrations import vllm as plugin
from mtp_verify.integrations.vllm import seams
from mtp_verify.testing import JointLaw, assert_same_law
from tests.vllm_standins import OWN, STATES, batch, put, stand_in, states

VOCAB, DEPTH = 45, 3
DRAFTS = [[3, 1, 4], [], [7, -1, 2], [9, 9]]
PLACES, SEEDS, POSITIONS = [5, 0, 11, 3], [1, -5, 3, 4], [0, 17, 100_000, 3]
TEMPERATURES = [1.0, 0.7, 1.3, 0.0]


@pytest.fixture(autouse=True)
def _warnings_anew():
    seams.warn_once.cache_clear()


@pytest.fixture
def engine(monkeypatch):
    return stand_in(monkeypatch, "0.34.0")


def given(drafts, places, positions):
    """What `_verify` is given; no list of its own for drafts that a grammar forbids."""
    found = batch(drafts, places, positions)
    del found["verify_draft_sampled"]
    return found


def replicated(rows):
    """vLLM's `DraftLogitsCache` with the rows of all states."""
    return SimpleNamespace(values=rows, row_mapping=None)


def sharded(rows, places, order):
    """That of one of several ranks: it holds some states' rows, in another order."""
    mapping = torch.full((len(rows),), -1, dtype=torch.int32)
    holders = torch.full((len(order),), -1, dtype=torch.int32)
    values = torch.full((len(order), *rows.shape[1:]), torch.nan)
    for row, request in enumerate(order):
        mapping[places[request]], holders[row] = row, places[request]
        values[row] = rows[places[request]]
    return SimpleNamespace(values=values, row_mapping=mapping, inverse_row_mapping=holders)


class Step:
    """A batch of drawn drafts."""

    def __init__(self, engine, rng):
        self.engine = engine
        self.given = given(DRAFTS, PLACES, POSITIONS)
        rows = len(self.given["pos"])
        self.logits = torch.tensor(rng.normal(size=(rows, VOCAB)) * 2, dtype=torch.float32)
        self.rows = torch.full((STATES, DEPTH, VOCAB), torch.nan)
        self.rows[PLACES] = torch.tensor(
            rng.normal(size=(len(PLACES), DEPTH, VOCAB)), dtype=torch.float32
        )

    def run(self, draft_logits):
        own = states(TEMPERATURES, SEEDS, PLACES)
        sampler = self.engine.v2(self.engine.plain(own), DEPTH)
        _, sampled, count = sampler._verify(self.logits, draft_logits, *self.given.values())
        return [row[:n] for row, n in zip(sampled.tolist(), count.tolist(), strict=True)]

    def wanted(self, request, rule, *, is_drafted=True):
        """What the core emits."""
        tokens = DRAFTS[request] if is_drafted else []
        tokens = tokens[: next((i for i, t in enumerate(tokens) if t < 0), len(tokens))]
        start = int(self.given["cu_num_logits"][request])
        temperature = float(np.float32(TEMPERATURES[request]))
        draft = mv.Draft.chain(tokens)
        if tokens and temperature and rule != "coupled":
            q = self.rows[PLACES[request], : len(tokens)] / temperature
            draft = mv.Draft.chain(tokens, q.softmax(1))
        return mv.verify(
            draft, self.logits[start : start + len(tokens) + 1],
            mv.SamplingParams(temperature=temperature, preset="vllm"),
            rule=rule, seed=SEEDS[request] % (1 << 64), position=POSITIONS[request],
        ).tokens.tolist()  # fmt: skip


@pytest.mark.parametrize("rule", ["auto", "block", "target_only", "coupled"])
def test_drafts_are_verified_as_the_core_does_wherever_their_rows_lie(engine, rule, rng):
    plugin.install(rule)
    step = Step(engine, rng)
    core = "token" if rule == "auto" else rule
    wanted = [step.wanted(request, core) for request in range(len(DRAFTS))]
    assert step.run(replicated(step.rows)) == wanted
    assert step.run(sharded(step.rows, PLACES, [2, 0, 3, 1])) == wanted


def test_drafts_whose_rows_another_request_has_got_are_as_if_not_drawn(engine, rng):
    plugin.install("block")
    step = Step(engine, rng)
    cache = sharded(step.rows, PLACES, [2, 0, 3, 1])
    cache.inverse_row_mapping[1] = PLACES[2]  # Of request 0.
    found = step.run(cache)
    assert found[0] == step.wanted(0, "block", is_drafted=False)
    assert found[1:] == [step.wanted(request, "block") for request in (1, 2, 3)]


def test_drafts_whose_rows_another_rank_holds_are_as_if_not_drawn(engine, rng):
    plugin.install("block")
    step = Step(engine, rng)
    found = step.run(sharded(step.rows, PLACES, [0, 3]))
    assert found[2] == step.wanted(2, "block", is_drafted=False)
    assert [found[i] for i in (0, 1, 3)] == [step.wanted(i, "block") for i in (0, 1, 3)]


@pytest.mark.parametrize("rule", ["token", "block"])
def test_a_drawn_token_that_the_grammar_forbids_is_rejected(engine, rule):
    # The target's row alone says so. Forgetting the draft would emit token 1 with probability 3/4:
    # a total variation of 1/4, found in 5,000 requests at alpha 1e-9, as is 0.1.
    num = 5_000
    p, q = torch.tensor([0.0, 0.5, 0.5]), torch.tensor([0.5, 0.5, 0.0])
    drawn = np.random.default_rng(0).integers(0, 2, num)
    drafts = [[token, 0] for token in drawn.tolist()]
    plugin.install(rule)
    own = states([1.0] * num, range(num), range(num))
    sampler = engine.v2(engine.plain(own), 2)
    rows = replicated(q.log().repeat(num, 2, 1))
    logits = p.log().repeat(3 * num, 1)
    _, sampled, _ = sampler._verify(logits, rows, *given(drafts, range(num), [7] * num).values())
    assert_same_law(sampled[:, :1].numpy(), JointLaw(3, 1, p.double().numpy()), min_tv=0.1)


def test_it_is_installed_where_there_is_no_first_runner(engine, monkeypatch):
    own = engine.v2._verify, engine.plain.sample
    plugin.install("coupled")
    put(monkeypatch, seams.V2.runner, {"RejectionSampler": engine.v2, "Sampler": engine.plain})
    assert plugin.is_installed()
    assert seams.V1.find() is None
    plugin.uninstall()
    assert (engine.v2._verify, engine.plain.sample) == own
    assert not plugin.is_installed()


def test_a_vllm_without_any_runner_is_refused(monkeypatch):
    stand_in(monkeypatch, "0.34.0", has_v2=False)
    monkeypatch.setitem(sys.modules, seams.V1.module, None)
    monkeypatch.setenv(plugin.GATE.variable, "1")
    with pytest.warns(RuntimeWarning, match=r"0\.34\.0: found the sampler of neither model runner"):
        plugin.register()
    assert not plugin.is_installed()


def test_replays_of_recorded_tokens_stay_the_engines_own(engine, rng):
    plugin.install()
    step = Step(engine, rng)
    plain = engine.plain(states(TEMPERATURES, SEEDS, PLACES))
    plain.trace_replay_state = object()
    sampler = engine.v2(plain, DEPTH)
    with pytest.warns(RuntimeWarning, match="recorded tokens are replayed"):
        assert sampler._verify(step.logits, None, *step.given.values()) == OWN
