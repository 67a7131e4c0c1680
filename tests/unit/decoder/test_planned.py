"""Planned decoding: whatever the planner does, greedy and coupled tokens stay what they are."""

from __future__ import annotations

import pytest

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.decoder.planning import Costs, Planner
from tests.models import ScriptDrafter, StubDrafter, prompt, tiny_model

GREEDY = mv.SamplingParams(temperature=0.0)
CHEAP = Costs({1: {1: 1.0, 33: 1.05}})
DEAR = Costs({1: {1: 1.0, 2: 2.0, 33: 33.0}})
COUNT = 40


@pytest.mark.parametrize("params", [GREEDY, mv.SamplingParams(temperature=0.7)])
@pytest.mark.parametrize("costs", [CHEAP, DEAR], ids=["cheap", "dear"])
@pytest.mark.parametrize("batching", ["each", "together"])
def test_tokens_do_not_depend_on_plans(costs, params, batching):
    model = tiny_model("llama")
    prompts = [prompt(length, seed=length)[0] for length in (9, 4, 12)]
    plain = Decoder(model, None, params, "coupled").generate(prompts, max_new_tokens=COUNT, seed=3)
    drafter = mv.drafters.Suffix(max_nodes=8, min_match=1)
    decoder = Decoder(model, drafter, params, "coupled", batching=batching, planner=Planner(costs))
    planned = decoder.generate(prompts, max_new_tokens=COUNT, seed=3)
    assert planned.tokens == plain.tokens
    assert sum(planned.stats.budgets) == planned.stats.steps


def test_plain_decoding_where_nothing_pays():
    model = tiny_model("llama")
    drafter = mv.drafters.NGram()
    made = Decoder(model, drafter, GREEDY, planner=Planner(DEAR)).generate(
        prompt(), max_new_tokens=COUNT
    )
    assert made.stats.budgets == [made.stats.steps]
    assert made.stats.drafted == made.stats.probes == 0


def test_drafts_where_they_pay_and_the_statistics_say_so():
    model = tiny_model("llama")
    text = Decoder(model, None, GREEDY).generate(prompt(), max_new_tokens=COUNT)
    drafter = ScriptDrafter(text.sequences[0].tolist(), num_tokens=6)
    made = Decoder(model, drafter, GREEDY, planner=Planner(CHEAP)).generate(
        prompt(), max_new_tokens=COUNT
    )
    assert made.tokens == text.tokens
    assert made.stats.tau > 3
    assert made.stats.probes >= 1
    figures = made.stats.as_dict()
    assert figures["budgets"] == made.stats.budgets


def test_each_request_is_forgotten_at_its_end():
    model = tiny_model("llama")
    planner = Planner(CHEAP)
    decoder = Decoder(model, mv.drafters.NGram(), GREEDY, planner=planner)
    decoder.generate([[1, 2, 3], [4, 5]], max_new_tokens=4)
    number = decoder.submit([1, 2, 3], max_new_tokens=9)
    decoder.step()
    decoder.cancel(number)
    assert planner._records == {}


def test_a_request_that_fails_does_not_disturb_the_planner():
    class Fails(StubDrafter):
        def draft(self, request, budget):
            return mv.Draft.chain([999], root=request.tokens[-1])

    model = tiny_model("llama")
    decoder = Decoder(model, mv.drafters.NGram(), GREEDY, planner=Planner(CHEAP))
    bad = decoder.submit([1, 2, 3], max_new_tokens=9, drafter=Fails())
    good = decoder.submit([1, 2, 3], max_new_tokens=9)
    while decoder.num_unfinished:
        decoder.step()
    results = decoder.results()
    assert results[bad].finish_reasons == ["error"]
    assert len(results[good].tokens[0]) == 9


def test_auto_measures_the_model(tmp_path, monkeypatch):
    monkeypatch.setenv("MTP_VERIFY_CACHE", str(tmp_path))
    model = tiny_model("llama")
    decoder = Decoder(model, mv.drafters.NGram(), GREEDY, planner="auto")
    decoder.generate([[1, 2, 3], [4, 5]], max_new_tokens=4)
    assert len(list((tmp_path / "costs").iterdir())) == 1
    with pytest.raises(mv.errors.ParamsError, match="planner"):
        Decoder(model, planner="fast")
