"""Decoding under a constraint: its law, its end, and what a drafter may then propose.

Laws are compared with the exact one of constrained plain decoding, enumerated over all words of a
tiny language, by Weissman's bound: P(||f - p||_1 >= e) <= (2^K - 2) exp(-n e^2 / 2) with K strings,
false alarm rate 1e-9 a case. At n = 3,000 and K = 40 (slow) e = 0.18. The fast case has K = 2 and
n = 500, so e = 0.30, and its control is off by 0.5: dropping a drawn token is a bias of 1/4.
"""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify import _core
from mtp_verify.drafters import Model, ModelTree
from mtp_verify.testing import TableTarget
from mtp_verify.verifier import growers
from tests.grammars import (
    EOS,
    TOKENS,
    WORDS,
    Finite,
    allowed_after,
    by_llguidance,
    by_xgrammar,
)
from tests.models import ScriptDrafter, StubDrafter, TreeDrafter, tiny_model

VOCAB = len(TOKENS)
PROMPT = [5, 6]


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
    shape = growers.TreeShape.by_depth(3, 2)

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
CASES = [(drafter, "auto") for drafter in DRAFTERS] + [
    ("masked chain", "block"),
    ("unmasked chain", "token"),
    ("masked tree", "coupled"),
]


def assert_law(decoder, law, num_samples: int, words=WORDS) -> None:
    counts = Counter(
        tuple(
            decoder.generate(PROMPT, max_new_tokens=9, seed=seed, constraint=Finite(words)).tokens[
                0
            ]
        )
        for seed in range(num_samples)
    )
    assert set(counts) <= set(law)
    distance = sum(abs(counts[string] / num_samples - p) for string, p in law.items())
    assert distance < math.sqrt(2 * (len(law) * math.log(2) - math.log(1e-9)) / num_samples)


@pytest.mark.slow
@pytest.mark.stat
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("drafter", "rule"), CASES)
def test_law_is_that_of_constrained_plain_decoding(drafter, rule):
    target, params = table(1), mv.SamplingParams(temperature=1.3, top_k=3)
    law = constrained_law(target, params)
    assert sum(law.values()) == pytest.approx(1)
    assert_law(mv.Decoder(target, DRAFTERS[drafter](), params, rule), law, 3_000)


# The specification's own case: a fair target of which the first of three tokens is forbidden, and a
# drafter that draws the first two alike. Dropping the first would leave p as 1/4, 3/4.
FAIR = TableTarget(lambda path: [0.0] * VOCAB, VOCAB)
HALF = np.where(np.isin(range(VOCAB), (0, 1)), 0, -np.inf).astype(np.float32)
PAIR = (b"b", b"c")


class Dropping(Unmasked):
    """Takes a drawn token that is forbidden out of the draft."""

    def draft(self, request, budget):
        draft = super().draft(request, budget)
        _, allowed = request.matcher.masks(draft)
        return draft if allowed.all() else StubDrafter.draft(self, request, budget)


def test_a_drawn_token_that_is_forbidden_stays_and_does_no_harm():
    law = constrained_law(FAIR, mv.SamplingParams(), PAIR)
    assert law == {(1, EOS): 0.5, (2, EOS): 0.5}
    assert_law(mv.Decoder(FAIR, Unmasked(1, HALF), rule="token"), law, 500, PAIR)
    with pytest.raises(AssertionError):
        assert_law(mv.Decoder(FAIR, Dropping(1, HALF), rule="token"), law, 500, PAIR)


LIBRARIES = {"xgrammar": by_xgrammar, "llguidance": by_llguidance}


def tiny() -> object:
    return tiny_model("llama", vocab_size=VOCAB, eos_token_id=EOS)


@pytest.mark.parametrize("library", LIBRARIES)
def test_greedy_and_coupled_tokens_do_not_depend_on_the_drafter(library):
    pytest.importorskip(library)
    model, constraint = tiny(), LIBRARIES[library]().regex("(a|bc){1,12}d")
    for params, rule in (
        (mv.SamplingParams(temperature=0), "auto"), (mv.SamplingParams(), "coupled")
    ):  # fmt: skip
        for drafter in (
            mv.drafters.NGram(num_tokens=3),
            TreeDrafter([-1, 0, 0, 0, 1, 1, 2], vocab=VOCAB),
            Model(model, num_tokens=3, params=params),
        ):
            decoder = mv.Decoder(model, drafter, params, rule)
            run = {"max_new_tokens": 16, "seed": 4, "constraint": constraint}
            fast = decoder.generate(PROMPT, **run)
            plain = decoder.generate(PROMPT, speculate=False, **run)
            assert fast.tokens == plain.tokens
            assert np.allclose(fast.logprobs[0], plain.logprobs[0], atol=1e-5)
            tokens = fast.tokens[0]
            text = b"".join(TOKENS[token] for token in tokens if token != EOS)
            assert re.fullmatch(b"(a|bc){1,12}d?|(a|bc){0,11}b", text)


