"""The joint law of whole generations through `Decoder` equals the target's exact law.

The target is a table, so the law of the first tokens is computed exactly, in float64, under the
same shaping and penalties. Each case draws n independent generations (seeds 0, 1, 2, ...; one seed
is one stream of noise) and compares the frequencies of whole token strings with that law:

- a string of probability 0 is a failure at once;
- the distance ||f - p||_1 must stay below the radius e of Weissman's bound,
  P(||f - p||_1 >= e) <= (2^K - 2) exp(-n e^2 / 2) over K strings, set so that the bound is ALPHA.

False alarms: ALPHA = 1e-9 a case. Power: a bias of total variation t moves the L1 distance by 2 t,
    so
any t > e is found with probability 1 - ALPHA at least (the same bound around the biased law).
`_radius` gives e: for K = 27 strings 0.100 at n = 8,000 (fast) and 0.037 at n = 60,000 (slow).
Losslessness of the rules themselves is proven by enumeration; this test is about the loop around
them: noise addresses over steps, drafts near the end, drafters' caches, cuts, and commits.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import mtp_verify as mv
from mtp_verify import _core
from mtp_verify.decoder.decode import Decoder
from mtp_verify.decoder.planning import Costs
from mtp_verify.drafters import Combined, Model, Suffix
from mtp_verify.testing import TableTarget
from mtp_verify.verifier import reference
from tests.models import ScriptDrafter, StubDrafter, TreeDrafter, tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable

ALPHA = 1e-9
FAST, SLOW = 8_000, 60_000


def _radius(num_strings: int, num_samples: int) -> float:
    # Weissman et al. 2003: ln(2^K - 2) < K ln 2.
    return math.sqrt(2.0 * (num_strings * math.log(2.0) - math.log(ALPHA)) / num_samples)


def exact_law(
    target: Any, prompt: list[int], params: mv.SamplingParams, length: int, eos: int | None
) -> dict[tuple[int, ...], float]:
    """The target's law of the first `length` emitted tokens, shorter where EOS ends the string."""
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        grown: dict[tuple[int, ...], float] = {}
        for string, weight in law.items():
            if eos is not None and eos in string:
                grown[string] = weight
                continue
            text = [*prompt, *string]
            logits = np.asarray(target.rows(tuple(text)), np.float32)
            logits = reference.penalise(logits, text, len(prompt), params)
            row = _core.shaped_row(logits, params)
            row = np.asarray(row, np.float64) / np.sum(row)
            for token in np.flatnonzero(row):
                grown[*string, int(token)] = weight * float(row[token])
        law = grown
    return law


def assert_law(
    decoder: Decoder,
    target: Any,
    prompt: list[int],
    *,
    length: int,
    num_samples: int,
    extra: int = 0,
    eos: int | None = None,
) -> None:
    """Compare the joint law of the first `length` tokens, of `length + extra` generated."""
    law = exact_law(target, prompt, decoder.params, length, eos)
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(num_samples):
        result = decoder.generate(
            prompt,
            max_new_tokens=length + extra,
            seed=seed,
            eos_token_id=() if eos is None else eos,
        )
        counts[tuple(result.tokens[0][:length])] += 1
    impossible = {string: n for string, n in counts.items() if string not in law}
    assert not impossible, f"strings of probability 0 were emitted: {impossible}"
    distance = sum(abs(counts[string] / num_samples - p) for string, p in law.items())
    radius = _radius(len(law), num_samples)
    assert distance < radius, (
        f"L1 distance {distance:.4f} >= {radius:.4f} over {len(law)} strings and "
        f"{num_samples} generations: the output law is not the target's"
    )


def table(vocab: int, seed: int, spread: float) -> TableTarget:
    """Rows that depend on the whole path: a wrong path, position or order shows."""
    pool = torch.from_numpy(
        (np.random.default_rng(seed).normal(size=(211, vocab)) * spread).astype(np.float32)
    )

    def rows(path: tuple[int, ...]) -> torch.Tensor:
        place = 0
        for token in path:
            place = (place * 31 + token + 1) % 211
        return pool[place]

    return TableTarget(rows, vocab)


