"""Decoding under a constraint: its law, its end, and what a drafter may then propose.

Laws are compared with the exact one of constrained plain decoding, enumerated over all words of a
tiny language, by Weissman's bound: P(||f - p||_1 >= e) <= (2^K - 2) exp(-n e^2 / 2) with K strings.
At n = 3,000 and a false alarm rate of 1e-9 a case, K = 22 gives e = 0.155: a bias of total
variation 0.16 or more is found with that certainty, the one of 1/4 that dropping makes included.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify import _core, growers
from mtp_verify.constraints import Matcher
from mtp_verify.drafters import Model, ModelTree
from mtp_verify.testing import TableTarget
from tests.grammars import EOS, PATTERN, TOKENS, WORDS, Finite, allowed_after, by_llguidance
from tests.grammars import by_xgrammar
from tests.models import ScriptDrafter, StubDrafter, TreeDrafter, tiny_model

VOCAB = len(TOKENS)
PROMPT = [5, 6]
NUM_SAMPLES = 3_000


def table(seed: int) -> TableTarget:
    pool = np.random.default_rng(seed).normal(size=(211, VOCAB)).astype(np.float32)

    def rows(path: tuple[int, ...]) -> np.ndarray:
        place = 0
        for token in path:
            place = (place * 31 + token + 1) % 211
        return pool[place]

    return TableTarget(rows, VOCAB)


def constrained_law(target: TableTarget, params: mv.SamplingParams, words=WORDS) -> dict:
    """Every string of the language with its probability under constrained plain decoding."""
    law, open_strings = {}, {(): 1.0}
    while open_strings:
        grown: dict[tuple[int, ...], float] = {}
        for string, weight in open_strings.items():
            row = np.asarray(target.rows((*PROMPT, *string)), np.float32)
            mask = np.full(VOCAB, -np.inf, np.float32)
            mask[list(allowed_after(string, words))] = 0
            shaped = np.asarray(_core.shaped_row(row + mask, params), np.float64)
            for token in np.flatnonzero(shaped):
                share = weight * float(shaped[token] / shaped.sum())
                (law if token == EOS else grown)[*string, int(token)] = share
        open_strings = grown
    return law


class Unmasked(StubDrafter):
    """Draws a chain from a row of its own that knows nothing of the constraint."""

    def __init__(self, num_tokens: int = 3, row=None) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.row = np.linspace(-1, 1, VOCAB, dtype=np.float32) if row is None else row

    def draft(self, request, budget):
        count = min(self.num_tokens, budget)
        tokens = [
            _core.draw(self.row[None], mv.SamplingParams(), request.seed, request.position, n + 1)
            for n in range(count)
        ]
        if not tokens:
            return super().draft(request, budget)
        return mv.Draft(
            mv.TokenTree(range(-1, count)),
            [request.tokens[-1], *tokens],
            law="chain",
            logits=np.tile(self.row, (count, 1)),
        )


class Drawn(StubDrafter):
    """Draws a tree without replacement from masked rows."""

    makes_trees = True
    shape = growers.Shape.levels([3, 2])

    def draft(self, request, budget):
        if budget < 2:
            return super().draft(request, budget)
        grower = growers.Fixed(
            self.shape, "swor", root=request.tokens[-1], eos_ids=request.eos_ids,
            seed=request.seed, position=request.position,
        )  # fmt: skip
        other = table(5)

        def source(paths):
            rows = torch.tensor(np.array([other.rows((*request.tokens, *path)) for path in paths]))
            return request.matcher.mask_rows(rows, paths)

        return grower.grow(source)


DRAFTERS = {
    "plain": lambda: None,
    "masked chain": lambda: Model(table(3), num_tokens=3, params=mv.SamplingParams()),
    "greedy chain": lambda: Model(table(3), num_tokens=3),
    "unmasked chain": Unmasked,
    "masked tree": Drawn,
    "deterministic tree": lambda: TreeDrafter([-1, 0, 0, 0, 1, 1, 2], vocab=VOCAB),
    "best-first tree": lambda: ModelTree(table(3), max_nodes=5, max_depth=3),
    "n-gram": lambda: mv.drafters.NGram(num_tokens=3),
}
CASES = [
    (drafter, "auto")
    for drafter in DRAFTERS
] + [("masked chain", "block"), ("unmasked chain", "token"), ("masked tree", "coupled")]


@pytest.mark.parametrize(("drafter", "rule"), CASES)
def test_law_is_that_of_constrained_plain_decoding(drafter, rule):
    target, params = table(1), mv.SamplingParams(temperature=1.3, top_k=3)
    law = constrained_law(target, params)
    assert sum(law.values()) == pytest.approx(1)
    decoder = mv.Decoder(target, DRAFTERS[drafter](), params, rule)
    counts = Counter(
        tuple(decoder.generate(PROMPT, max_new_tokens=9, seed=seed, constraint=Finite()).tokens[0])
        for seed in range(NUM_SAMPLES)
    )
    assert set(counts) <= set(law)
    distance = sum(abs(counts[string] / NUM_SAMPLES - p) for string, p in law.items())
    assert distance < math.sqrt(2 * (len(law) * math.log(2) - math.log(1e-9)) / NUM_SAMPLES)
