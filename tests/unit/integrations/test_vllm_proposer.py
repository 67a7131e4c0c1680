"""The contract with vLLM's `custom_class` proposers, without the engine; and once inside it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.drafters import Request, Suffix
from mtp_verify.integrations.vllm import SuffixProposer
from tests.engines import interpreter, run_vllm
from tests.models import tiny_model

WIDTH, MAX_LENGTH = 4, 64


@pytest.fixture
def proposer():
    return SuffixProposer(
        SimpleNamespace(
            speculative_config=SimpleNamespace(num_speculative_tokens=WIDTH),
            model_config=SimpleNamespace(max_model_len=MAX_LENGTH),
        )
    )


def step(proposer, texts, emitted=None):
    """Call `propose` as vLLM does: texts at the left of a wide array, what lies behind is junk."""
    tokens = np.full((len(texts) + 2, MAX_LENGTH), 99, np.int32)
    for row, text in zip(tokens, texts, strict=False):
        row[: len(text)] = text
    lengths = np.array([*map(len, texts), 7, 7], np.int32)
    sampled = [[text[-1]] for text in texts] if emitted is None else emitted
    return proposer.propose(sampled, lengths, tokens, slot_mappings=None)


def expected(text, budget=WIDTH):
    request = Request(0, list(text), prompt_len=len(text), seed=0)
    (draft,) = Suffix(WIDTH, depth_factor=2.0).propose([request], [budget])
    return draft.tokens[1:].tolist()


def test_rows_are_drafted_for_as_the_drafter_would(proposer):
    texts = [[1, 2, 3, 4, 1, 2], [5, 5, 5, 5], [7, 8, 9]]
    for turn in range(5):
        assert step(proposer, texts) == [expected(text) for text in texts]
        for text in texts:
            text.extend(text[turn : turn + 2])
    assert expected(texts[0])


def test_rows_that_change_places_join_and_leave_keep_their_index(proposer):
    texts = {name: [name, 2, 3, name, 2] for name in (10, 11, 12, 13)}
    for order in [(10, 11), (11, 10), (12, 11, 10), (10, 13), (13,), (13, 12)]:
        for name in order:
            texts[name].append(3 if len(texts[name]) % 2 else name)
        rows = [texts[name] for name in order]
        assert step(proposer, rows) == [expected(text) for text in rows]
        # Nobody else's index is kept.
        assert len(proposer._drafter._states) == len(order)


def test_an_index_is_extended_not_made_anew(proposer):
    step(proposer, [[1, 2, 1, 2], [3, 4, 3, 4]])
    before = list(proposer._drafter._states)
    step(proposer, [[3, 4, 3, 4, 3], [1, 2, 1, 2, 1]])
    assert sorted(proposer._drafter._states) == sorted(before)


def test_nothing_is_drafted_for_prompts_or_at_the_context_end(proposer):
    copies = [1, 2] * 3
    assert step(proposer, [copies, copies], emitted=[[], [2]]) == [[], expected(copies)]
    for room, length in ((0, MAX_LENGTH), (0, MAX_LENGTH - 1), (1, MAX_LENGTH - 2)):
        (draft,) = step(proposer, [([1, 2] * MAX_LENGTH)[:length]])
        assert len(draft) == room


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_in_vllm_it_drafts_as_in_our_decoder(tmp_path):
    # The environment of `make vllm` holds this package too.
    python = interpreter("VLLM_VENV", ".venv-vllm", "vllm", "mtp_verify.integrations.vllm")
    model = tiny_model(
        "llama", vocab_size=8, hidden_size=64, head_dim=32, num_attention_heads=2,
        num_key_value_heads=1, num_hidden_layers=3,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "base")
    length, prompts = 48, [[first, second, 1] for first in range(4) for second in range(4, 8)]
    theirs = run_vllm(
        python,
        tmp_path,
        {
            "model": str(tmp_path / "base"), "prompts": prompts, "dtype": "float32",
            "max_length": 128, "max_tokens": length,
            "speculation": {
                "method": "custom_class", "num_speculative_tokens": WIDTH,
                "model": "mtp_verify.integrations.vllm.SuffixProposer",
            },
        },
        MTP_VERIFY_VLLM="1",
    )  # fmt: skip
    decoder = Decoder(model, Suffix(WIDTH, depth_factor=2.0), mv.SamplingParams(temperature=0.0))
    stats = []
    for prompt, tokens in zip(prompts, theirs["tokens"], strict=True):
        result = decoder.generate([prompt], max_new_tokens=length, eos_token_id=())
        assert result.tokens == [tokens]
        stats.append(result.stats)
    ours = [sum(one.accepted_at[depth] for one in stats) for depth in range(WIDTH)]
    # The same drafts, but for those that reach beyond the end, which we do not make.
    assert ours[0] > 50
    assert theirs["accepted"] == pytest.approx(ours, abs=len(prompts), rel=0.02)
