"""Whatever can be combined works to the end of a generation, or is refused before it begins.

Each drafter, under each rule, in each kind of cache, with ends, plans, batches and little room.
Over tables that takes seconds; models of every kind, as target and as drafter, are marked slow.
"""

from __future__ import annotations

import pytest

import mtp_verify as mv
from mtp_verify.caches.settings import Paged
from mtp_verify.decoder.planning import Costs
from mtp_verify.drafters import Combined, Heads, Model, NGram, Recycling, Suffix
from mtp_verify.verifier.growers import TreeShape
from tests.heads import tiny_head
from tests.loops import WARM, Allowed, Table, TableModel, over
from tests.models import RECURRENT_KINDS, prompt, tiny_model

THREE = over(3)
RULES = [rule["name"] for rule in mv.rules()] + ["auto"]
PROMPTS = [[0, 2, 1], [2], [1, 0, 1, 2] * 3]


def some_ones(path):
    """A grammar without dead ends: no token three times in a row."""
    return {0, 1, 2} - ({path[-1]} if len(path) > 1 and path[-1] == path[-2] else set())


def planner(max_nodes=4):
    costs = Costs({1: {1: 1.0, 9: 1.05}, 4: {1: 1.0, 9: 1.05}})
    return mv.Planner(costs, max_nodes=max_nodes)


# Options of the decoder and of a generation. One prompt runs by itself, three together.
WAYS = {
    "alone": ({}, {}),
    "one token": ({}, {"max_new_tokens": 1}),
    "two tokens": ({"planner": planner}, {"max_new_tokens": 2}),
    "an end": ({}, {"eos_token_id": 1}),
    "planned": ({"planner": planner}, {}),
    "planned with an end": ({"planner": lambda: planner(2)}, {"eos_token_id": [0, 1]}),
    "constrained": ({}, {"constraint": Allowed(3, some_ones, frozenset({2}))}),
    "penalised": ({"params": mv.SamplingParams(repetition_penalty=1.3)}, {"top_logprobs": 2}),
    "three alone": ({"batching": "each"}, {"ids": PROMPTS, "eos_token_id": 2}),
    "three together": ({}, {"ids": PROMPTS, "eos_token_id": 2}),
    "planned together": ({"planner": planner}, {"ids": PROMPTS}),
    # Room for the longest of them alone.
    "in a pool": ({"cache": Paged(22, 1)}, {"ids": PROMPTS, "eos_token_id": 2}),
    "in larger blocks": ({"cache": Paged(11, 2), "planner": planner}, {"ids": PROMPTS}),
}

BUSY = ("planned with an end", "in larger blocks", "constrained")


def run(target, drafter, rule, way, prompts=PROMPTS):
    """Whether the rule is taken; then a generation has to come to its end."""
    options, request = WAYS[way]
    options = {name: value() if callable(value) else value for name, value in options.items()}
    try:
        decoder = mv.Decoder(target, drafter, rule=rule, **options)
    except (mv.errors.RuleError, mv.errors.UnsupportedModelError):
        return False
    request = {"ids": prompts[0], "max_new_tokens": 9, "eos_token_id": (), "seed": 3, **request}
    ids = request.pop("ids")
    if ids is PROMPTS:
        ids = prompts
    if rule == "greedy":
        request["params"] = mv.SamplingParams(temperature=0)
    made = decoder.generate(ids, **request)
    assert set(made.finish_reasons) <= {"length", "stop"}
    return True


@pytest.mark.parametrize("name", THREE)
def test_every_drafter_under_every_rule_in_every_way(name):
    taken = set()
    for rule in RULES:
        for way in WAYS if rule in THREE[name][1] else BUSY:
            if run(TableModel(Table(3, 1)), THREE[name][0](), rule, way):
                taken.add(rule)
    assert {"auto", "coupled", "target_only", "greedy", *THREE[name][1]} <= taken


def drafters(model):
    """Drafters for a model: heads on it, and models of every kind."""
    for kind in (*RECURRENT_KINDS, "llama", "gemma2"):
        for params in (None, WARM):
            small = tiny_model(kind, seed=2)
            yield Model(small, num_tokens=4, params=params)
            yield Combined([Suffix(4, min_match=1), Model(small, num_tokens=3, params=params)])
    yield Combined([NGram(num_tokens=3), Suffix(4, max_nodes=4, min_match=1)], mode="merge")
    yield Recycling(max_nodes=7)
    if getattr(model.config, "hidden_size", None) == 32 and model.config.model_type != "mamba2":
        for law, shape in (
            ("swor", TreeShape.by_depth(2, 2, 1)), ("iid", TreeShape.paths(3, 3)),
            ("top_plus_one", TreeShape.by_depth(3, 1)), ("coupled", TreeShape.by_depth(2, 1)),
            ("chain", TreeShape.by_depth(1, 1, 1)),
        ):  # fmt: skip
            yield Heads(tiny_head("eagle", model), shape=shape, law=law, params=WARM)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["llama", "gemma2", "lfm2", "mamba2"])
def test_models_of_every_kind_as_target_and_as_drafter(kind):
    model = tiny_model(kind)
    prompts = [prompt(length, seed=length)[0].tolist() for length in (3, 1, 12)]
    for drafter in drafters(model):
        for rule in ("auto", "coupled", "lifted", "gbv"):
            for way in WAYS:
                if way != "constrained":
                    run(model, drafter, rule, way, prompts)