@dataclass(frozen=True)
class Case:
    vocab: int
    length: int
    extra: int
    target_seed: int
    spread: float
    params: mv.SamplingParams
    draft: str
    rule: str
    num_tokens: int
    draft_params: mv.SamplingParams
    min_confidence: float
    eos: int | None


SHAPES = st.builds(
    mv.SamplingParams,
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    top_k=st.sampled_from([0, 0, 2]),
    top_p=st.sampled_from([1.0, 1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.0, 0.1]),
)


TARGETS = st.builds(
    lambda shape, **penalties: replace(shape, **penalties),
    SHAPES,
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.6]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.8]),
    frequency_penalty=st.sampled_from([0.0, 0.0, -0.4]),
    logit_bias=st.sampled_from([None, None, {1: 0.7}]),
)


@st.composite
def cases(draw: Callable[..., Any]) -> Case:
    vocab = draw(st.integers(2, 3))
    draft = draw(st.sampled_from(["sampled", "sampled", "greedy", "script", "tree", "ngram"]))
    rules = ["auto", "target_only", "coupled"]
    if draft == "sampled":
        rules += ["token", "block"]
    return Case(
        vocab=vocab,
        length=draw(st.integers(3, 4 if vocab == 2 else 3)),
        extra=draw(st.integers(0, 3)),
        target_seed=draw(st.integers(0, 1000)),
        spread=draw(st.sampled_from([0.5, 1.0, 2.0])),
        params=draw(TARGETS),
        draft=draft,
        rule=draw(st.sampled_from(rules)),
        num_tokens=draw(st.integers(1, 4)),
        draft_params=draw(SHAPES),
        min_confidence=draw(st.sampled_from([0.0, 0.0, 0.5])),
        eos=draw(st.sampled_from([None, None, 0])),
    )


def drafter_of(case: Case) -> Any:
    if case.draft in ("sampled", "greedy"):
        return Model(
            table(case.vocab, case.target_seed + 1, case.spread),
            num_tokens=case.num_tokens,
            params=case.draft_params if case.draft == "sampled" else None,
            min_confidence=case.min_confidence,
        )
    if case.draft == "script":
        return ScriptDrafter([1, 0, 1, 1, 0, 1, 0, 0, 1, 1], case.num_tokens)
    if case.draft == "tree":
        #  0 - 1 - 3     and 2, 4 beside them
        parents = [-1, 0, 0, 1, 1, 2][: case.num_tokens + 2]
        return TreeDrafter(parents, vocab=case.vocab)
    return mv.drafters.NGram(num_tokens=case.num_tokens)


def check(case: Case, num_samples: int) -> None:
    target = table(case.vocab, case.target_seed, case.spread)
    assert_law(
        Decoder(target, drafter_of(case), case.params, case.rule),
        target,
        [1, 0, 1],
        length=case.length,
        extra=case.extra,
        num_samples=num_samples,
        eos=case.eos,
    )


