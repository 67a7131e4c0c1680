"""Every drafter of the registry, in every mode that it has, as a device runs it.

No step reads the device more than once, whatever the rule, the target's params and the constraint;
and the tokens are those of the CPU. A constraint is held against the first level of a device's
draft alone, so there the tokens are equal where they do not depend on the draft, and else obey it.
"""

from __future__ import annotations

import inspect
import itertools
from functools import cache
from typing import get_args

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify import _core, drafters
from mtp_verify.drafters import REGISTRY, Heads, Model, Suffix, Translation
from mtp_verify.verifier.growers import TreeShape
from mtp_verify.verifier.words import HeadLaw
from tests.heads import tiny_head
from tests.host_reads import HostReads
from tests.loops import Allowed
from tests.models import VOCAB, prompt, tiny_model
from tests.vocabularies import of_words

WARM = mv.SamplingParams(temperature=0.9, top_k=12, top_p=0.95)
TARGETS = {"greedy": mv.SamplingParams(temperature=0.0), "drawn": WARM}
SHAPE, PATHS, CHAIN = TreeShape.by_depth(3, 2, 1), TreeShape.paths(2, 3), TreeShape.by_depth(1, 1)
CONTEXT = {"output_head": "shared", "draft_vocab_size": 12, "context_tokens": True}
LAWS = get_args(HeadLaw)
ENDS = (3, 9, 17)

# By drafter of the registry: what it is made with. "head" and "model" are names of tiny ones.
MODES = {
    "NGram": {"": {"min_ngram": 1}},
    "Suffix": {"": {"min_match": 1}, "tree": {"max_nodes": 6, "min_match": 1, "max_children": 3}},
    "Recycling": {"": {"max_nodes": 7}, "shared": {"shared": True}},
    "Heads": {
        **{f"{law}": {"head": "eagle", "shape": SHAPE, "law": law, "params": WARM}
           for law in LAWS if law != "chain"},
        **{f"{name} swor": {"head": name, "shape": SHAPE, "params": WARM}
           for name in ("deepseek-3", "hydra", "medusa", "meta", "eagle3", "context")},
        "chain": {"head": "eagle", "params": WARM},
        "greedy": {"head": "deepseek-3", "num_tokens": 3},
        "chain law": {"head": "hydra", "shape": CHAIN, "law": "chain", "params": WARM},
        "paths": {"head": "eagle3", "shape": PATHS, "law": "iid", "params": WARM},
        "min_path": {"head": "eagle", "params": WARM, "min_path": 0.05},
        "greedy min_path": {"head": "eagle3", "min_path": 0.2},
        **{f"{name} best": {"head": name, "max_nodes": 7, "max_children": 3}
           for name in ("eagle", "deepseek-3", "hydra", "medusa", "meta", "eagle3", "context")},
        "block": {"head": "dspark", "params": WARM},
        "block tree": {"head": "domino", "shape": SHAPE, "params": WARM},
        "block best": {"head": "dflash", "max_nodes": 7, "max_children": 3},
        "best shaped": {"head": "mimo", "max_nodes": 5, "params": WARM, "min_path": 0.02},
    },
    "Model": {
        "greedy": {"model": "gemma3", "num_tokens": 3},
        "drawn": {"model": "llama", "params": WARM},
        "confident": {"model": "llama", "params": WARM, "min_confidence": 0.2},
        "greedy confident": {"model": "llama", "min_confidence": 0.1},
        "translated": {"model": "llama", "params": WARM, "translation": True},
        "greedy translated": {"model": "llama", "translation": True},
        "masks": {"model": "llama", "params": WARM, "mask_token": 30},
        "greedy masks": {"model": "gemma3", "num_tokens": 3, "mask_token": 30},
    },
    "ModelTree": {
        "": {"model": "llama", "max_nodes": 8, "max_depth": 3, "max_children": 3},
        "shaped": {"model": "gemma3", "params": WARM},
        "translated": {"model": "llama", "translation": True},
    },
    "Combined": {
        "first": {"drafters": ("suffix", "drawn head")},
        "first model": {"drafters": ("suffix", "drawn model")},
        "merge": {"drafters": ("suffix", "head"), "mode": "merge"},
        "merge all": {"drafters": ("head", "suffix", "model"), "mode": "merge", "max_nodes": 6},
    },
}  # fmt: skip
CASES = [(name, mode) for name, modes in MODES.items() for mode in modes]


@cache
def target():
    return tiny_model("llama")


@cache
def head(name):
    if name == "context":
        return tiny_head("eagle", target(), **CONTEXT)
    return tiny_head(name, target())


@cache
def small(kind):
    return tiny_model(kind, seed=2)


@cache
def translation():
    letters = [chr(ord("a") + n) for n in range(26)]
    pairs = [a + b for a, b in itertools.pairwise(letters[:7])]
    other = [b + a for a, b in itertools.pairwise(letters[:5])]
    # Two letters of the target are unknown to the drafter, which has others in their place.
    known = [*reversed(letters[:24]), "A", "B", pairs[0], pairs[1], *other]
    return Translation(of_words(known), of_words([*letters, *pairs]))


