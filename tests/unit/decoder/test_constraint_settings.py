"""A constraint with every other setting of the decoder: the tokens are those of plain decoding.

Greedy and coupled tokens depend on the target, the constraint and the seed alone, so whatever else
is set must leave them as they are.
"""

from __future__ import annotations

import re

import pytest
from transformers import StaticCache

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder, Paged
from mtp_verify.decoder.planning import Costs
from mtp_verify.drafters import Heads, Model
from mtp_verify.heads import Sizes
from tests.grammars import EOS, TOKENS, by_llguidance, by_xgrammar
from tests.heads import tiny_head
from tests.models import tiny_model

VOCAB, LENGTH = len(TOKENS), 16
PROMPTS = [[5, 6], [1, 2, 3], [4]]
PATTERN, PREFIX = "(a|bc){1,12}d", b"(a|bc){1,12}d?|(a|bc){0,11}b"
LIBRARIES = {"xgrammar": by_xgrammar, "llguidance": by_llguidance}
LAWS = [(mv.SamplingParams(temperature=0.0), "auto"), (mv.SamplingParams(), "coupled")]


def tiny():
    return tiny_model("llama", vocab_size=VOCAB, eos_token_id=EOS)


def head_of(model, kind="mimo", **changes):
    return tiny_head(kind, model, sizes=Sizes.of(model.config), **changes)


DRAFTERS = {
    "n-gram": lambda model: mv.drafters.NGram(num_tokens=3),
    "model": lambda model: Model(tiny_model("llama", seed=3, vocab_size=VOCAB), num_tokens=3),
    "head": lambda model: Heads(head_of(model), num_tokens=3),
    "tree of a head": lambda model: Heads(head_of(model), max_nodes=6, num_tokens=3),
}
SETTINGS = {
    "planner": {"planner": "auto"},
    "paged": {"cache": "paged"},
    "planner and paged": {"planner": "auto", "cache": Paged(num_blocks=64, block_size=4)},
}


def assert_obeys(tokens):
    text = b"".join(TOKENS[token] for token in tokens if token != EOS)
    assert re.fullmatch(PREFIX, text)


@pytest.mark.parametrize(
    ("library", "setting"),
    [*(("xgrammar", setting) for setting in SETTINGS), ("llguidance", "planner and paged")],
)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_batches_give_the_tokens_of_plain_decoding(library, setting, drafter):
    pytest.importorskip(library)
    model, constraint = tiny(), LIBRARIES[library]().regex(PATTERN)
    run = {"max_new_tokens": LENGTH, "seed": [4, 5, 6], "constraint": constraint}
    for params, rule in LAWS:
        plain = Decoder(model, None, params, rule).generate(PROMPTS, **run)
        decoder = Decoder(model, DRAFTERS[drafter](model), params, rule, **SETTINGS[setting])
        result = decoder.generate(PROMPTS, **run)
        assert result.tokens == plain.tokens
        assert result.finish_reasons == plain.finish_reasons
        for tokens in result.tokens:
            assert_obeys(tokens)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_static_cache_gives_the_tokens_of_plain_decoding(library, drafter):
    pytest.importorskip(library)
    model, constraint = tiny(), LIBRARIES[library]().regex(PATTERN)
    run = {"max_new_tokens": LENGTH, "seed": 4, "constraint": constraint}
    for params, rule in LAWS:
        plain = Decoder(model, None, params, rule).generate(PROMPTS[0], **run)
        decoder = Decoder(model, DRAFTERS[drafter](model), params, rule)
        static = StaticCache(config=model.config, max_cache_len=40)
        result = decoder.generate(PROMPTS[0], past_key_values=static, **run)
        assert result.tokens == plain.tokens
        assert int(static.get_seq_length()) == len(PROMPTS[0]) + len(plain.tokens[0]) - 1


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"params": mv.SamplingParams()},
        {"max_nodes": 6},
        {"shape": mv.growers.TreeShape.by_depth(2, 2), "params": mv.SamplingParams()},
    ],
    ids=["greedy chain", "sampled chain", "best-first tree", "sampled tree"],
)
@pytest.mark.parametrize("kind", ["mimo", "medusa", "eagle3"])
def test_heads_draft_only_what_is_allowed(library, settings, kind):
    pytest.importorskip(library)
    model, constraint = tiny(), LIBRARIES[library]().regex(PATTERN)
    # The sub-vocabulary is masked token by token, too.
    changes = {"draft_vocab_size": 6} if kind == "eagle3" else {}
    drafter = Heads(head_of(model, kind, **changes), **settings)
    propose, drafted = drafter.propose, []

    def spied(requests, budgets):
        drafts = propose(requests, budgets)
        for request, draft in zip(requests, drafts, strict=True):
            possible = request.matcher.masks(draft)[1]
            if kind != "eagle3":
                assert possible.all()
            drafted.append(int(possible.sum()) - 1)
        return drafts

    drafter.propose = spied
    decoder = Decoder(model, drafter, mv.SamplingParams())
    for seed in range(3):
        result = decoder.generate(PROMPTS[0], max_new_tokens=12, seed=seed, constraint=constraint)
        assert_obeys(result.tokens[0])
    assert sum(drafted) > 3


def test_a_planner_without_gain_still_obeys():
    pytest.importorskip("xgrammar")
    model, constraint = tiny(), by_xgrammar().regex(PATTERN)
    costs = Costs({1: {1: 0.01, 2: 1.0}})
    decoder = Decoder(model, DRAFTERS["head"](model), LAWS[0][0], planner=mv.Planner(costs))
    run = {"max_new_tokens": LENGTH, "constraint": constraint}
    plain = decoder.generate(PROMPTS[0], speculate=False, **run)
    assert decoder.generate(PROMPTS[0], **run).tokens == plain.tokens
