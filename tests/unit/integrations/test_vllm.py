"""The contract with vLLM, without it: its objects are namespaces with the fields that are read."""

from __future__ import annotations

from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mtp_verify.integrations import vllm as plugin
from mtp_verify.integrations.vllm import seams
from mtp_verify.testing import JointLaw, assert_same_law
from tests.vllm_standins import stand_in, top_k_top_p

VOCAB = 5


@pytest.fixture(autouse=True)
def _warnings_anew():
    seams.warn_once.cache_clear()


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    """A vLLM that the plug-in knows; what is sampled comes in its own tuple."""
    return stand_in(monkeypatch)


def metadata(drafts):
    """`SpecDecodeMetadata` of ragged drafts, as vLLM lays the rows out."""
    counts = [len(tokens) for tokens in drafts]
    ends = np.cumsum([count + 1 for count in counts])
    starts = ends - counts - 1
    places = [start + i for start, count in zip(starts, counts, strict=True) for i in range(count)]
    return SimpleNamespace(
        draft_token_ids=torch.tensor(list(chain.from_iterable(drafts)), dtype=torch.int32),
        num_draft_tokens=counts,
        cu_num_sampled_tokens=torch.tensor(ends, dtype=torch.int32),
        target_logits_indices=torch.tensor(places, dtype=torch.int64),
        bonus_logits_indices=torch.tensor(ends - 1),
    )


def sampling(num, temperature=1.0, seeds=None, **changes):
    """`SamplingMetadata` of requests that differ in nothing but their seeds."""
    greedy = temperature == 0
    fields = {
        "temperature": None if greedy else torch.full((num,), temperature),
        "all_greedy": greedy,
        "all_random": not greedy,
        "top_p": None,
        "top_k": None,
        "generators": {
            row: torch.Generator().manual_seed(seed) for row, seed in (seeds or {}).items()
        },
        "max_num_logprobs": None,
        "no_penalties": True,
        "bad_words_token_ids": {},
        "allowed_token_ids_mask": None,
        "logitsprocs": SimpleNamespace(non_argmax_invariant=[]),
        "thinking_budget_state_holder": None,
    }
    return SimpleNamespace(**fields | changes)


def sampler(**changes):
    fields = {"synthetic_mode": False, "is_processed_logprobs_mode": False}
    return SimpleNamespace(**fields | changes)


def rows_for(drafts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    num = sum(len(tokens) + 1 for tokens in drafts)
    return torch.randn(num, VOCAB, generator=generator)


RAGGED = [[1, 2, 3], [], [4, 0], [], [2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_greedy_rows_follow_the_argmax_and_draw_no_noise(dtype):
    logits = rows_for(RAGGED).to(dtype)
    before, state = logits.clone(), torch.get_rng_state()
    out = plugin.forward(sampler(), metadata(RAGGED), None, logits, sampling(5, 0.0))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits, before)
    best = logits.argmax(dim=1).tolist()
    first = 0
    for tokens, found in zip(RAGGED, out.sampled_token_ids.tolist(), strict=True):
        want = best[first : first + len(tokens) + 1]
        kept = next((i for i, t in enumerate(tokens) if t != want[i]), len(tokens))
        assert found == want[: kept + 1] + [-1] * (3 - kept)
        first += len(tokens) + 1


def test_output_is_int32_and_as_wide_as_the_longest_draft():
    out = plugin.forward(sampler(), metadata(RAGGED), None, rows_for(RAGGED), sampling(5))
    assert (out.sampled_token_ids.dtype, out.sampled_token_ids.shape) == (torch.int32, (5, 4))
    assert out.logprobs_tensors is None


def test_a_seeded_request_does_not_depend_on_its_companions():
    logits = rows_for(RAGGED)
    together = plugin.forward(
        sampler(), metadata(RAGGED), None, logits, sampling(5, seeds={2: 7, 4: 8})
    ).sampled_token_ids
    alone = plugin.forward(
        sampler(), metadata([RAGGED[2]]), None, logits[5:8], sampling(1, seeds={0: 7})
    ).sampled_token_ids
    assert together[2].tolist() == [*alone[0].tolist(), -1]


def test_fresh_noise_is_drawn_in_every_step():
    many = [[]] * 200
    logits = torch.zeros(200, VOCAB)
    settings = sampling(200, seeds={row: row for row in range(0, 200, 2)})
    first, second = (
        plugin.forward(sampler(), metadata(many), None, logits, settings).sampled_token_ids
        for _ in range(2)
    )
    assert (first[::2] != second[::2]).any()
    assert (first[1::2] != second[1::2]).any()


@pytest.mark.parametrize("rule", plugin.RULES)
def test_two_tokens_have_the_targets_joint_law_for_drawn_drafts(rule):
    # 5,500 requests: a total variation of 0.1 over 9 strings is found at alpha 1e-9.
    num = 5_500
    rng = np.random.default_rng(0)
    p = torch.tensor([[0.2, 0.5, 0.3], [0.25, 0.25, 0.5], [0.3, 0.1, 0.6]])
    q = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]])
    drawn = np.stack([rng.choice(3, num, p=row.double() / row.double().sum()) for row in q], axis=1)
    torch.manual_seed(0)
    out = plugin.forward(
        sampler(),
        metadata(drawn.tolist()),
        q.repeat(num, 1),
        p.log().repeat(num, 1),
        sampling(num),
        rule=rule,
    ).sampled_token_ids.numpy()
    # Where a step emitted one token, the next step would draw the second: from the target's row.
    second = rng.choice(3, num, p=p[1].double())
    strings = np.stack([out[:, 0], np.where(out[:, 1] >= 0, out[:, 1], second)], axis=1)
    law = np.outer(p[0].double(), p[1].double()).reshape(-1)
    assert_same_law(strings, JointLaw(3, 2, law), min_tv=0.1)


