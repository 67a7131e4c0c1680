"""`assert_target` passes right targets, and finds what is wrong with the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.testing import TableCache, TableTarget, assert_target
from tests.models import tiny_model

POOL = np.random.default_rng(0).normal(size=(211, 7)).astype(np.float32)


def rows(path):
    place = 0
    for token in path:
        place = (place * 31 + token + 1) % 211
    return POOL[place]


@pytest.mark.parametrize("kind", ["llama", "mistral", "lfm2"])
def test_models_pass(kind):
    assert_target(tiny_model(kind), prompt=[3, 5, 2, 9, 11, 4, 8, 1, 7])


def test_a_table_passes_and_so_do_infinities():
    assert_target(TableTarget(rows, 7))
    assert_target(TableTarget(lambda path: [0.0, float("-inf"), 1.0], 3))


class NoMoves(TableCache):
    def commit(self, plan):
        self.crop(plan.length)


class Backwards(TableCache):
    def commit(self, plan):
        for source, target in plan.moves.tolist()[::-1]:
            self.tokens[target] = self.tokens[source]
        self.crop(plan.length)


class CropsTooMuch(TableCache):
    def crop(self, length):
        super().crop(max(0, length - 1))


class Counting(TableCache):
    """Keeps state beside its entries that no commit takes back."""

    num_run = 0


class Sees(TableTarget):
    """A table that a bug has been put into."""

    bug = ""
    cache = TableCache

    def __init__(self):
        super().__init__(rows, 7)
        self.shared = TableCache()
        self.buffer = torch.zeros(64, 7)

    def new_cache(self, past=None):
        if self.bug == "one cache for all":
            return self.shared
        return self.cache()

    def forward(self, tokens, positions, tree_mask, cache, hidden_layers=(), *, num_logits):
        if self.bug == "mask ignored":
            positions = tree_mask = None
        if isinstance(cache, Counting):
            cache.num_run += tokens.shape[1]
        found, _ = super().forward(
            tokens, positions, tree_mask, cache, hidden_layers, num_logits=num_logits
        )
        if self.bug == "one buffer for all":
            self.buffer[:num_logits] = found
            found = self.buffer[:num_logits]
        if self.bug == "sees the forward's width":
            found = found + 0.1 * tokens.shape[1]
        if self.bug == "sees what comes after":
            found = found + tokens[0, -1]
        if self.bug == "first rows" and num_logits < tokens.shape[1]:
            found = found.flip(0)
        if isinstance(cache, Counting):
            found = found + 0.1 * (cache.num_run - cache.length)
        if self.bug == "changes its input":
            tokens[0, 0] = 0
        return found, None


WRONG = {
    "mask ignored": (TableCache, "in a tree, the row after"),
    "one cache for all": (TableCache, r"new_cache: found \d+ entries, wanted an empty cache"),
    "one buffer for all": (TableCache, "rows changed while the next forward ran"),
    "sees the forward's width": (TableCache, "of one forward over a text, the row"),
    "sees what comes after": (TableCache, "of one forward over a text, the row"),
    "first rows": (TableCache, "of a forward with num_logits=2"),
    "changes its input": (TableCache, "the tokens that it was given have changed"),
    "moves left out": (NoMoves, r"after commit of the path \[\d(, \d)?\] of a tree"),
    "moves backwards": (Backwards, r"after commit of the path \[2, 4\] of a tree"),
    "crop one short": (CropsTooMuch, r"CropsTooMuch.crop: found \d+ entries, wanted"),
    "state not taken back": (Counting, "after crop, the row"),
}


@pytest.mark.parametrize("bug", WRONG)
def test_bugs_are_found_and_named(bug):
    cache, message = WRONG[bug]
    target = Sees()
    target.bug, target.cache = bug, cache
    with pytest.raises(AssertionError, match=message):
        assert_target(target, prompt=[3, 5, 2, 4])


def test_broken_promises_are_assertions_too():
    class Narrow(TableTarget):
        def forward(self, *args, **options):
            return super().forward(*args, **options)[0][:, :5], None

    with pytest.raises(AssertionError, match=r"Narrow\.forward: found logits"):
        assert_target(Narrow(rows, 7))
    with pytest.raises(mv.errors.UnsupportedModelError, match="neither"):
        assert_target("gpt2")


def test_what_it_is_given_is_checked():
    target = TableTarget(rows, 7)
    target.vocab_size = None
    with pytest.raises(
        mv.errors.ParamsError, match="num_tokens: wanted, since vocab_size of TableTarget"
    ):
        assert_target(target)
    assert_target(target, num_tokens=7)
    for prompt in ([1], []):
        with pytest.raises(mv.errors.ParamsError, match=rf"prompt: found {len(prompt)} tokens"):
            assert_target(target, prompt, num_tokens=7)
    with pytest.raises(mv.errors.ParamsError, match="prompt: found 9, wanted an integer <= 6"):
        assert_target(target, [1, 9], num_tokens=7)


def test_no_text_is_longer_than_the_context():
    longest = 0

    def limited(path):
        nonlocal longest
        longest = max(longest, len(path))
        return rows(path)

    for limit in (9, 11, 14, 15, 40):
        longest = 0
        assert_target(TableTarget(limited, 7, max_length=limit))
        assert longest == min(limit - (limit - 5) % 2, 15)
    with pytest.raises(mv.errors.ParamsError, match="a context of 8, wanted"):
        assert_target(TableTarget(limited, 7, max_length=8))


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_rows_that_are_none_are_named(bad):
    with pytest.raises(AssertionError, match=r"row after the text \[1\] holds NaN, or nothing fin"):
        assert_target(TableTarget(lambda path: [bad] * 3, 3))
