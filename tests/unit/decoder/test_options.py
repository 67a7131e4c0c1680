"""What a request asks for: one record, checked before anything runs."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

import mtp_verify as mv
from mtp_verify.decoder.options import Options
from mtp_verify.drafters import NGram

NAMES = {"eos_token_id": "eos_ids", "stopping_criteria": "criteria"}


def each(count=1, **options):
    given = {
        "drafter": None, "rule": "auto", "lossy": None, "params": mv.SamplingParams(),
        "constraint": None, "seed": 3, "max_new_tokens": 4, "eos_ids": (), "criteria": None,
        "output_logits": False, "processors": (), "top_logprobs": 0,
    }  # fmt: skip
    return Options.each(count, **{**given, **options})


def test_every_keyword_of_a_request_is_in_the_record():
    fields = {field.name for field in dataclasses.fields(Options)}
    asked = inspect.signature(mv.Decoder.submit).parameters.keys() - {"self", "input_ids"}
    assert fields == {NAMES.get(name, name) for name in asked} | {"rule", "lossy"}
    shared = asked - {"drafter"}
    assert shared <= inspect.signature(mv.Decoder.generate).parameters.keys()
    assert all(f"{name}:" in mv.Decoder.generate.__doc__ for name in shared)


def test_the_record_cannot_be_changed():
    (options,) = each()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.seed = 4


def test_each_request_has_its_own():
    cold = mv.SamplingParams(temperature=0)
    first, second = each(2, params=[cold, mv.SamplingParams()], seed=[5, 6])
    assert (first.params, first.seed, second.seed) == (cold, 5, 6)
    assert [options.seed for options in each(2)] == [mv.derive_seed(3, 0), mv.derive_seed(3, 1)]


def test_plain_decoding_is_lossless():
    lossy = mv.lossy.typical(0.3, 0.09)
    assert each(drafter=NGram(), lossy=lossy)[0].lossy is lossy
    assert each(drafter=NGram(), lossy=lossy, speculate=False)[0].lossy is None
    assert each(lossy=lossy)[0].lossy is None


@pytest.mark.parametrize("name", ["max_new_tokens", "top_logprobs", "seed"])
@pytest.mark.parametrize("value", [-1, "a", 1.5])
def test_a_bad_number_is_named_before_anything_runs(name, value):
    with pytest.raises(mv.errors.ParamsError, match=f"^{name}: found "):
        each(**{name: value})
