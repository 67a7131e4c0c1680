"""V1's sampler with rows on a device: the tokens of the host's steps, without waiting."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mtp_verify.integrations import vllm as plugin
from mtp_verify.integrations.vllm import on_device, seams, v1, v1_device
from mtp_verify.testing import JointLaw, assert_same_law
from tests.unit.integrations.test_vllm import metadata, rows_for, sampler, sampling
from tests.vllm_standins import OWN, stand_in

VOCAB = 5
RAGGED = [[1, 2, 3], [], [4, 0], [], [2], [3, -1, 1], [-1]]
SEEDS = {row: 100 + row for row in range(len(RAGGED))}


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    seams.warn_once.cache_clear()
    return stand_in(monkeypatch)


@pytest.fixture
def on_a_device(monkeypatch):
    """Take the host's tensors for a device's."""

    def switch():
        monkeypatch.setattr(v1, "is_on_host", lambda _: False)

    return switch


def both(on_a_device, drafts, probs, logits, rule="auto", **changes):
    """Return what a step emits on the host, and on a device; each request has its generator."""

    def run():
        settings = sampling(len(drafts), seeds=SEEDS, **changes)
        out = plugin.forward(sampler(), metadata(drafts), probs, logits, settings, rule=rule)
        return out.sampled_token_ids

    before = logits.clone()
    host = run()
    on_a_device()
    found = run()
    assert torch.equal(logits, before)
    assert (found.dtype, found.shape) == (host.dtype, host.shape)
    return host.tolist(), found.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_copied_drafts_are_verified_as_on_the_host(on_a_device, temperature, dtype):
    logits = rows_for(RAGGED).to(dtype)
    host, found = both(on_a_device, RAGGED, None, logits, temperature=temperature)
    assert found == host


@pytest.mark.parametrize("rule", [rule for rule in plugin.RULES if rule not in ("coupled", "gbv")])
def test_drawn_drafts_are_verified_as_on_the_host(on_a_device, rule):
    logits = rows_for(RAGGED, 1)
    probs = (rows_for(RAGGED, 2)[: sum(map(len, RAGGED))] * 2).softmax(1)
    settings = {
        "top_k": torch.tensor([VOCAB, 2, VOCAB, 1, 3, 4, VOCAB], dtype=torch.int32),
        "top_p": torch.tensor([1.0, 0.9, 0.5, 1.0, 1.0, 0.8, 1.0]),
    }
    host, found = both(on_a_device, RAGGED, probs, logits, rule, **settings)
    assert found == host


def test_greedy_and_sampled_requests_share_a_batch(on_a_device):
    logits = rows_for(RAGGED, 3)
    settings = sampling(len(RAGGED), seeds=SEEDS)
    settings.temperature[::2] = 0.0
    host = plugin.forward(sampler(), metadata(RAGGED), None, logits, settings).sampled_token_ids
    settings.generators = sampling(len(RAGGED), seeds=SEEDS).generators
    on_a_device()
    found = plugin.forward(sampler(), metadata(RAGGED), None, logits, settings).sampled_token_ids
    assert found.tolist() == host.tolist()


@pytest.mark.parametrize("rule", ["token", "block"])
def test_a_drawn_token_that_the_grammar_forbids_is_rejected(on_a_device, rule):
    # Forgetting it would emit token 1 with probability 3/4: a total variation of 1/4, found in
    # 5,000 requests at alpha 1e-9.
    num = 5_000
    p, q = torch.tensor([0.0, 0.5, 0.5]), torch.tensor([0.5, 0.5, 0.0])
    drawn = np.random.default_rng(0).integers(0, 2, num)
    drafts = [[-1] if token == 0 else [1] for token in drawn.tolist()]
    torch.manual_seed(0)
    on_a_device()
    out = plugin.forward(
        sampler(),
        metadata(drafts),
        q.repeat(num, 1),
        p.log().repeat(2 * num, 1),
        sampling(num),
        rule=rule,
    ).sampled_token_ids.numpy()
    assert_same_law(out[:, :1], JointLaw(3, 1, p.double().numpy()), min_tv=0.1)


def test_an_empty_batch_and_one_without_drafts_are_no_errors(on_a_device):
    on_a_device()
    empty = plugin.forward(sampler(), metadata([]), None, torch.zeros(0, VOCAB), sampling(0))
    assert empty.sampled_token_ids.shape == (0, 1)
    rows = torch.eye(VOCAB)[[3, 1]] * 60
    probs = torch.zeros(0, VOCAB)
    out = plugin.forward(sampler(), metadata([[], []]), probs, rows, sampling(2))
    assert out.sampled_token_ids.tolist() == [[3], [1]]


@pytest.mark.parametrize("is_on_device", [False, True])
def test_rows_that_are_no_numbers_end_in_token_0_of_their_request_and_a_warning(
    on_a_device, is_on_device
):
    logits = torch.full((4, VOCAB), -30.0)
    logits[:, 3] = 30.0
    logits[1] = torch.nan
    if is_on_device:
        on_a_device()
    with pytest.warns(RuntimeWarning, match="token 0"):
        out = plugin.forward(sampler(), metadata([[], [3], []]), None, logits, sampling(3))
    assert out.sampled_token_ids.tolist() == [[3, -1], [0, -1], [3, -1]]


def test_processed_log_probabilities_are_shaped_where_the_rows_are(on_a_device):
    given = {}

    def gather(count, metadata, logits, target, bonus, tokens):
        given.update(target=target, bonus=bonus)
        return "gathered"

    subject = sampler(is_processed_logprobs_mode=True, _get_logprobs_tensors=gather)
    logits, meta = rows_for(RAGGED), metadata(RAGGED)
    settings = sampling(7, temperature=0.5, max_num_logprobs=2)
    on_a_device()
    assert plugin.forward(subject, meta, None, logits, settings).logprobs_tensors == "gathered"
    assert torch.equal(given["bonus"], (logits / 0.5)[meta.bonus_logits_indices])


def test_rules_of_the_host_stay_the_engines_own_on_a_device_and_say_so(engine, on_a_device):
    plugin.install("gbv")
    subject = engine.v1()
    subject.synthetic_mode = False
    on_a_device()
    with pytest.warns(RuntimeWarning, match="gbv runs on the host alone: vLLM's sampler runs"):
        assert subject.forward(metadata([[]]), None, torch.zeros(1, VOCAB), sampling(1)) == OWN


def test_nothing_is_read_on_the_host(monkeypatch):
    """On a device each of these would wait for it."""
    meta, logits = metadata(RAGGED), rows_for(RAGGED)
    probs = rows_for(RAGGED)[: sum(map(len, RAGGED))].softmax(1)
    settings = sampling(len(RAGGED), top_k=torch.full((len(RAGGED),), 2), seeds=SEEDS)
    verifier = on_device.verifier_of(VOCAB, 3, torch.device("cpu"))
    # What the kernels of this backend read is not this module's.
    monkeypatch.setattr(verifier._module, "run", lambda *_: None)
    monkeypatch.setattr(on_device._Faults, "note", lambda *_: None)

    def refuse(*_):
        pytest.fail("read on the host")

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__index__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    v1_device.verify(meta, probs, logits, settings, "token")