def test_a_drawn_token_that_the_grammar_forbids_is_rejected():
    # Forgetting it would emit token 1 with probability 3/4: a total variation of 1/4.
    num = 5_000
    p, q = torch.tensor([0.0, 0.5, 0.5]), torch.tensor([0.5, 0.5, 0.0])
    drawn = np.random.default_rng(0).integers(0, 2, num)
    drafts = [[-1] if token == 0 else [1] for token in drawn.tolist()]
    torch.manual_seed(0)
    out = plugin.forward(
        sampler(),
        metadata(drafts),
        q.repeat(num, 1),
        p.log().repeat(2 * num, 1),
        sampling(num),
    ).sampled_token_ids.numpy()
    assert_same_law(out[:, :1], JointLaw(3, 1, p.double().numpy()), min_tv=0.1)


def test_copied_drafts_end_before_a_placeholder():
    drafts = [[1, -1, -1]]
    logits = torch.full((4, VOCAB), -30.0)
    logits[0, 1] = logits[1, 3] = 30.0
    out = plugin.forward(sampler(), metadata(drafts), None, logits, sampling(1))
    assert out.sampled_token_ids.tolist() == [[1, 3, -1, -1]]


def test_temperature_top_k_and_top_p_are_each_requests_own():
    drafts = [[], [], [], []]
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]]).repeat(4, 1)
    settings = sampling(
        4,
        all_random=False,
        # vLLM's "off" is the size of the vocabulary, and 1.
        top_k=torch.tensor([VOCAB, 1, VOCAB, VOCAB], dtype=torch.int32),
        top_p=torch.tensor([1.0, 1.0, 0.1, 1.0]),
    )
    settings.temperature = torch.tensor([0.0, 100.0, 1.0, 100.0])
    seen = {row: set() for row in range(4)}
    for _ in range(60):
        out = plugin.forward(sampler(), metadata(drafts), None, logits, settings)
        for row, token in enumerate(out.sampled_token_ids[:, 0].tolist()):
            seen[row].add(token)
    assert seen[0] == seen[1] == seen[2] == {4}
    assert len(seen[3]) == VOCAB


def test_what_vllms_processors_change_is_what_is_sampled_from():
    def ban(logits):
        logits[:, 4] = -torch.inf
        return logits

    subject = sampler(
        sampler=SimpleNamespace(
            apply_logits_processors=lambda logits, sampling, predict_bonus_token: ban(logits)
        ),
        apply_logits_processors=lambda logits, sampling, metadata: ban(logits),
    )
    drafts = [[4, 4], [], [4]]
    logits = torch.zeros(6, VOCAB, dtype=torch.bfloat16)
    logits[:, 4] = 20.0
    processor = SimpleNamespace(min_toks={0: "active"})
    for change in (
        {"no_penalties": False},
        {"bad_words_token_ids": {0: [[4]]}},
        {"allowed_token_ids_mask": torch.zeros(3, VOCAB, dtype=torch.bool)},
        {"logitsprocs": SimpleNamespace(non_argmax_invariant=[processor])},
    ):
        out = plugin.forward(subject, metadata(drafts), None, logits, sampling(3, **change))
        assert (out.sampled_token_ids != 4).all()
        assert (out.sampled_token_ids[:, 0] >= 0).all()
    assert (logits[:, 4] == 20.0).all()


@pytest.mark.parametrize("is_processed", [False, True])
def test_log_probabilities_are_of_the_rows_that_vllm_means(is_processed):
    given = {}

    def gather(count, metadata, logits, target, bonus, tokens):
        given.update(count=count, target=target, bonus=bonus)
        return "gathered"

    subject = sampler(is_processed_logprobs_mode=is_processed, _get_logprobs_tensors=gather)
    logits = rows_for(RAGGED)
    settings = sampling(
        5, temperature=0.5, max_num_logprobs=2, top_k=torch.full((5,), 2, dtype=torch.int32)
    )
    meta = metadata(RAGGED)
    out = plugin.forward(subject, meta, None, logits, settings)
    assert (out.logprobs_tensors, given["count"]) == ("gathered", 2)
    want = top_k_top_p(logits / 0.5, torch.full((11,), 2), None) if is_processed else logits
    assert torch.equal(given["target"], want[meta.target_logits_indices])
    assert torch.equal(given["bonus"], want[meta.bonus_logits_indices])
