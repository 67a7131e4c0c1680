"""The core against its readable twin: same tokens, same path, from the same seed.

Rows are such as models give, in each dtype and at low temperatures, and normal ones.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mtp_verify as mv
from mtp_verify.testing import draw_logits
from mtp_verify.testing.logit_rows import KINDS
from mtp_verify.verifier import reference
from mtp_verify.verifier.reference import DRAFT, Noise
from tests.property.branches import Branches
from tests.property.cases import (
    CORE,
    DTYPES,
    NEAR,
    RULES,
    SOURCES,
    Case,
    near_a_cut,
    shaped,
    shaping,
    widened,
)
from tests.property.tally import Tally

torch = pytest.importorskip("torch")

TALLY = Tally()
TEMPERATURES = st.sampled_from([0.05, 0.2, 0.7, 1.0, 1.5])
EXAMPLES = settings().max_examples  # The profile's: 100, ten times that at night.


@pytest.fixture(scope="module", autouse=True)
def _report():
    yield
    TALLY.report("verify", ["near a threshold"], 0.01)


def logits_of(kind, seed, vocab, count, dtype):
    """Logits of one kind in a dtype of torch, (count, vocab)."""
    rows, _ = draw_logits(np.random.default_rng(seed), vocab, count, kind=kind)
    return torch.from_numpy(rows).to(dtype)


@settings(max_examples=EXAMPLES)
@given(
    seed=st.integers(0, 2**32 - 1),
    law=st.sampled_from(sorted(RULES)),
    vocab=st.integers(1, 4),
    params=shaping(),
    source=st.sampled_from(["probs64", "logits"]),
)
def test_expected_accepted_is_the_mean_over_every_branch(seed, law, vocab, params, source):
    case = Case(seed, law, vocab, torch.float32, params, params, source, most=4)
    if near_a_cut(case.logits, params) or near_a_cut(case.draft_logits, params):
        return
    for rule in RULES[law]:
        found = mv.expected_accepted(case.draft, case.logits, params, rule)
        wanted = 0.0
        for branches in Branches():
            node, _ = reference.decide(case.tree, CORE.get(rule, rule), branches)
            wanted += branches.weight * len(case.tree.path(node))
        assert found == pytest.approx(wanted, abs=2e-6), rule


@settings(max_examples=5 * EXAMPLES)
@given(
    seed=st.integers(0, 2**32 - 1),
    law=st.sampled_from(sorted(RULES)),
    vocab=st.integers(1, 12),
    dtype=st.sampled_from(DTYPES),
    params=shaping(),
    draft_params=shaping(),
    source=st.sampled_from(sorted(SOURCES)),
)
def test_small_vocabularies(seed, law, vocab, dtype, params, draft_params, source):
    case = Case(seed, law, vocab, dtype, params, draft_params, source)
    for rule in RULES[law]:
        case.check(rule, TALLY)


@settings(max_examples=5 * EXAMPLES)
@given(
    seed=st.integers(0, 2**32 - 1),
    law=st.sampled_from(sorted(RULES)),
    vocab=st.sampled_from([4, 12, 100, 512]),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(["recorded", "peaked", "masked", "tied"]),
    temperatures=st.tuples(TEMPERATURES, TEMPERATURES),
    source=st.sampled_from(sorted(SOURCES)),
)
def test_rows_of_models_at_every_temperature(seed, law, vocab, dtype, kind, temperatures, source):
    own, drafters = (mv.SamplingParams(temperature=t) for t in temperatures)
    case = Case(seed, law, vocab, dtype, own, drafters, source, kind=kind)
    for rule in RULES[law]:
        case.check(rule, TALLY)
    drawn_from = {case.tree.parents[n] for n, drawn in enumerate(case.tree.sampled) if drawn}
    left = [1 - case.tree.q(node).max() for node in drawn_from]
    TALLY["rows drawn from"] += len(left)
    TALLY["rows of 1 - 1e-6 or more"] += sum(rest < 1e-6 for rest in left)


@settings(max_examples=EXAMPLES)
@given(
    seed=st.integers(0, 2**32 - 1),
    law=st.sampled_from(sorted(RULES)),
    vocab=st.integers(4900, 5200),
    dtype=st.sampled_from(DTYPES),
    params=shaping(),
    draft_params=shaping(),
    source=st.sampled_from(sorted(SOURCES)),
)
def test_vocabularies_of_five_thousand(seed, law, vocab, dtype, params, draft_params, source):
    case = Case(seed, law, vocab, dtype, params, draft_params, source, most=4)
    for rule in RULES[law][:4]:
        case.check(rule, TALLY)


@settings(max_examples=2 * EXAMPLES)
@given(
    seed=st.integers(0, 2**32 - 1),
    law=st.sampled_from(sorted(RULES)),
    vocab=st.sampled_from([1, 2, 3, 8, 5000]),
    dtype=st.sampled_from(DTYPES),
    params=shaping(),
    lossy=st.one_of(
        st.builds(mv.lossy.typical, st.floats(0.01, 0.99), st.floats(0.01, 2)),
        st.builds(mv.lossy.threshold, st.floats(0.001, 1)),
        st.builds(mv.lossy.topk, st.integers(1, 9)),
        st.builds(mv.lossy.ensemble, st.floats(0.01, 0.99)),
    ),
)
def test_lossy_acceptances(seed, law, vocab, dtype, params, lossy):
    case = Case(seed, law, vocab, dtype, params, params, "probs64")
    if lossy.name == "ensemble" and case.draft.law not in {"chain", "iid", "swor"}:
        if case.draft.num_nodes > 1:
            with pytest.raises(mv.errors.RuleError, match=f'found law "{case.draft.law}"'):
                case.check("auto", TALLY, lossy)
        return
    case.check("auto", TALLY, lossy)


@settings(max_examples=EXAMPLES)
@given(
    seed=st.integers(0, 2**32 - 1),
    law=st.sampled_from(sorted(RULES)),
    dtype=st.sampled_from(DTYPES),
)
def test_temperature_zero_is_greedy_under_every_rule(seed, law, dtype):
    greedy = mv.SamplingParams(temperature=0.0)
    case = Case(seed, law, 7, dtype, greedy, mv.SamplingParams(), "probs64")
    for rule in [*RULES[law], "greedy", "auto"]:
        verdict = mv.verify(case.draft, case.logits, greedy, rule=rule, seed=1, position=0)
        assert verdict.rule == "greedy"
        node = 0
        for token, following in zip(verdict.tokens, [*verdict.path, None], strict=True):
            assert token == int(np.argmax(widened(case.logits)[node]))
            node = following


@settings(max_examples=EXAMPLES)
@given(
    seed=st.integers(0, 2**32 - 1),
    vocab=st.sampled_from([3, 50, 3000]),
    dtype=st.sampled_from(DTYPES),
    params=shaping(),
    rule=st.sampled_from(["topdown", "lifted", "auto"]),
    kind=st.sampled_from(KINDS),
)
def test_a_drafter_equal_to_the_target_is_always_accepted(seed, vocab, dtype, params, rule, kind):
    logits = logits_of(kind, seed, vocab, 5, dtype)
    tokens = [-1]
    for node in range(1, 5):
        row = logits[node - 1]
        tokens.append(mv._core.draw(row, params, seed, 11, node))
    tree = mv.TokenTree([-1, 0, 1, 2, 3])
    draft = mv.Draft(tree, tokens, law="chain", logits=logits[:4], params=params)
    verdict = mv.verify(draft, logits, params, rule=rule, seed=seed, position=11)
    assert verdict.num_accepted == 4
    assert verdict.tokens[:4].tolist() == tokens[1:]


@settings(max_examples=EXAMPLES)
@given(
    seed=st.integers(0, 2**64 - 1),
    vocab=st.sampled_from([1, 2, 9, 2000]),
    dtype=st.sampled_from(DTYPES),
    params=shaping(),
    position=st.integers(0, 2**31),
    node=st.integers(0, 100),
    kind=st.sampled_from(KINDS),
)
def test_the_drafters_draw_is_the_references(seed, vocab, dtype, params, position, node, kind):
    logits = logits_of(kind, seed, vocab, 1, dtype)
    noise = Noise(seed, position)
    wanted = noise.draw(node, shaped(logits, params)[0], DRAFT)
    found = mv._core.draw(logits, params, seed, position, node)
    if found != wanted:
        assert noise.margin < NEAR or near_a_cut(logits, params)
        TALLY["near a threshold"] += 1


@settings(max_examples=EXAMPLES)
@given(
    seed=st.integers(0, 2**32 - 1),
    law=st.sampled_from(sorted(RULES)),
    params=shaping(),
    vocab=st.sampled_from([5, 300]),
)
def test_coupled_output_is_seeded_plain_decoding(seed, law, params, vocab):
    """Token by token: the verdict of any draft is what empty drafts give with the same seed."""
    case = Case(seed, law, vocab, torch.float32, params, params, "probs64")
    found = mv.verify(case.draft, case.logits, params, rule="coupled", seed=seed, position=40)
    root = mv.Draft(mv.TokenTree([-1]), [-1])
    for depth, (token, node) in enumerate(zip(found.tokens, [0, *found.path], strict=True)):
        plain = mv.verify(
            root, case.logits[node : node + 1], params,
            rule="coupled", seed=seed, position=40 + depth,
        )  # fmt: skip
        assert plain.tokens.tolist() == [token]
