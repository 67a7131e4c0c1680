from __future__ import annotations

import builtins
import doctest
import importlib
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mtp_verify as mv
from mtp_verify.testing import exact_law, strategies


@given(strategies.trees(max_nodes=9, max_depth=3))
def test_trees_keep_their_limits(tree):
    assert tree.num_nodes <= 10
    assert tree.depths.max() <= 3


@pytest.mark.parametrize("law", strategies.LAWS)
@given(data=st.data())
def test_every_legal_rule_runs_on_steps_of_every_law(law, data):
    draft, logits = data.draw(strategies.steps(law))
    assert draft.law == law
    draft.validate()
    assert (logits.shape, logits.dtype) == ((draft.num_nodes, 4), np.float32)
    params = data.draw(strategies.params())
    rule = data.draw(
        st.sampled_from(["auto", *(r["name"] for r in mv.rules() if is_legal(r, draft))])
    )
    verdict = mv.verify(draft, logits, params, rule=rule, seed=1, position=3)
    assert len(verdict.tokens) == verdict.num_accepted + 1


def is_legal(rule, draft):
    """Whatever the draft's shape and the temperature are."""
    return draft.law in rule["laws"] and rule["shapes"] in ("any tree", "any tree of the law")


@given(strategies.steps("iid", vocab=2, max_depth=2))
def test_nodes_with_the_same_path_have_the_same_rows(step):
    draft, logits = step
    rows = {}
    for node in range(draft.num_nodes):
        path = tuple(draft.tokens[draft.tree.path(node)].tolist())
        np.testing.assert_array_equal(rows.setdefault(path, logits[node]), logits[node])


@pytest.mark.parametrize("law", strategies.LAWS)
@given(data=st.data())
def test_drafts_keep_their_limits(law, data):
    draft = data.draw(strategies.drafts(law, vocab=3, max_nodes=5, max_depth=2))
    assert draft.law == law
    assert draft.num_nodes <= 6
    assert draft.tree.depths.max() <= 2
    assert ((draft.tokens[1:] >= 0) & (draft.tokens[1:] < 3)).all()


def largest(strategy, measure, count=200):
    """The largest measure among the draws of a strategy: that rare things are drawn at all."""
    found = [-np.inf]

    @settings(max_examples=count, derandomize=True, database=None)
    @given(strategy)
    def look(drawn):
        found[0] = max(found[0], float(measure(drawn)))

    look()
    return found[0]


@given(strategies.probabilities(vocab=9, count=2, dtype="float32"))
def test_probabilities_sum_to_one(rows):
    assert (rows.shape, rows.dtype) == ((2, 9), np.float32)
    assert (rows >= 0).all()
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-6)


def test_probabilities_have_peaks_ties_and_zeros():
    rows = strategies.probabilities(vocab=9)
    assert largest(rows, lambda p: p.max() < 1 and p.max()) > 1 - 1e-6
    assert largest(rows, np.max) == 1
    assert largest(rows, lambda p: (p == 0).sum()) >= 6
    assert largest(rows, lambda p: p.size - len(np.unique(p))) >= 6
    assert largest(rows, lambda p: -p.max()) > -0.2
    halves = strategies.probabilities(vocab=9, dtype="float16", kinds=["recorded"])
    assert largest(halves, lambda p: abs(p.sum(dtype=np.float64) - 1)) > 1e-4


@pytest.mark.parametrize(("kind", "tokens"), [("masked", 3), ("tied", 9)])
def test_logits_are_of_the_kinds_asked_for(kind, tokens):
    rows = strategies.logits(vocab=9, kinds=[kind])
    assert largest(rows, lambda r: np.isfinite(r).sum()) == tokens
    assert largest(rows, lambda r: len(np.unique(r))) < 9


def test_logits_have_peaks():
    def gap(rows):
        first, second = np.sort(rows[0])[-2:][::-1]
        return first - second

    assert largest(strategies.logits(vocab=9, kinds=["peaked"], dtype="bfloat16"), gap) > 35


def test_parameters_are_low_temperatures_too_and_0_on_request():
    assert -largest(strategies.params(), lambda p: -p.temperature) == 0.05
    assert -largest(strategies.params(greedy=True), lambda p: -p.temperature) == 0


@given(strategies.targets(vocab=3))
def test_targets_have_exact_laws(rows):
    assert exact_law(rows, [0, 1], 3).probs.sum() == pytest.approx(1.0)


def test_drafts_of_an_unknown_law_are_refused():
    with pytest.raises(mv.errors.ParamsError, match="wanted one of: deterministic"):
        strategies.drafts("magic")


def test_missing_hypothesis_says_what_to_install(monkeypatch):
    original = builtins.__import__

    def refuse(name, *rest):
        if name == "hypothesis":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.delitem(sys.modules, "mtp_verify.testing.strategies")
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r'pip install "mtp-verify\[testing\]"'):
        importlib.import_module("mtp_verify.testing.strategies")


@pytest.mark.parametrize("module", ["strategies", "logit_rows"])
def test_examples_of_docstrings_run(module):
    found = doctest.testmod(importlib.import_module(f"mtp_verify.testing.{module}"))
    assert found.failed == 0
    assert found.attempted >= 2
