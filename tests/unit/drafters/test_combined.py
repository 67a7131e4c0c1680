"""Several drafters as one: precedence, merging, what each is told, whole generations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.drafters import Combined, Drafter, Heads, NGram, Recycling, Request, Suffix
from mtp_verify.verifier.growers import TreeShape
from tests.heads import tiny_head
from tests.models import prompt, tiny_model

GREEDY = mv.SamplingParams(temperature=0.0)


def _propose(drafter: Drafter, tokens: list[int], budget: int = 100) -> mv.Draft:
    made = Request(id=0, tokens=tokens, prompt_len=len(tokens), seed=0)
    drafter.start(made)
    return drafter.propose([made], [budget])[0]


def test_the_first_drafter_that_has_a_draft_makes_it() -> None:
    drafter = Combined([Suffix(), NGram(num_tokens=2)])
    assert isinstance(drafter, Drafter)
    assert drafter.is_pure
    assert not drafter.makes_trees
    copied = _propose(drafter, [1, 2, 3, 4, 1, 2])
    assert copied.tokens.tolist() == _propose(Suffix(), [1, 2, 3, 4, 1, 2]).tokens.tolist()
    assert _propose(drafter, [1, 2, 3, 4, 2]).tokens.tolist() == [2, 3, 4]
    assert _propose(drafter, [1, 2, 3]).tokens.tolist() == [3]


def test_merged_drafts_are_one_tree_within_the_budget() -> None:
    # NGram goes on behind the newest 2, Recycling ranks what followed each token.
    parts = [NGram(num_tokens=2, max_ngram=1), Recycling(TreeShape.by_depth(2, 1))]
    drafter = Combined(parts, mode="merge")
    tokens = [2, 5, 6, 2, 7, 2]
    assert drafter.makes_trees
    merged = _propose(drafter, tokens)
    assert merged.law == "deterministic"
    assert merged.tokens.tolist() == [2, 7, 2, 5, 6]
    assert merged.tree.parents.tolist() == [-1, 0, 1, 0, 3]
    assert _propose(drafter, tokens, budget=3).tokens.tolist() == [2, 7, 2, 5]
    capped = Combined(parts, mode="merge", max_nodes=1)
    assert _propose(capped, tokens).tokens.tolist() == [2, 7]


def test_a_head_reads_what_was_decoded_while_another_drafted() -> None:
    model = tiny_model("llama")
    head = tiny_head("mimo", model)
    ids = prompt(8)
    for mode in ("first", "merge"):
        guesses = Heads(head, num_tokens=3, params=None)  # Only what is not drawn can be merged.
        drafters: list[Any] = [Suffix(num_tokens=3, min_match=1), guesses]
        drafter = Combined(drafters, mode=mode)
        assert drafter.hidden_layers == head.hidden_layers
        decoder = Decoder(model, drafter, GREEDY)
        made = decoder.generate(ids, max_new_tokens=30)
        plain = decoder.generate(ids, max_new_tokens=30, speculate=False)
        assert made.tokens == plain.tokens
        assert made.stats.drafted > 0
        pair = decoder.generate(torch.cat((ids, ids.flip(1))), max_new_tokens=12)
        assert pair.tokens[0] == plain.tokens[0][:12]


def test_drafters_are_told_what_happened() -> None:
    model = tiny_model("llama")
    made = Decoder(model, Combined([NGram(), Recycling(max_nodes=4)]), GREEDY).generate(
        prompt(8), max_new_tokens=20
    )
    plain = Decoder(model, None, GREEDY).generate(prompt(8), max_new_tokens=20)
    assert made.tokens == plain.tokens


@pytest.mark.parametrize(
    ("drafters", "options", "found"),
    [
        ([NGram()], {}, "found 1"),
        ([NGram(), Suffix()], {"mode": "both"}, "'both'"),
        ([NGram(), Suffix()], {"max_nodes": 4}, "max_nodes: found 4"),
        ([NGram(), Suffix()], {"mode": "merge", "max_nodes": 0}, "max_nodes: found 0"),
    ],
)
def test_settings_that_cannot_be_right(
    drafters: list[Any], options: dict[str, Any], found: str
) -> None:
    with pytest.raises(mv.errors.ParamsError, match=found):
        Combined(drafters, **options)


def test_two_readers_of_hidden_states_and_drawn_drafts_are_refused() -> None:
    model = tiny_model("llama")
    head = tiny_head("mimo", model)
    with pytest.raises(mv.errors.ParamsError, match="found 2 that read hidden states, wanted one"):
        Combined([Heads(head), Heads(head)])
    drawn = Heads(head, params=mv.SamplingParams())
    with pytest.raises(mv.errors.ParamsError, match="found drafts of law deterministic, chain"):
        Combined([Suffix(min_match=1), drawn], mode="merge")
    with pytest.raises(mv.errors.UnsupportedModelError, match="load the head"):
        Combined([Suffix(), Heads(head)]).check_vocabulary(3)
