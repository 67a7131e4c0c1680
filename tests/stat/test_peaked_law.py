"""Whole generations over peaked rows: every drafter and grower, at temperatures 0.2 and 1.

Rows of models are peaked, the more so at low temperatures: what is left beside the likeliest token
is then far below float32's resolution, and rules that are right over rationals may go wrong. The
target and the drafter are tables over the last two tokens; where one is peaked (gaps of 8, 18 and
36 in the logits, five times that at temperature 0.2) the other may be flat.

Each case draws 40,000 steps, two million in all. What follows each pair of tokens is compared
with the target's shaped row (Pearson), and what follows each three tokens too, which sees noise
that is shared by neighbouring steps. False alarms: ALPHA = 1e-9 a test. Power: a bias of total
variation t in every row, or of t as root mean square over the tokens, has a noncentrality of
4 n t^2 at least; a case finds t = MIN_TV = 0.05 with probability 1 - 1e-4, which is asserted with
the tokens and cells that it has. Where rules took what is left as a difference from one, the bias
was 0.1 to 0.43 in the rows concerned.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify import _core
from mtp_verify.drafters import Combined, Heads, Model, ModelTree, NGram, Recycling, Suffix
from mtp_verify.testing import TableTarget, stats
from mtp_verify.verifier import growers
from mtp_verify.verifier.growers import TreeShape
from tests.loops import Grown, Table, TableHead

ALPHA, MIN_TV, STEPS, BATCH, LENGTH = 1e-9, 0.05, 40_000, 50, 60
VOCAB = 5


class Pairs(Table):
    """Rows by the last two tokens: flat, mild and peaked ones."""

    def __init__(self, seed: int, shift: int) -> None:
        super().__init__(VOCAB, seed)
        rng = np.random.default_rng(seed)
        pool = rng.normal(size=(VOCAB**2, VOCAB)) * 0.2
        for place, row in enumerate(pool):
            gap = (0, 0, 8, 0, 18, 0, 36)[(place + shift) % 7]
            row[rng.integers(VOCAB)] += gap
            if gap == 18:
                row += rng.permutation(VOCAB)  # and a tail that falls
        self.pool = torch.from_numpy(pool.astype(np.float32))

    @staticmethod
    def step(place: int, token: int) -> int:
        return place * VOCAB % VOCAB**2 + token


TARGET, OTHER = Pairs(1, 0), Pairs(2, 3)


def cases(params: mv.SamplingParams):
    """Each drafter with a rule; growers that no drafter of ours uses draft by themselves."""

    def model(kind=Model, **options):
        return kind(TableTarget(OTHER.rows, VOCAB), params=params, **options)

    def head(**options):
        return Heads(TableHead(OTHER), params=params, **options)

    def grown(law, make):
        return Grown(OTHER, (law,), lambda request, n, own: make(request, n, {**own, **shaped}))

    def fixed(law, *counts, **options):
        shape = TreeShape.by_depth(*counts)
        return grown(
            law, lambda request, n, own: growers.Fixed(shape.cut(n, n), law, **options, **own)
        )

    def union(request, budget, own):
        hits = mv.Draft.chain([int(request.tokens[-2])], root=request.tokens[-1])
        return growers.Union(hits, [2, 1], max_nodes=min(5, budget), **own)

    shaped = {"params": params}
    return {
        "plain": (None, "auto"),
        "chain, token": (model(num_tokens=3), "token"),
        "chain, block": (model(num_tokens=3), "block"),
        "doubtful chain": (model(num_tokens=3, min_confidence=0.6), "block"),
        "best-first tree": (model(ModelTree, max_nodes=5), "auto"),
        "head chain": (head(num_tokens=2), "block"),
        "head heap": (head(max_nodes=5), "auto"),
        "swor, rrsw": (head(shape=TreeShape.by_depth(3, 1)), "rrsw"),
        "swor, traversal": (head(shape=TreeShape.by_depth(3, 1)), "traversal"),
        "iid, specinfer": (head(shape=TreeShape.by_depth(2, 2), law="iid"), "specinfer"),
        "iid, kseq": (head(shape=TreeShape.by_depth(3, 1), law="iid"), "kseq"),
        "iid, traversal": (fixed("iid", 3, 1), "traversal"),
        "paths, gbv": (head(shape=TreeShape.paths(3, 2), law="iid"), "gbv"),
        "iid, selected": (
            head(shape=TreeShape.by_depth(3, 2), law="iid"), "global_resolution",
        ),
        "top-plus-one, hu": (head(shape=TreeShape.by_depth(3, 2), law="top_plus_one"), "hu"),
        "top-plus-one, lifted": (
            head(shape=TreeShape.by_depth(3, 2), law="top_plus_one"), "lifted_hu",
        ),
        "mixed, hu": (fixed("mixed", 4, 1, samples=2), "hu"),
        "mixed, lifted": (fixed("mixed", 4, 1, samples=2), "lifted_hu"),
        "stochastic": (
            grown("swor", lambda request, n, own: growers.Stochastic(min(5, n), **own)), "auto",
        ),
        "stochastic, topdown": (
            grown("swor", lambda request, n, own: growers.Stochastic(min(5, n), **own)), "topdown",
        ),
        "union": (grown("mixed", union), "auto"),
        "coupled tree": (head(shape=TreeShape.by_depth(2, 1), law="coupled"), "auto"),
        "n-gram": (NGram(num_tokens=3), "auto"),
        "suffix": (Suffix(4, max_nodes=5, min_match=1), "auto"),
        "recycling": (Recycling(max_nodes=4), "auto"),
        "first": (Combined([Suffix(3, min_match=3), model(num_tokens=2)]), "block"),
    }  # fmt: skip


NAMES = list(cases(mv.SamplingParams()))


def draw_texts(drafter, rule, params, num_steps):
    """Texts of LENGTH tokens, the last two of their prompts in front, and the steps they took."""
    target = TableTarget(TARGET.rows, VOCAB, hidden=TARGET.hidden)
    decoder = mv.Decoder(target, drafter, params, rule)
    pairs = [[place // VOCAB, place % VOCAB] for place in range(VOCAB**2)]
    texts, steps, seed = [], 0, 0
    while steps < num_steps:
        prompts = [pairs[(seed + row) % len(pairs)] for row in range(BATCH)]
        made = decoder.generate(
            prompts, max_new_tokens=LENGTH, seed=list(range(seed, seed + BATCH)), eos_token_id=()
        )
        texts += made.sequences.tolist()
        steps += made.stats.steps
        seed += BATCH
    return np.array(texts), steps


def assert_rows(texts, params, order):
    """Compare what follows each `order` tokens with the target's rows."""
    windows = np.lib.stride_tricks.sliding_window_view(texts, order + 1, axis=1)
    windows = windows.reshape(-1, order + 1)
    places = windows @ (VOCAB ** np.arange(order, -1, -1))
    counts = np.bincount(places, minlength=VOCAB ** (order + 1)).reshape(-1, VOCAB)
    found = None
    for place, seen in enumerate(counts):
        row = _core.shaped_row(TARGET.pool[place % VOCAB**2].numpy(), params)
        fit = stats.fit(seen, row / row.sum())
        found = fit if found is None else found + fit
    assert found.p_value > ALPHA, f"order {order}: {found}"
    bound = stats.chi_square_quantile(ALPHA, found.df)
    power = stats.noncentral_chi_square_sf(bound, found.df, 4 * found.num_samples * MIN_TV**2)
    assert power > 1 - 1e-4, f"order {order}: {found.num_samples} tokens, power {power}"


