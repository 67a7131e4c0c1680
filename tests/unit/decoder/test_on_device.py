"""The loop as it runs on a device, with the device set to the CPU.

Every request gets the tokens that it gets without `cache="static"`, and no step reads the device
more than once, whatever is drafted, shaped, forbidden or asked for.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

import mtp_verify as mv
from mtp_verify.decoder.planning import Costs
from mtp_verify.drafters import Combined, Heads, Model, ModelTree, NGram, Recycling, Suffix
from mtp_verify.models.target import TransformersTarget
from mtp_verify.verifier.growers import TreeShape
from tests.heads import VARIANTS, tiny_head
from tests.host_reads import HostReads
from tests.loops import Allowed
from tests.models import KINDS, VOCAB, StubDrafter, TreeDrafter, prompt, tiny_model
from tests.slow import few

GREEDY = mv.SamplingParams(temperature=0.0)
WARM = mv.SamplingParams(temperature=0.9, top_k=12, top_p=0.95)
PARAMS = [GREEDY, WARM, mv.SamplingParams(min_p=0.02), mv.SamplingParams(temperature=0.5)]
LENGTHS = (9, 3, 17, 6)


CACHES = few(["static", None, "paged"], ["static"])
COUNT = 7
ENDS = few([(), (3, 9, 17, 22, 30)], [(3, 9, 17, 22, 30)])


class Tree(StubDrafter):
    """Drafts a tree of tokens that follow from the root."""

    makes_trees = True

    def draft(self, request, budget):
        text = [(7 * token + 3) % VOCAB for token in range(request.position + 9)]
        return TreeDrafter([-1, 0, 0, 1, 1, 2], text=text).draft(request, budget)


DRAFTERS = {
    "none": lambda: None,
    "ngram": lambda: NGram(min_ngram=1),
    "suffix": lambda: Suffix(max_nodes=6, min_match=1),
    "recycling": lambda: Recycling(max_nodes=7),
    "tree": Tree,
    "first": lambda: Combined([Suffix(4, min_match=1), NGram(min_ngram=1)]),
    "merged": lambda: Combined([NGram(num_tokens=3), Suffix(4, min_match=1)], mode="merge"),
}


def submit(decoder, **options):
    """Hand in a request of each length and each kind of shaping; return their numbers."""
    return [
        decoder.submit(
            prompt(length, seed=20 + index)[0],
            max_new_tokens=COUNT + index,
            seed=50 + index,
            **{"params": params, "eos_token_id": (), **options},
        )
        for index, (length, params) in enumerate(zip(LENGTHS, PARAMS, strict=True))
    ]


def finish(decoder, *, guarded=False):
    """Run all to their end and return the results; count what each step reads if asked to."""
    done = {}
    while decoder.num_unfinished:
        if guarded:
            with HostReads() as reads:
                decoder.step()
            assert len(reads.places) <= 1, reads.places
        else:
            decoder.step()
        done |= decoder.results()
    return [done[number] for number in sorted(done)]


def runs(model, drafter, rule="auto", decoder_options=None, cache="static", **options):
    """Return what a batch gives as the CPU runs it, and as a device does.

    Without `cache` each request has a cache of its own, and the device is the decoder's to claim.
    """
    pair = []
    for is_device in (False, True):
        batching = {"batching": "together" if cache else "each"}
        given = {**batching, **(decoder_options or {}), "cache": cache if is_device else None}
        decoder = mv.Decoder(model, drafter(), None, rule, **given)
        decoder._is_on_device = is_device
        submit(decoder, **options)
        pair.append(finish(decoder, guarded=is_device))
    return pair


def assert_equal(plain, device):
    assert [run.tokens for run in device] == [run.tokens for run in plain]
    assert [run.finish_reasons for run in device] == [run.finish_reasons for run in plain]
    for found, wanted in zip(device, plain, strict=True):
        assert found.stats.steps == wanted.stats.steps
        torch.testing.assert_close(found.logprobs[0], wanted.logprobs[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", few(KINDS, ["gemma3"]))
@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("cache", CACHES)
def test_a_step_reads_once_and_emits_the_same_tokens(kind, name, cache):
    assert_equal(*runs(tiny_model(kind), DRAFTERS[name], cache=cache))


@pytest.mark.parametrize("ends", ENDS, ids=["", "ends"])
@pytest.mark.parametrize("cache", CACHES[:2])
@pytest.mark.parametrize("params", [None, WARM], ids=["greedy", "drawn"])
@pytest.mark.parametrize("name", few(VARIANTS, ["deepseek-3", "eagle3", "hydra"]))
def test_a_head_drafts_on_the_device(name, params, cache, ends):
    model = tiny_model("llama")
    head = tiny_head(name, model)
    plain, device = runs(model, partial(Heads, head, params=params), cache=cache, eos_token_id=ends)
    assert_equal(plain, device)
    assert sum(run.stats.drafted for run in device) > 0


@pytest.mark.parametrize("ends", ENDS, ids=["", "ends"])
@pytest.mark.parametrize("cache", CACHES[:2])
@pytest.mark.parametrize("params", [None, WARM], ids=["greedy", "drawn"])
@pytest.mark.parametrize("kind", few(["llama", "gemma3", "lfm2"], ["gemma3"]))
def test_a_model_drafts_on_the_device(kind, params, cache, ends):
    small = tiny_model(kind, seed=2)
    drafter = partial(Model, small, num_tokens=3, params=params)
    plain, device = runs(tiny_model("llama"), drafter, cache=cache, eos_token_id=ends)
    assert_equal(plain, device)
    assert sum(run.stats.drafted for run in device) > 0


def sketched(name):
    """Return what makes a drafter whose trees the device alone knows."""
    head = tiny_head("eagle", tiny_model("llama"))
    best = partial(Heads, head, max_nodes=6, max_children=3)
    small = tiny_model("llama", seed=2)
    return {
        "best": best,
        "swor": partial(Heads, head, shape=TreeShape.by_depth(3, 2), params=WARM),
        "paths": partial(Heads, head, shape=TreeShape.paths(2, 3), law="iid", params=WARM),
        "model tree": partial(ModelTree, small, max_nodes=6, max_depth=3),
        "merge": lambda: Combined([Suffix(3, min_match=1), best()], mode="merge", max_nodes=7),
        "stopped": partial(Model, small, params=WARM, min_confidence=0.3),
    }[name]


SKETCHED = ["best", "swor", "paths", "model tree", "merge", "stopped"]


@pytest.mark.parametrize("ends", ENDS, ids=["", "ends"])
@pytest.mark.parametrize("cache", few(["static", None, "paged"], [None, "paged"]))
@pytest.mark.parametrize("name", few(SKETCHED, ["best", "swor"]))
def test_trees_that_the_device_alone_knows(name, cache, ends):
    plain, device = runs(tiny_model("llama"), sketched(name), cache=cache, eos_token_id=ends)
    assert_equal(plain, device)
    assert [run.stats.drafted for run in device] == [run.stats.drafted for run in plain]
    assert sum(run.stats.drafted for run in device) > 0


def test_each_request_may_have_a_drafter_of_its_own():
    """Also those whose rows have other widths, so that the host verifies them."""
    model, pair = tiny_model("llama"), []
    eagle3 = tiny_head("eagle3", model)
    for cache in (None, "static"):
        own = [sketched("best")(), sketched("swor")(), sketched("merge")(), sketched("stopped")()]
        for last in (own[3], Heads(eagle3, shape=TreeShape.by_depth(2, 2), params=WARM)):
            decoder = mv.Decoder(model, None, batching="together", cache=cache)
            for index, drafter in enumerate([*own[:3], last]):
                decoder.submit(
                    prompt(LENGTHS[index], seed=20 + index)[0], max_new_tokens=COUNT, seed=index,
                    params=PARAMS[index], eos_token_id=(3, 9, 17), drafter=drafter,
                )  # fmt: skip
            pair.append(finish(decoder, guarded=cache is not None))
    for plain, device in zip(pair[:2], pair[2:], strict=True):
        assert_equal(plain, device)


@pytest.mark.parametrize("name", few(["best", "model tree", "paths"], ["best"]))
@pytest.mark.parametrize("kind", few(["gpt2", "gemma2", "gemma3"], ["gemma3"]))
def test_windows_are_kept_along_a_tree_of_the_device(kind, name):
    head = tiny_head("eagle", tiny_model(kind))
    drafter = partial(Heads, head, max_nodes=6) if name == "best" else sketched(name)
    assert_equal(*runs(tiny_model(kind), drafter))


@pytest.mark.parametrize("params", few([None, WARM], [WARM]), ids=["greedy", "drawn"])
def test_copies_and_a_head_draft_side_by_side(params):
    model = tiny_model("llama")
    head = tiny_head("eagle", model)
    parts = Suffix(4, min_match=1), Heads(head, params=params)
    plain, device = runs(model, partial(Combined, parts), eos_token_id=ENDS[1])
    assert_equal(plain, device)


@pytest.mark.parametrize("name", few(["suffix", "heads", "best"], ["suffix", "best"]))
def test_planned_drafts_stay_on_the_device_too(name):
    model = tiny_model("llama")
    head = tiny_head("eagle", model)
    drafter = DRAFTERS.get(name, partial(Heads, head, max_nodes=6 if name == "best" else None))
    costs = Costs({1: {1: 1.0, 9: 1.05}, 4: {1: 1.0, 9: 1.05}})
    planned = {"planner": mv.Planner(costs, max_nodes=4)}
    plain, device = runs(model, drafter, "auto", planned, params=GREEDY)
    assert [run.tokens for run in device] == [run.tokens for run in plain]
    assert sum(run.stats.drafted for run in device) > 0


class Failing(Heads):
    """Fails now and then behind the forward, when its drafts have been run already."""

    calls = 0

    def observe(self, requests, drafts, logits):
        self.calls += 1
        if self.calls % 3 == 0:
            message = "not now"
            raise RuntimeError(message)


def test_a_step_that_failed_is_done_again_with_the_drafts_that_it_had():
    model = tiny_model("llama")
    head = tiny_head("eagle", model)
    plain, _ = runs(model, lambda: Heads(head))
    decoder = mv.Decoder(model, Failing(head), cache="static")
    submit(decoder)
    done, failures = {}, 0
    while decoder.num_unfinished:
        try:
            decoder.step()
        except RuntimeError:
            failures += 1
        done |= decoder.results()
    assert failures > 2
    assert [done[number].tokens for number in sorted(done)] == [run.tokens for run in plain]


class Own(Heads):
    """Drafts in its own way, which a sketch of its base would leave out."""

    def propose(self, requests, budgets):
        return [mv.Draft.chain([1][:budget]) for budget in budgets]


def test_a_drafter_of_its_own_is_not_sketched_by_its_base():
    head = tiny_head("eagle", tiny_model("llama"))
    assert Own.sketch is mv.Drafter.sketch
    assert Failing.sketch is Heads.sketch
    (draft,) = Own(head).sketch([mv.drafters.Request(0, [1], 1, seed=0)], [4])
    assert draft.tokens.tolist() == [-1, 1]


@pytest.mark.parametrize("rule", ["coupled", "target_only", "lifted", "topdown"])
def test_every_rule(rule):
    assert_equal(*runs(tiny_model("llama"), DRAFTERS["tree"], rule))


def bias(histories, rows):
    return rows + torch.arange(rows.shape[-1], device=rows.device) / 9


def no_repeat(path):
    return set(range(VOCAB)) - set(path[-2:])


ASKED = {
    "an end": {"eos_token_id": [3, 9, 17]},
    "penalties": {"params": mv.SamplingParams(repetition_penalty=1.3)},
    "processors": {"processors": [bias]},
    "top log-probabilities": {"top_logprobs": 3},
    "raw rows": {"output_logits": True},
    "a grammar": {"constraint": Allowed(VOCAB, no_repeat, frozenset({2}))},
    "a criterion": {"stopping_criteria": lambda ids, _: ids.shape[1] % 7 == 0},
}


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("drafter", few(["suffix", "tree"], ["suffix"]))
def test_what_is_read_on_the_host_is_read_with_the_verdict(name, drafter):
    plain, device = runs(tiny_model("llama"), DRAFTERS[drafter], **ASKED[name])
    assert_equal(plain, device)


@pytest.mark.parametrize("name", few([n for n in ASKED if n != "a grammar"], ["penalties"]))
@pytest.mark.parametrize("drafter", few(SKETCHED, ["best", "swor"]))
def test_rows_come_with_trees_of_the_device(name, drafter):
    assert_equal(*runs(tiny_model("llama"), sketched(drafter), **ASKED[name]))


def test_lossy_acceptances_are_decided_on_the_host():
    lossy = {"lossy": mv.lossy.typical(0.3, 0.1)}
    plain, device = runs(tiny_model("llama"), DRAFTERS["suffix"], "auto", lossy, params=WARM)
    assert_equal(plain, device)
    assert not device[0].stats.lossless


DOORS = {
    "none": ("host", {}),
    "suffix": ("host", {}),
    "tree": ("host", {"rule": "lifted"}),
    "a grammar": ("host", {"constraint": Allowed(VOCAB, no_repeat, frozenset({2}))}),
    "recycling": ("to_host", {}),
    "first": ("host", {}),
    "penalties": ("to_host", ASKED["penalties"]),
    "processors": ("to_host", ASKED["processors"]),
}


@pytest.mark.parametrize("name", DOORS)
def test_rows_come_to_the_host_only_where_they_are_read(name):
    door, options = DOORS[name]
    options = dict(options)
    drafter = DRAFTERS.get(name, DRAFTERS["suffix"])()
    decoder = mv.Decoder(tiny_model("llama"), drafter, None, options.pop("rule", "auto"),
                         cache="static")  # fmt: skip
    submit(decoder, **options)
    while decoder.num_unfinished:
        with HostReads() as reads:
            decoder.step()
        assert [place.partition(",")[0] for place in reads.places] == [door]


class Broken(TransformersTarget):
    """Its rows hold NaN once a text ends with some token."""

    def forward_slots(self, tokens, *args):
        logits, hidden = super().forward_slots(tokens, *args)
        return logits.masked_fill((tokens == 7)[..., None], float("nan")), hidden


@pytest.mark.parametrize("name", ["none", "suffix"])
def test_a_row_that_is_no_distribution_ends_its_request_alone(name):
    model = tiny_model("llama")
    pair = []
    for cache in (None, "static"):
        decoder = mv.Decoder(Broken(model), DRAFTERS[name](), batching="together", cache=cache)
        numbers = submit(decoder, params=mv.SamplingParams(temperature=3.0))
        numbers.append(
            decoder.submit([1, 2, 7], max_new_tokens=9, seed=3, eos_token_id=(), params=GREEDY)
        )
        pair.append(finish(decoder))
    for plain, device in zip(*pair, strict=True):
        assert device.tokens == plain.tokens
        assert str(device.errors[0]) == str(plain.errors[0])
    assert [run.errors[0] is None for run in pair[1]].count(False) in range(1, 5)
