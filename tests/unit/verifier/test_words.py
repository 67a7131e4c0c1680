"""The words of the types are those that the package takes, no fewer and no more."""

from __future__ import annotations

import re
from typing import get_args, get_type_hints

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify import _core
from mtp_verify.decoder.generation import Stats, StatsRecord
from mtp_verify.drafters import Combined, NGram, Suffix
from mtp_verify.testing import BatchTableTarget
from mtp_verify.verifier import words
from mtp_verify.verifier.growers import Fixed
from mtp_verify.verifier.tree_shape import TreeShape

ROW = np.full(4, 0.25, np.float32)
RULES = get_args(words.RuleName)
LAWS = get_args(words.Law)
LOSSY = {"typical": [0.3, 0.1], "topk": [2.0]}


def is_taken(call, word: str) -> bool:
    try:
        call(word)
    except mv.MtpVerifyError:
        return False
    return True


def empty_draft(law: str) -> mv.Draft:
    return mv.Draft(mv.TokenTree([-1]), [-1], law=law, sampled=[False] if law == "mixed" else None)


def test_rules_are_those_of_the_table():
    assert [rule["name"] for rule in mv.rules()] == list(RULES)
    assert list(dict.fromkeys(rule["core"] for rule in mv.rules())) == list(
        get_args(words.RuleCore)
    )
    assert set(get_args(words.Rule)) == {"auto", *RULES}


def test_laws_are_those_of_the_table():
    assert {law for rule in mv.rules() for law in rule["laws"]} == set(LAWS)
    assert all(empty_draft(law).law == law for law in LAWS)
    with pytest.raises(mv.errors.DraftError, match=re.escape(", ".join(LAWS))):
        empty_draft("sampled")


def test_the_best_rule_of_each_law_has_a_rule_s_name():
    assert {mv.best_rule(empty_draft(law)) for law in LAWS} <= set(RULES)


@pytest.mark.parametrize(
    ("kind", "record"),
    [(words.RuleRecord, mv.rules()[0]), (words.BuildInfo, mv.verifier.build_info()),
     (StatsRecord, Stats().as_dict())],
    ids=["rules", "build_info", "stats"],
)  # fmt: skip
def test_records_have_the_keys_and_types_of_their_class(kind, record):
    hints = get_type_hints(kind)
    assert list(record) == list(hints)
    for key, hint in hints.items():
        plain = getattr(hint, "__origin__", hint)
        if isinstance(plain, type):
            assert isinstance(record[key], plain)
        else:
            assert record[key] in get_args(hint)


# Each type with a call that takes one of its words, among all words that could be meant.
CALLS = {
    "NodeLaw": lambda word: mv.verifier.alpha_star(ROW, ROW, 1, word),
    "ShapeLaw": lambda word: Fixed(TreeShape.by_depth(1), word, seed=0, position=0),
    "LossyName": lambda word: _core.Lossy(word, LOSSY.get(word, [0.5])),
    "Preset": lambda word: mv.SamplingParams(preset=word),
    "Batching": lambda word: mv.Decoder(BatchTableTarget(lambda _: ROW, 4), batching=word),
    "Combination": lambda word: Combined([NGram(), Suffix()], word),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_type_has_the_words_that_its_call_takes(name):
    everything = {word for other in words.__all__ for word in get_args(getattr(words, other))}
    taken = {word for word in everything | {"", "Auto"} if is_taken(CALLS[name], word)}
    assert taken == set(get_args(getattr(words, name)))