def make(name, mode):
    """Return a drafter in one of its modes."""
    given = dict(MODES[name][mode])
    if "head" in given:
        given["head"] = head(given["head"])
    if "model" in given:
        given["model"] = small(given["model"])
    if given.get("translation"):
        given["translation"] = translation()
    if "drafters" in given:
        parts = {
            "suffix": lambda: Suffix(4, min_match=1),
            "head": lambda: Heads(head("eagle"), max_nodes=4, max_children=2),
            "drawn head": lambda: Heads(head("eagle"), shape=SHAPE, params=WARM),
            "model": lambda: Model(small("llama"), num_tokens=2),
            "drawn model": lambda: Model(small("llama"), params=WARM),
        }
        given["drafters"] = [parts[part]() for part in given["drafters"]]
    return getattr(drafters, name)(**given)


def rules_of(name, mode):
    """Return rules, one of each core, that take all laws of a drafter."""
    records = [record for record in _core.rules() if record["core"] == record["name"]]
    laws = make(name, mode).laws or ("deterministic",)
    names = [record["name"] for record in records if set(laws) <= set(record["laws"])]
    has_paths = mode == "paths" or "chain" in laws
    return ["auto", *(rule for rule in names if rule != "gbv" or has_paths)]


def matrix():
    """Return all cases; those that every run has are not marked."""
    found = []
    for number, (name, mode) in enumerate(CASES):
        grid = [*itertools.product(rules_of(name, mode), TARGETS, (False, True))]
        grid = [case for case in grid if case[0] != "greedy" or case[1] == "greedy"]
        # With a constraint every fourth time.
        fast = [case for case in grid if case[1] == "drawn" and case[2] == (number % 4 == 3)]
        chosen = fast[number % len(fast)]
        for case in grid:
            marks = () if case == chosen else (pytest.mark.slow,)
            words = [name, mode, *case[:2], "constraint" if case[2] else "free"]
            label = "-".join(words).replace(" ", "_")
            found.append(pytest.param(name, mode, *case, marks=marks, id=label))
    return found


def obeys(path):
    return set(range(VOCAB)) - set(path[-2:]) - {4, 5, 6}


def run(drafter, rule, params, *, is_constrained, is_device):
    decoder = mv.Decoder(target(), drafter, None, rule, batching="together",
                         cache="static" if is_device else None)  # fmt: skip
    options = {"eos_token_id": ENDS, "params": params}
    if is_constrained:
        options["constraint"] = Allowed(VOCAB, obeys, frozenset({ENDS[0]}))
    for index, length in enumerate((9, 3)):
        ids = prompt(length, seed=20 + index)[0]
        decoder.submit(ids, max_new_tokens=6, seed=50 + index, **options)
    done = {}
    while decoder.num_unfinished:
        with HostReads() as reads:
            decoder.step()
        if is_device:
            assert len(reads.places) <= 1, reads.places
        done |= decoder.results()
    return [done[number] for number in sorted(done)]


@pytest.mark.parametrize(("name", "mode", "rule", "kind", "is_constrained"), matrix())
def test_a_step_reads_once_and_emits_the_tokens_of_the_cpu(name, mode, rule, kind, is_constrained):
    given = {"rule": rule, "params": TARGETS[kind], "is_constrained": is_constrained}
    plain, device = (run(make(name, mode), is_device=on, **given) for on in (False, True))
    is_free = kind == "greedy" or "coupled" in (rule, *make(name, mode).laws)  # Of the draft.
    if not is_constrained or is_free or REGISTRY[name].needs == "text":
        assert [run.tokens for run in device] == [run.tokens for run in plain]
        assert [run.finish_reasons for run in device] == [run.finish_reasons for run in plain]
    if not is_constrained:
        for found, wanted in zip(device, plain, strict=True):
            assert (found.stats.steps, found.stats.drafted) == (
                wanted.stats.steps,
                wanted.stats.drafted,
            )
            np.testing.assert_allclose(found.logprobs[0], wanted.logprobs[0], rtol=0, atol=1e-4)
    for found in device:
        assert found.errors == [None]
        tokens = found.tokens[0]
        assert not is_constrained or all(t in obeys(tokens[:n]) for n, t in enumerate(tokens))


def test_no_drafter_and_no_setting_of_one_is_left_out():
    assert set(MODES) == set(REGISTRY)
    for name, modes in MODES.items():
        if REGISTRY[name].needs != "text":  # Those draft on the host, in whatever mode.
            used = set().union(*modes.values())
            assert used == set(inspect.signature(getattr(drafters, name)).parameters), name
    assert {make("Heads", mode).law for mode in MODES["Heads"]} == set(LAWS)
    drafted = {law for case in CASES for law in make(*case).laws}
    assert drafted == {*LAWS}
