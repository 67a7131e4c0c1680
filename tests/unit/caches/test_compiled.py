"""Models under `torch.compile`: which forward runs, and what is refused."""

from __future__ import annotations

import pytest
import torch

import mtp_verify as mv
from mtp_verify.caches.compiled import is_compiled, name_of, without_compiler
from mtp_verify.models.hidden import BEFORE_NORM, HiddenStates
from tests.models import prompt, tiny_model
from tests.other_models import COMPILED as FORMS
from tests.other_models import compiled

GREEDY = mv.SamplingParams(temperature=0.0)
SETTINGS = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


@pytest.fixture
def uncompiled():
    """Compiled modules run as they are: what is tried is which of them are called."""
    with torch.compiler.set_stance("force_eager"):
        yield


def test_a_module_around_a_model_is_seen_through():
    model = tiny_model("llama")
    around = torch.compile(model, backend="eager")
    assert without_compiler(around) is without_compiler(model) is model
    assert name_of(around) == name_of(model) == "LlamaForCausalLM"
    assert not is_compiled(model)
    for form in FORMS:
        assert is_compiled(compiled(form, tiny_model("llama")))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("uncompiled")
def test_every_way_in_takes_compiled_models(form):
    ids = prompt()
    plain = tiny_model("llama").generate(ids, **SETTINGS)
    model = compiled(form, tiny_model("llama"))
    drafter = mv.drafters.NGram(min_ngram=1)
    decoder = mv.Decoder(model, drafter, GREEDY)
    assert decoder.target.tree_obstacle is decoder.target.batch_obstacle is None
    assert decoder.generate(ids, max_new_tokens=6).sequences.equal(plain)
    assert mv.hf.generate(model, ids, drafter=drafter, **SETTINGS).equal(plain)
    found = model.generate(ids, custom_generate=mv.hf.speculative(drafter), **SETTINGS)
    assert found.equal(plain)
    drafts = mv.drafters.Model(model, num_tokens=2)
    target = tiny_model("llama")
    assert mv.hf.generate(target, ids, drafter=drafts, **SETTINGS).equal(plain)


@pytest.mark.parametrize("way", ["Decoder", "generate"])
@pytest.mark.usefixtures("uncompiled")
def test_forwards_go_through_the_module_around(way, monkeypatch):
    around = compiled("torch.compile(model)", tiny_model("llama"))
    calls = []
    inner = around.forward

    def count(*args, **options):
        calls.append(options["input_ids"].shape[1])
        return inner(*args, **options)

    monkeypatch.setattr(around, "forward", count)
    if way == "Decoder":
        mv.Decoder(around, None, GREEDY).generate(prompt(), max_new_tokens=6)
    else:
        mv.hf.generate(around, prompt(), **SETTINGS)
    assert calls[-6:] == [9, 1, 1, 1, 1, 1]


def test_nothing_is_compiled_to_try_a_model():
    """Each trial has shapes of its own: they would use up what dynamo compiles of a function."""
    compilations = []

    def backend(graph, _inputs):
        compilations.append(1)
        return graph.forward

    for form in FORMS:
        for kind in ("llama", "mamba2"):
            mv.Decoder(compiled(form, tiny_model(kind), backend))
    assert not compilations


@pytest.mark.usefixtures("uncompiled")
def test_refusals_name_the_model_inside():
    model = tiny_model("llama")
    around = torch.compile(model.train(), backend="eager")
    with pytest.raises(
        mv.errors.UnsupportedModelError, match="LlamaForCausalLM is in training mode"
    ):
        mv.Decoder(around)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", FORMS)
def test_compiled_code_runs_and_gives_hidden_states_before_the_norm(form):
    """Dynamo leaves out hooks that come after it: heads that are fed there would get nothing."""
    torch._dynamo.reset()
    calls = []

    def backend(graph, _inputs):
        def run(*args):
            calls.append(1)
            return graph.forward(*args)

        return run

    ids = prompt()
    plain = tiny_model("llama").generate(ids, **SETTINGS)
    model = compiled(form, tiny_model("llama"), backend)
    decoder = mv.Decoder(model, mv.drafters.NGram(min_ngram=1), GREEDY)
    calls.clear()
    assert decoder.generate(ids, max_new_tokens=6).sequences.equal(plain)
    assert calls
    with torch.no_grad(), HiddenStates(model, (BEFORE_NORM,)) as states:
        output = model(input_ids=ids)
    other = tiny_model("llama")
    with torch.no_grad(), HiddenStates(other, (BEFORE_NORM,)) as wanted:
        expected = other(input_ids=ids)
    torch.testing.assert_close(states.of(output)[0], wanted.of(expected)[0])
