"""The record of a head: what it refuses, its JSON form, and the table of families."""

from __future__ import annotations

import json

import pytest

import mtp_verify as mv
from mtp_verify.heads import FAMILIES, HeadSpec, Sizes, family
from mtp_verify.heads.families import BLOCKS, block_of
from tests.models import tiny_model


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_survives_json(name):
    sizes = Sizes(hidden_size=8, vocab_size=9, rope={"rope_theta": 5e5, "rope_type": "default"})
    for spec in (family(name), family(name).replace(sizes=sizes, aux_layers=(1, 2))):
        assert HeadSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_families_that_cannot_be_run_say_why(name):
    spec = family(name)
    assert (spec.block == "foreign") == bool(spec.obstacle)
    assert spec.sizes is None


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_record_and_spec_of_a_family_agree(name):
    record = FAMILIES[name]
    assert record.spec.family == name
    assert record.spec.block == ("foreign" if record.block is None else record.block.kind)


def test_kinds_of_blocks_come_from_the_families():
    kinds = {"llama", "target", "half", "sublayers", "residual", "recurrent", "slots"}
    assert set(BLOCKS) == kinds
    assert block_of(family("medusa")) is BLOCKS["residual"]
    with pytest.raises(mv.errors.ParamsError, match="found 'linear', wanted one of: target, llama"):
        block_of(HeadSpec("test", block="linear"))
    with pytest.raises(mv.errors.UnsupportedModelError, match="hyper-connections"):
        block_of(family("deepseek_v4"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "serial"}, "kind: found 'serial', wanted one of: causal, parallel"),
        ({"recycle": "norm"}, "recycle: found 'norm'"),
        ({"obstacle": 0, "block": {}}, "block: found"),
        ({"block": {}}, "block: found"),
        ({"num_modules": 0}, "num_modules: found 0"),
    ],
)
def test_unknown_words_are_refused(fields, message):
    with pytest.raises(mv.errors.ParamsError, match=message):
        HeadSpec("test", **fields)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"family": 3}', "null", '{"layout": {}}'])
def test_text_that_is_no_spec_is_refused(text):
    with pytest.raises(mv.errors.ParamsError, match="not the description of a head"):
        HeadSpec.from_json(text)


def test_unknown_family_lists_the_known():
    with pytest.raises(mv.errors.ParamsError, match=r"'eagle4', wanted .*: .*deepseek_v3.*medusa"):
        family("eagle4")


def test_sizes_come_from_the_targets_configuration():
    sizes = Sizes.of(tiny_model("llama").config)
    assert (sizes.hidden_size, sizes.num_heads, sizes.num_kv_heads, sizes.head_dim) == (32, 4, 2, 8)
    assert sizes.rope["rope_theta"] == 10_000.0
    assert family("eagle").replace(sizes=sizes).known_sizes is sizes
    with pytest.raises(mv.errors.ParamsError, match="sizes of eagle are not set"):
        _ = family("eagle").known_sizes


def test_descriptions_from_before_a_field_was_there_are_read():
    spec = family("eagle").replace(sizes=Sizes(hidden_size=8, vocab_size=16))
    document = json.loads(spec.to_json())
    for name in ("state", "is_tied", "prefix", "output_bias"):
        del document[name]
    del document["layout"]["marks"]
    assert HeadSpec.from_json(json.dumps(document)) == spec
