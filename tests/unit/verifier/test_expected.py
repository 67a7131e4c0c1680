"""`expected_accepted` and `alpha_star`: worked figures, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import mtp_verify as mv

P = np.array([0.1, 0.2, 0.3, 0.4])
Q = P[::-1].copy()
LOGITS = np.log(np.stack([P, Q])).astype(np.float32)


def two(law, tokens, **given):
    """Root with two children: model E of the specification."""
    logits = LOGITS[[0, 1, 1]]
    draft = mv.Draft(mv.TokenTree([-1, 0, 0]), [-1, *tokens], law=law, **given)
    return draft, logits


@pytest.mark.parametrize(
    ("law", "tokens", "rule", "wanted"),
    [
        ("iid", [0, 1], "specinfer", 1 / 4),
        ("swor", [0, 1], "rrsw", 1 / 4),
        # rho = 3/2: the first is accepted with 1/6, the second with 4/9.
        ("iid", [0, 1], "kseq", 1 / 6 + 5 / 6 * 4 / 9),
        # Token 1 is in front, where it is wished for with 2/3 and leads with 11/10.
        ("iid", [0, 1], "global_resolution", 2 / 3 / (11 / 10)),
        # The sampled token is accepted with 2/5; else the draw from the residual may hit token 0.
        ("top_plus_one", [1, 0], "hu", 2 / 5 + 3 / 5 * 3 / 10),
        ("deterministic", [0, 1], "target_only", 3 / 10),
        ("deterministic", [0, 1], "coupled", 3 / 10),
    ],
)
def test_two_siblings_on_e(law, tokens, rule, wanted):
    given = {} if law == "deterministic" else {"probs": Q[None]}
    draft, logits = two(law, tokens, **given)
    found = mv.expected_accepted(draft, logits, None, rule)
    assert found == pytest.approx(wanted, abs=1e-6)


def test_greedy_counts_the_path():
    draft = mv.Draft.chain([3, 0])
    greedy = mv.SamplingParams(temperature=0)
    assert mv.expected_accepted(draft, LOGITS[[0, 1, 1]], greedy) == 2.0


@pytest.mark.parametrize(("rule", "wanted"), [("token", 3 / 4), ("block", 1 / 2)])
def test_the_draft_that_block_verification_accepts_less_of(rule, wanted):
    """Model A, tokens 0, 0: the other drafts more than make up for it."""
    logits = np.log(np.array([[1, 2]] * 3, np.float32))
    draft = mv.Draft.chain([0, 0], np.array([[2, 1]] * 2) / 3)
    assert mv.expected_accepted(draft, logits, rule=rule) == pytest.approx(wanted, abs=1e-6)


def test_a_coupled_draft_tells_about_the_noise_of_its_rule():
    draft, logits = two("coupled", [0, 1])
    with pytest.raises(mv.errors.DraftError, match="target_only") as caught:
        mv.expected_accepted(draft, logits, None, "coupled")
    assert caught.value.slug == "law_data"
    found = mv.expected_accepted(draft, logits, None, "target_only")
    assert found == pytest.approx(3 / 10, abs=1e-6)


def test_multi_path_rules_refuse_by_law_and_by_shape():
    draft, logits = two("swor", [0, 1], probs=Q[None])
    for rule in ("kseq", "gbv", "global_resolution"):
        with pytest.raises(mv.errors.RuleError, match="traversal") as caught:
            mv.verify(draft, logits, rule=rule, seed=0, position=0)
        assert caught.value.slug == "illegal_pair"
    tree = mv.TokenTree([-1, 0, 1, 1])
    uneven = mv.Draft(tree, [-1, 0, 1, 2], law="iid", probs=np.stack([Q, P]))
    with pytest.raises(mv.errors.RuleError, match="paths of one length") as caught:
        mv.verify(uneven, LOGITS[[0, 1, 1, 1]], rule="gbv", seed=0, position=0)
    assert (caught.value.slug, caught.value.node) == ("rule_shape", 1)


@pytest.mark.parametrize(
    ("law", "n", "wanted"),
    [
        ("iid", 2, 79 / 100),
        ("swor", 2, 701 / 840),
        ("top_plus_one", 2, 23 / 30),
        ("chain", 1, 3 / 5),
        ("deterministic", 2, 3 / 10),
    ],
)
def test_alpha_star_gives_the_specifications_roots(law, n, wanted):
    assert mv.verifier.alpha_star(P, Q, n, law) == pytest.approx(wanted, abs=1e-14)


@pytest.mark.parametrize(
    ("call", "error", "slug"),
    [
        (
            lambda: mv.verifier.alpha_star(P, Q, 0, "iid"),
            mv.errors.ParamsError,
            "param_out_of_range",
        ),
        (
            lambda: mv.verifier.alpha_star(P, Q, 2, "chain"),
            mv.errors.ParamsError,
            "param_out_of_range",
        ),
        (lambda: mv.verifier.alpha_star(P, Q, 2, "mixed"), mv.errors.DraftError, "law_data"),
        (lambda: mv.verifier.alpha_star(P, Q, 2, "best"), mv.errors.DraftError, "unknown_law"),
        (
            lambda: mv.verifier.alpha_star(P, Q[:3], 2, "iid"),
            mv.errors.NumericsError,
            "row_not_normalised",
        ),
        (
            lambda: mv.verifier.alpha_star(P, np.ones(1), 2, "iid"),
            mv.errors.DraftError,
            "shape_mismatch",
        ),
        (
            lambda: mv.verifier.alpha_star(P * np.nan, Q, 2, "iid"),
            mv.errors.NumericsError,
            "row_not_finite",
        ),
        (
            lambda: mv.verifier.alpha_star(np.stack([P, P]), Q, 2, "iid"),
            mv.errors.DraftError,
            "shape_mismatch",
        ),
    ],
)
def test_alpha_star_refuses(call, error, slug):
    with pytest.raises(error) as caught:
        call()
    assert caught.value.slug == slug
