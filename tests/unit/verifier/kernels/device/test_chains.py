"""Chains that the device alone knows: every request as `mtp_verify.verify` decides it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.testing.device.backends import BACKENDS, ready, ready_copy
from mtp_verify.testing.device.cases import MODELS, Case
from mtp_verify.testing.device.law import find_law
from mtp_verify.verifier.kernels.device import layout
from mtp_verify.verifier.kernels.device.chains import Chains, ChainVerifier, Drawn, core_of

CPU = torch.device("cpu")
VOCAB = 45  # No multiple of a word's 32 bits.
# Ragged, one request without drafts, one whose chain a placeholder ends, one with no token at all.
DRAFTS = ([3, 1, 4], [], [7, -1, 2], [9], [VOCAB, 0, 0], [44, 44, 44])
TEMPERATURES = (1.0, 0.7, 1.0, 0.0, 1.0, 0.3)
SEEDS = (1, (1 << 63) + 5, 3, 4, 1 << 33, 6)
POSITIONS = (0, 17, 100_000, 3, 5, 1 << 20)
WIDTH = 3


@pytest.fixture(
    scope="module", params=[own for own in BACKENDS if own.is_there], ids=lambda b: b.name
)
def backend(request):
    """The name of a backend that runs here, Triton's in its interpreter."""
    with ready(request.param), ready_copy(request.param, request.param.package):
        yield request.param.name


def kept(tokens, vocab=VOCAB):
    """Return a chain up to the first that is no token."""
    count = next((i for i, t in enumerate(tokens) if not 0 <= t < vocab), len(tokens))
    return tokens[:count]


def step(rng, dtype=torch.float32, drafts=DRAFTS):
    """Return logits and chains, their rows ragged one after the other."""
    sizes = [len(tokens) + 1 for tokens in drafts]
    logits = torch.tensor(rng.normal(size=(sum(sizes), VOCAB)) * 3, dtype=dtype)
    tokens = [token for own in drafts for token in (-7, *own)]
    seeds = torch.tensor(np.array(SEEDS[: len(drafts)], np.uint64).view(np.int64))
    return logits, Chains(
        offsets=torch.tensor(np.cumsum([0, *sizes]), dtype=torch.int32),
        tokens=torch.tensor(tokens, dtype=torch.int32),
        seeds=seeds,
        positions=torch.tensor(POSITIONS[: len(drafts)]),
        temperature=torch.tensor(TEMPERATURES[: len(drafts)]),
    )


def params(request, top_k=0, top_p=1.0):
    temperature = float(torch.tensor(TEMPERATURES)[request])
    return mv.SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, preset="vllm")


def emitted(outcomes):
    return [
        row[: count + 1]
        for row, count in zip(outcomes.tokens.tolist(), outcomes.num_accepted.tolist(), strict=True)
    ]