@pytest.mark.stat
@pytest.mark.timeout(900)
@pytest.mark.parametrize("temperature", [0.2, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_texts_over_peaked_rows_have_the_targets_law(name, temperature):
    params = mv.SamplingParams(temperature=temperature)
    drafter, rule = cases(params)[name]
    texts, steps = draw_texts(drafter, rule, params, STEPS)
    assert len(NAMES) * 2 * steps > 1_000_000
    for order in (2, 3):
        assert_rows(texts, params, order)


def test_a_bias_of_the_stated_size_is_found(monkeypatch):
    # Negative control, with few steps: a drafter that takes its most likely token for drawn.
    params = mv.SamplingParams()

    def greedy(request, budget, own):
        grower = growers.Chain(min(2, budget), greedy=False, params=params, **own)
        grower.extend = lambda rows: growers.Chain.extend(grower, best(rows))
        return grower

    def best(rows):
        return torch.where(rows == rows.amax(dim=1, keepdim=True), 9.0, 0.0)

    drafter = Grown(OTHER, ("chain",), greedy)
    right, _ = draw_texts(drafter, "block", params, 1_500)
    monkeypatch.setattr("tests.stat.test_peaked_law.MIN_TV", 0.5)
    assert_rows(right, params, 2)  # It says which rows it has drawn from.
    flat = Grown(OTHER, ("chain",), lambda *each: Claims(greedy(*each)))
    wrong, _ = draw_texts(flat, "block", params, 1_500)
    with pytest.raises(AssertionError, match="order 2"):
        assert_rows(wrong, params, 2)


class Claims:
    """Hands out a grower's draft as drawn from flat rows."""

    def __init__(self, grower):
        self.grower = grower

    def grow(self, source):
        draft = self.grower.grow(source)
        rows = np.zeros((draft.num_nodes - 1, VOCAB), np.float32)
        return mv.Draft(draft.tree, draft.tokens, law="chain", logits=rows)
