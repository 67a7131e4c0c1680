from __future__ import annotations

import builtins
import importlib
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mtp_verify as mv
from mtp_verify.testing import exact_law, strategies


@given(strategies.trees(max_nodes=9, max_depth=3))
def test_trees_keep_their_limits(tree):
    assert tree.num_nodes <= 10
    assert tree.depths.max() <= 3


@pytest.mark.parametrize("law", strategies.LAWS)
@given(data=st.data())
def test_drafts_of_every_law_are_accepted_and_can_be_verified(law, data):
    draft = data.draw(strategies.drafts(law))
    assert draft.law == law
    draft.validate()
    logits = np.log(data.draw(strategies.rows(4, draft.num_nodes)) + 1e-9).astype(np.float32)
    verdict = mv.verify(draft, logits, data.draw(strategies.params()), seed=1, position=3)
    assert len(verdict.tokens) == verdict.num_accepted + 1


@given(strategies.targets(vocab=3))
def test_targets_have_exact_laws(rows):
    assert exact_law(rows, [0, 1], 3).probs.sum() == pytest.approx(1.0)


def test_drafts_of_an_unknown_law_are_refused():
    with pytest.raises(mv.ParamsError, match="wanted one of: deterministic"):
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
