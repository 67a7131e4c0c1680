"""The joint law of whole generations in batches, every row against the target's exact law.

One tiny transformer, batches of rows with one prompt, each row with its own seed, drafts of trees
and chains whose shape differs from row to row, so that rows accept at different paces. Each case
draws N rows and compares the frequencies of the V^3 strings with the exact law
(`assert_same_law`): a bias of total variation MIN_TV is missed, and a right decoder fails, with
probability 1e-9 at most. What this adds to the law tests of single sequences: masks, positions,
commits and noise addresses of neighbours.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.testing import assert_same_law, exact_law, min_num_samples
from mtp_verify.testing.laws import model_rows
from tests.models import TreeDrafter, tiny_model

VOCAB, LENGTH, BATCH = 3, 3, 64
MIN_TV = 0.1
PROMPT = [1, 2, 0, 1]
PARAMS = mv.SamplingParams(temperature=0.7)


class Varied(TreeDrafter):
    """Trees whose shape depends on the request, so that each row of a batch goes its own way."""

    def __init__(self):
        super().__init__([-1], vocab=VOCAB)
        self.shapes = [TreeDrafter(p, vocab=VOCAB) for p in ([-1, 0], [-1, 0, 1], [-1, 0, 0, 1])]

    def draft(self, request, budget):
        shape = self.shapes[request.seed % 3]
        return shape.draft(request, budget)


def independent(kind):
    small = tiny_model(kind, seed=5, vocab_size=VOCAB)
    return mv.drafters.Model(small, num_tokens=2, params=mv.SamplingParams())


@pytest.mark.stat
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@pytest.mark.parametrize("draft", ["trees", "sampled chains"])
def test_rows_of_a_batch_have_the_targets_law(kind, draft):
    model = tiny_model(kind, vocab_size=VOCAB)
    law = exact_law(model_rows(model), PROMPT, LENGTH, params=PARAMS)
    drafter = Varied() if draft == "trees" else independent(kind)
    decoder = Decoder(model, drafter, PARAMS, batching="together", max_batch=BATCH)
    total = min_num_samples(int(np.count_nonzero(law.probs)), min_tv=MIN_TV, alpha=1e-9)
    rows = []
    while len(rows) < total:
        seeds = range(len(rows), len(rows) + BATCH)
        ids = torch.tensor([PROMPT] * BATCH)
        rows += decoder.generate(ids, max_new_tokens=LENGTH, seed=list(seeds)).tokens
    assert_same_law(np.asarray(rows), law, min_tv=MIN_TV)