_OPTIONS: dict[str, Any] = {
    "deadline": None,
    "database": None,
    # A failure is rare and shrinking repeats the whole sample: report it as found.
    "phases": [Phase.explicit, Phase.generate],
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


@pytest.mark.timeout(600)
@given(case=cases())
@settings(max_examples=12, derandomize=True, **_OPTIONS)
def test_random_generations_have_the_targets_law(case: Case) -> None:
    check(case, FAST)


@pytest.mark.slow
@pytest.mark.stat
@pytest.mark.timeout(3600)
@given(case=cases())
@settings(max_examples=20, **_OPTIONS)
def test_random_generations_have_the_targets_law_in_depth(case: Case) -> None:
    check(case, SLOW)


@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
def test_law_holds_with_a_drafter_of_disjoint_support(rule: str) -> None:
    def rows(path: tuple[int, ...]) -> list[float]:
        return [0.3 * len(path), 0.0, -math.inf, -math.inf]

    target = TableTarget(rows, 4)
    other = TableTarget(lambda path: [-math.inf, -math.inf, 0.0, 1.0], 4)
    decoder = Decoder(target, Model(other, num_tokens=3, params=mv.SamplingParams()), None, rule)
    assert_law(decoder, target, [0], length=4, extra=2, num_samples=4_000)


@pytest.mark.parametrize("mask", [None, 0], ids=["chain", "at masks"])
@pytest.mark.parametrize("rule", ["token", "block"])
def test_law_holds_for_a_transformers_pair(rule: str, mask: int | None) -> None:
    # The one end-to-end case with a real forward, cache and mask; its law by teacher forcing.
    options = {"vocab_size": 3, "initializer_range": 0.5, "num_hidden_layers": 1}
    model, small = tiny_model("llama", 1, **options), tiny_model("llama", 2, **options)
    cached: dict[tuple[int, ...], np.ndarray] = {}

    def rows(path: tuple[int, ...]) -> np.ndarray:
        if path not in cached:
            with torch.no_grad():
                cached[path] = model(torch.tensor([path])).logits[0, -1].numpy()
        return cached[path]

    params = mv.SamplingParams(temperature=0.8)
    drafter = Model(small, num_tokens=2, params=params, mask_token=mask)
    decoder = Decoder(model, drafter, params, rule)
    assert_law(decoder, TableTarget(rows, 3), [1, 2], length=3, extra=1, num_samples=700)


@pytest.mark.parametrize("rule", ["token", "block"])
def test_law_holds_whatever_is_planned(rule: str) -> None:
    # Copies are looked at before their size is chosen, drawn drafts are not; both in one drafter.
    target, other = table(3, 1, 1.5), table(3, 2, 1.5)
    params = mv.SamplingParams(temperature=0.8)
    drafter = Combined([Suffix(3, min_match=1), Model(other, num_tokens=2, params=params)])
    ticks = itertools.count()
    planner = mv.Planner(Costs({1: {1: 1.0, 9: 1.3}}), clock=lambda: 1e-6 * next(ticks))
    decoder = Decoder(target, drafter, params, rule, planner=planner)
    made = decoder.generate([1, 0, 1], max_new_tokens=40, seed=0).stats
    assert sum(made.budgets[1:]) > 5  # and some are drafted, some plain
    assert_law(decoder, target, [1, 0, 1], length=3, extra=2, num_samples=FAST // 2)


class _Biased(StubDrafter):
    """Always token 0, declared as drawn from (1/2, 1/2): what a greedy drafter with q < 1 does."""

    def draft(self, request: Any, budget: int) -> mv.Draft:
        if budget < 1:
            return super().draft(request, budget)
        flat = np.full((1, 2), 0.5, np.float32)
        return mv.Draft(mv.TokenTree([-1, 0]), [request.tokens[-1], 0], law="chain", probs=flat)


def test_wrong_law_of_a_draft_is_noticed() -> None:
    # Negative control: total variation 1/4 at the first token of a fair coin.
    target = TableTarget(lambda path: [0.0, 0.0], 2)
    decoder = Decoder(target, _Biased(), None, "token")
    with pytest.raises(AssertionError, match="not the target's"):
        assert_law(decoder, target, [0], length=3, num_samples=2_000)


def test_noise_shared_by_two_steps_is_noticed() -> None:
    # Negative control: the same root position twice, so that two tokens share their noise.
    target = TableTarget(lambda path: [0.0, 0.0], 2)
    decoder = Decoder(target, None)
    original = mv.verify_batch

    def verify_batch(*drafts: Any, positions: list[int], **options: Any) -> Any:
        return original(*drafts, positions=[place // 2 for place in positions], **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtp_verify.decoder.verdicts.verify_batch", verify_batch)
        with pytest.raises(AssertionError, match="not the target's"):
            assert_law(decoder, target, [0], length=3, num_samples=2_000)


def test_radius_follows_the_bound() -> None:
    for strings, samples in itertools.product((8, 27), (1_000, 100_000)):
        radius = _radius(strings, samples)
        assert (2.0**strings) * math.exp(-samples * radius**2 / 2) == pytest.approx(ALPHA)
    assert _radius(27, FAST) < 0.1
    assert _radius(27, SLOW) < 0.037