def block(logits, chains, request, count):
    start = int(chains.offsets[request])
    return logits[start : start + count + 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", ["token", "coupled"])
def test_drafts_without_rows_are_verified_as_the_core_does(backend, rule, dtype, rng):
    logits, chains = step(rng, dtype)
    found = emitted(ChainVerifier(VOCAB, WIDTH, CPU, backend=backend).verify(logits, chains, rule))
    for request, drafted in enumerate(DRAFTS):
        tokens = kept(drafted)
        wanted = mv.verify(
            mv.Draft.chain(tokens),
            block(logits, chains, request, len(tokens)),
            params(request),
            rule=rule,
            seed=SEEDS[request],
            position=POSITIONS[request],
        )
        assert found[request] == wanted.tokens.tolist(), request


@pytest.mark.parametrize("columns", [VOCAB, 33])
@pytest.mark.parametrize("is_logits", [False, True])
@pytest.mark.parametrize("rule", ["token", "block", "target_only", "coupled"])
def test_drawn_drafts_are_verified_as_the_core_does(backend, rule, is_logits, columns, rng):
    drafts = [[t if t < columns else t - columns for t in own] for own in DRAFTS]
    drafts[4] = [VOCAB, 0, 0]
    logits, chains = step(rng, drafts=drafts)
    first = torch.tensor([0, 0, 6, 9, 12, 15])
    rows = torch.tensor(rng.normal(size=(18, columns)), dtype=torch.float32)
    temperature = torch.tensor(TEMPERATURES).repeat_interleave(3)
    if not is_logits:
        rows = (rows / torch.where(temperature == 0, 1.0, temperature)[:, None]).softmax(1)
    drawn = Drawn(rows, first, None)
    if is_logits:
        # Among others, in any order.
        place = torch.tensor(rng.permutation(30)[:18])
        others = torch.full((30, columns), torch.nan).index_copy(0, place, rows)
        drawn = Drawn(others, first, temperature, place)
    verifier = ChainVerifier(VOCAB, WIDTH, CPU, backend=backend)
    found = emitted(verifier.verify(logits, chains, rule, drawn))
    for request, own in enumerate(drafts):
        tokens, shaping, start = kept(own), params(request), int(first[request])
        q = torch.zeros(len(tokens), VOCAB)
        q[:, :columns] = rows[start : start + len(tokens)]
        if is_logits and shaping.temperature > 0:
            q[:, :columns] = (q[:, :columns] / shaping.temperature).softmax(1)
        is_read = shaping.temperature > 0 and rule in ("token", "block")
        wanted = mv.verify(
            mv.Draft.chain(tokens, q) if tokens and is_read else mv.Draft.chain(tokens),
            block(logits, chains, request, len(tokens)),
            shaping,
            rule=rule,
            seed=SEEDS[request],
            position=POSITIONS[request],
        )
        assert found[request] == wanted.tokens.tolist(), request


def test_rows_are_truncated_as_the_core_does(backend, rng):
    logits, chains = step(rng)
    top_k, top_p = (0, 3, 0, 2, 5, 1), (0.5, 1.0, 0.9, 0.5, 1.0, 0.7)
    chains = chains._replace(
        top_k=torch.tensor(top_k, dtype=torch.int32), top_p=torch.tensor(top_p)
    )
    verifier = ChainVerifier(VOCAB, WIDTH, CPU, backend=backend)
    found = emitted(verifier.verify(logits, chains, "token"))
    for request, own in enumerate(DRAFTS):
        wanted = mv.verify(
            mv.Draft.chain(kept(own)),
            block(logits, chains, request, len(kept(own))),
            params(request, top_k[request], float(torch.tensor(top_p)[request])),
            seed=SEEDS[request],
            position=POSITIONS[request],
        )
        assert found[request] == wanted.tokens.tolist(), request


def test_steps_of_any_size_follow_each_other(backend, rng):
    verifier = ChainVerifier(VOCAB, WIDTH, CPU, backend=backend)
    for drafts in (DRAFTS[:1], DRAFTS, DRAFTS[:2], DRAFTS[1:2], []):
        logits, chains = step(rng, drafts=drafts)
        found = emitted(verifier.verify(logits, chains, "token"))
        alone = ChainVerifier(VOCAB, WIDTH, CPU, backend=backend)
        assert found == emitted(alone.verify(logits, chains, "token"))
        assert len(found) == len(drafts)


def test_steps_run_inside_and_outside_of_inference_mode(backend, rng):
    logits, chains = step(rng)
    verifier = ChainVerifier(VOCAB, WIDTH, CPU, backend=backend)
    with torch.inference_mode():
        inside = emitted(verifier.verify(logits.clone(), chains, "coupled"))
    assert emitted(verifier.verify(logits, chains, "coupled")) == inside


def test_rows_may_lie_apart_and_cross_blocks(backend, rng):
    """Logits are a part of padded rows, the drafter's those of fewer tokens, in bfloat16."""
    vocab, columns = 4_200, 2_100
    logits = torch.tensor(rng.normal(size=(7, vocab + 5)) * 3, dtype=torch.float32)[:, :vocab]
    rows = torch.tensor(rng.normal(size=(6, columns)), dtype=torch.bfloat16)
    drafts = [[2_099, 5, 2_048], [2_047, 0]]
    chains = Chains(
        offsets=torch.tensor([0, 4, 7], dtype=torch.int32),
        tokens=torch.tensor([0, *drafts[0], 0, *drafts[1]], dtype=torch.int32),
        seeds=torch.tensor([5, 6]),
        positions=torch.tensor([1, 2]),
        temperature=torch.tensor([1.0, 0.5]),
    )
    drawn = Drawn(rows, torch.tensor([0, 3]), torch.tensor([1.0] * 3 + [0.5] * 3))
    verifier = ChainVerifier(vocab, WIDTH, CPU, backend=backend)
    for rule in ("token", "block", "coupled"):
        found = emitted(verifier.verify(logits, chains, rule, drawn))
        for request, own in enumerate(drafts):
            shaping = mv.SamplingParams(temperature=(1.0, 0.5)[request], preset="vllm")
            q = torch.zeros(len(own), vocab)
            part = rows[3 * request : 3 * request + len(own)].float()
            q[:, :columns] = (part / shaping.temperature).softmax(1)
            start = 4 * request
            wanted = mv.verify(
                mv.Draft.chain(own) if rule == "coupled" else mv.Draft.chain(own, q),
                logits[start : start + len(own) + 1].contiguous(),
                shaping,
                rule=rule,
                seed=5 + request,
                position=1 + request,
            )
            assert found[request] == wanted.tokens.tolist(), (rule, request)


def test_chains_of_no_drafts_are_plain_decoding(backend, rng):
    logits, chains = step(rng, drafts=[[]] * 5)
    found = emitted(ChainVerifier(VOCAB, 0, CPU, backend=backend).verify(logits, chains, "coupled"))
    again = ChainVerifier(VOCAB, WIDTH, CPU, backend=backend).verify(logits, chains, "coupled")
    assert found == emitted(again)
    assert found[3] == [int(logits[3].argmax())]


def test_a_request_without_rows_changes_nothing_for_the_others(backend, rng):
    logits, chains = step(rng, drafts=DRAFTS[:3])
    offsets = torch.cat([chains.offsets[:2], chains.offsets[1:]])
    seeds, positions, temperature = (
        torch.cat([part[:1], part]) for part in (chains.seeds, chains.positions, chains.temperature)
    )
    wider = Chains(offsets, chains.tokens, seeds, positions, temperature)
    verifier = ChainVerifier(VOCAB, WIDTH, CPU, backend=backend)
    # The second request has no rows; the others are those of the narrower step.
    wider = wider._replace(seeds=seeds[[0, 0, 2, 3]], positions=positions[[0, 0, 2, 3]])
    wider = wider._replace(temperature=temperature[[0, 0, 2, 3]])
    found = emitted(verifier.verify(logits, wider, "token"))
    wanted = emitted(
        ChainVerifier(VOCAB, WIDTH, CPU, backend=backend).verify(logits, chains, "token")
    )
    assert [found[0], *found[2:]] == wanted


# NumPy's, of the interpreter.
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_row_that_is_no_number_ends_in_a_status_of_its_request_alone(backend, rng):
    logits, chains = step(rng)
    sound = emitted(
        ChainVerifier(VOCAB, WIDTH, CPU, backend=backend).verify(logits, chains, "token")
    )
    logits[int(chains.offsets[1])] = torch.nan
    logits[int(chains.offsets[3]), 5] = torch.inf
    outcomes = ChainVerifier(VOCAB, WIDTH, CPU, backend=backend).verify(logits, chains, "token")
    assert (outcomes.status != 0).tolist() == [False, True, False, True, False, False]
    found = emitted(outcomes)
    assert [found[i] for i in (0, 2, 4, 5)] == [sound[i] for i in (0, 2, 4, 5)]


def through_chains(backend):
    """A `run` that verifies a planned step's chains again, told nothing but tensors."""

    def run(planned, _):
        nodes, requests = planned.nodes, planned.requests
        total, depth = int(requests.count.sum()), planned.capacity.depth
        roots = requests.root.long()
        chains = Chains(
            offsets=torch.cat([roots, torch.tensor([total])]),
            tokens=nodes.token,
            seeds=requests.seed,
            positions=requests.position,
            temperature=planned.shaping.temperature[roots],
        )
        drawn = None
        if planned.drafted is not None:
            row = nodes.drafted[:total].clamp(min=0).long()
            shaping = planned.drafted.shaping
            temperature = None if shaping is None else shaping.temperature[row]
            drawn = Drawn(planned.drafted.rows[row], roots, temperature)
        verifier = ChainVerifier(planned.capacity.vocab, depth, CPU, backend=backend)
        inner = verifier._module

        def given(step, workspace):
            padded = torch.zeros(len(step.nodes.place), 2, dtype=torch.float64)
            is_there = step.nodes.request >= 0
            padded[is_there] = planned.given[: int(is_there.sum())]
            inner.run(step._replace(given=padded), workspace)

        verifier._module = SimpleNamespace(run=given, Workspace=inner.Workspace)
        rule = {layout.TOPDOWN: "token", layout.LIFTED: "block"}[int(requests.core[0])]
        found = verifier.verify(planned.logits, chains, rule, drawn)
        for wanted, own in zip(planned.outcomes, found, strict=True):
            wanted.copy_(own)
        # A cache is no business of chains.
        planned.outcomes.length.copy_(requests.start + 1 + found.num_accepted)

    return run


@pytest.mark.parametrize("is_logits", [False, True])
@pytest.mark.parametrize("rule", ["token", "block"])
def test_steps_have_the_law_of_the_target_by_enumeration(backend, rule, is_logits):
    """Every cell of the numbers that decide: each draft's weight times each cell's."""
    shapes = [(1,)] if backend == "triton" else [(1,), (1, 1), (1, 1, 1)]
    for shape in shapes:
        case = Case(MODELS[0], rule, "chain", shape, is_logits=is_logits)
        found = find_law(case, through_chains(backend), lambda *_: None)
        assert found.holds, (found.distance, found.left_out, found.mistakes[:3])


def test_a_mistake_in_the_rows_that_are_read_is_found(monkeypatch):
    """Chains that read the drafter's row before their own have another law."""
    real = ChainVerifier.verify

    def wrong(self, logits, chains, rule, drawn):
        drawn = drawn._replace(rows=drawn.rows.roll(1, 0))
        return real(self, logits, chains, rule, drawn)

    monkeypatch.setattr(ChainVerifier, "verify", wrong)
    case = Case(MODELS[0], "token", "chain", (1, 1))
    assert not find_law(case, through_chains("torch"), lambda *_: None).holds


def test_rules_of_the_host_and_of_other_laws_are_refused():
    for rule, law in (("gbv", "chain"), ("block", "unknown"), ("kseq", "chain")):
        with pytest.raises(mv.errors.RuleError):
            core_of(rule, law)


def test_nothing_is_read_on_the_host(monkeypatch, rng):
    """On a device each of these would wait for it."""
    logits, chains = step(rng)
    drawn = Drawn(torch.rand(18, VOCAB).softmax(1), torch.arange(6) * 3, None)
    verifier = ChainVerifier(VOCAB, WIDTH, CPU, backend="torch")
    # What the kernels of this backend read is not this module's.
    monkeypatch.setattr(verifier._module, "run", lambda step, workspace: None)

    def refuse(*_):
        pytest.fail("read on the host")

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__index__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    verifier.verify(logits, chains, "token", drawn)
