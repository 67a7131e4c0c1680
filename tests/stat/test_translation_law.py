"""The joint law of whole generations, drafted for by a model with another tokenizer.

Target and drafter are tiny random transformers over texts of the letters a, b and c; their
vocabularies share some tokens under other numbers, and the same text is cut differently. Each case
draws N generations and compares the frequencies of the 3^3 strings with the target's exact law
(`assert_same_law`): N is the number that shows a bias of total variation MIN_TV = 0.05 with
probability 1 - 1e-9 (some 30,000), and a right decoder fails with probability 1e-9 at most.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.testing import assert_same_law, exact_law, min_num_samples
from mtp_verify.testing.laws import model_rows
from tests.models import tiny_model
from tests.vocabularies import of_words

MIN_TV, LENGTH, BATCH = 0.05, 3, 64
PROMPT = [2, 0, 1]  # "ab" "a" "b"
PARAMS = mv.SamplingParams(temperature=0.7)
# The target knows a, b and ab; the drafter knows b, ba, c and a: they share a and b.
TRANSLATION = mv.drafters.Translation(of_words(["b", "ba", "c", "a"]), of_words(["a", "b", "ab"]))


def make(kind):
    small = tiny_model("llama", seed=5, vocab_size=4)
    if kind == "tree":
        return mv.drafters.ModelTree(small, max_nodes=4, max_depth=2, translation=TRANSLATION)
    shaped = mv.SamplingParams(temperature=1.2, top_p=0.95 if kind == "top-p" else 1.0)
    return mv.drafters.Model(small, num_tokens=2, params=shaped, translation=TRANSLATION)


@pytest.mark.stat
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["chain", "top-p", "tree"])
def test_generations_have_the_targets_law(kind):
    model = tiny_model("llama", vocab_size=3)
    law = exact_law(model_rows(model), PROMPT, LENGTH, params=PARAMS)
    decoder = Decoder(model, make(kind), PARAMS, batching="together", max_batch=BATCH)
    total = min_num_samples(int(np.count_nonzero(law.probs)), min_tv=MIN_TV, alpha=1e-9)
    rows, drafted, accepted = [], 0, 0
    while len(rows) < total:
        seeds = list(range(len(rows), len(rows) + BATCH))
        ids = torch.tensor([PROMPT] * BATCH)
        result = decoder.generate(ids, max_new_tokens=LENGTH, seed=seeds)
        rows += result.tokens
        drafted += result.stats.drafted
        accepted += result.stats.accepted
    assert 0 < accepted < drafted
    assert_same_law(np.asarray(rows), law, min_tv=MIN_TV)
