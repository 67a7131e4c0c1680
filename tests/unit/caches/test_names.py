from __future__ import annotations

import inspect

import pytest

pytest.importorskip("transformers", reason="caches need transformers")

from transformers.cache_utils import Cache
from transformers.generation.utils import GenerateDecoderOnlyOutput

from mtp_verify.caches.names import cache_name
from mtp_verify.decoder.decode import Decoder
from mtp_verify.verifier.params import SamplingParams
from tests.models import TreeDrafter, greedy_tokens, prompt, tiny_model

GREEDY = SamplingParams(temperature=0.0)


def rename_cache(monkeypatch, model, name):
    """Give the forward's cache another name, as versions of transformers do."""
    forward, old = model.forward, cache_name(model.forward)

    def renamed(**kwargs):
        assert old not in kwargs, f"the forward takes {name}, and was given {old}"
        return forward(**{old: kwargs.pop(name, None), **kwargs})

    parameters = inspect.signature(forward).parameters.values()
    renamed.__signature__ = inspect.Signature(
        [p.replace(name=name) if p.name == old else p for p in parameters]
    )
    monkeypatch.setattr(model, "forward", renamed)


@pytest.mark.parametrize("name", ["kv", "a_cache_of_tomorrow"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_forward_may_call_its_cache_anything(monkeypatch, name, batch):
    model = tiny_model("llama")
    ids = prompt()
    expected = greedy_tokens(model, ids, 12)
    rename_cache(monkeypatch, model, name)
    drafter = TreeDrafter([-1, 0, 1, 0], text=ids[0].tolist() + expected)
    result = Decoder(model, drafter, GREEDY).generate(ids.repeat(batch, 1), max_new_tokens=12)
    assert result.tokens == [expected] * batch
    assert result.stats.accepted > 0


def test_a_parameter_is_found_by_its_name_or_by_its_annotation():
    def old(input_ids, past_key_values=None): ...
    def mamba(input_ids, cache_params=None): ...
    def new(input_ids, cache=None): ...
    def text(input_ids, kv: Cache | None = None): ...
    def none(input_ids, use_cache=True, **kwargs): ...

    text.__annotations__["kv"] = Cache | None
    found = [cache_name(function) for function in (old, mamba, new, text, none)]
    assert found == ["past_key_values", "cache_params", "cache", "kv", None]


def test_what_generate_returns_has_a_cache():
    name = cache_name(GenerateDecoderOnlyOutput)
    assert name is not None
    assert GenerateDecoderOnlyOutput(sequences=None, **{name: 7})[name] == 7