def test_rows_of_a_batch_have_constraints_of_their_own():
    model = tiny()
    prompts = [PROMPT, [1, 2, 3], [4]]
    constraints = [Finite(), None, Finite(PAIR)]
    decoder = mv.Decoder(model, mv.drafters.NGram(), mv.SamplingParams(), "coupled")
    batch = decoder.generate(prompts, max_new_tokens=8, seed=[1, 2, 3], constraint=constraints)
    for row in range(3):
        own = decoder.generate(
            prompts[row], max_new_tokens=8, seed=row + 1, constraint=constraints[row]
        )
        assert batch.tokens[row] == own.tokens[0]
    assert b"".join(TOKENS[token] for token in batch.tokens[0][:-1]) in WORDS
    assert batch.finish_reasons[0] == batch.finish_reasons[2] == "stop"
    number = decoder.submit([4], max_new_tokens=8, seed=3, constraint=constraints[2])
    while decoder.num_unfinished:
        decoder.step()
    assert decoder.results()[number].tokens[0] == batch.tokens[2]


def test_deterministic_drafts_are_run_without_their_forbidden_nodes():
    decoder = mv.Decoder(table(1), ScriptDrafter([*PROMPT, 5, 5, 5, 5]), None)
    result = decoder.generate(PROMPT, max_new_tokens=8, seed=0, constraint=Finite())
    assert result.stats.drafted == 0


@pytest.mark.parametrize("drafter", ["masked chain", "greedy chain", "best-first tree"])
def test_drafters_with_rows_propose_only_what_is_allowed(drafter):
    made, drafted = DRAFTERS[drafter](), []
    propose = made.propose

    def checked(requests, budgets):
        drafts = propose(requests, budgets)
        for request, draft in zip(requests, drafts, strict=True):
            assert request.matcher.masks(draft)[1].all()
            drafted.append(draft.num_nodes - 1)
        return drafts

    made.propose = checked
    for seed in range(20):
        mv.Decoder(table(1), made).generate(
            PROMPT, max_new_tokens=8, seed=seed, constraint=Finite()
        )
    assert sum(drafted) > 20


def test_dead_ends_are_named_with_the_tokens_before_them():
    # `ay` can be begun and never ended: no token holds a `y`.
    decoder = mv.Decoder(table(1), ScriptDrafter([*PROMPT, 0, 0, 0]))
    for speculate in (True, False):
        with pytest.raises(mv.errors.NumericsError, match=r"no token after \[0\]") as caught:
            decoder.generate(
                PROMPT, max_new_tokens=8, seed=0, constraint=Finite({b"ay"}), speculate=speculate
            )
        assert caught.value.slug == "dead_end"
    with pytest.raises(mv.errors.NumericsError, match=r"no token after \[\]"):
        decoder.generate(PROMPT, max_new_tokens=8, seed=0, constraint=Finite({b"y"}))


def test_constraints_of_another_tokenizer_are_refused():
    with pytest.raises(mv.errors.ParamsError, match="over 9 tokens") as caught:
        mv.Decoder(table(1)).generate(
            PROMPT, max_new_tokens=2, seed=0, constraint=Finite(vocab_size=9)
        )
    assert caught.value.slug == "vocab_mismatch"
    model = tiny_model("llama", vocab_size=VOCAB, eos_token_id=3)
    with pytest.raises(mv.errors.ParamsError, match=r"ends with \[7\] and the model with \[3\]"):
        mv.Decoder(model).generate(PROMPT, max_new_tokens=2, seed=0, constraint=Finite())
    with pytest.raises(
        mv.errors.ParamsError, match="constraint: found 'json', wanted one Constraint"
    ):
        mv.Decoder(table(1)).generate(PROMPT, max_new_tokens=2, seed=0, constraint="json")


def test_a_matcher_that_raises_ends_its_own_request_alone():
    class Broken(Finite):
        def start(self, prompt):
            matcher = super().start(prompt)
            matcher.fill = self.fail
            return matcher

        def fail(self, mask):
            raise RuntimeError("out of fuel")

    decoder = mv.Decoder(table(1), mv.drafters.NGram())
    bad = decoder.submit(PROMPT, max_new_tokens=4, seed=0, constraint=Broken())
    good = decoder.submit(PROMPT, max_new_tokens=4, seed=0, constraint=Finite())
    while decoder.num_unfinished:
        decoder.step()
    results = decoder.results()
    assert "fuel" in str(results[bad].errors[0])
    assert results[good].errors == [None]
