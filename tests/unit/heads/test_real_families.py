"""Modules in checkpoints of transformers' real classes: exact, or refused with the reason."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

import mtp_verify as mv
from mtp_verify.checkpoints.folder import Checkpoint
from mtp_verify.decoder.decode import Decoder
from mtp_verify.heads import FAMILIES, CausalHead, Sizes, export, family, load
from mtp_verify.heads.io.inspect import inspect_head
from mtp_verify.models.hidden import HiddenStates
from tests.models import prompt
from tests.real_heads import CASES, write_real

DRAFTED = 5


@pytest.fixture(scope="module", params=CASES)
def real(request, tmp_path_factory):
    return write_real(request.param, tmp_path_factory.mktemp(request.param))


def loaded(real, **changes):
    head = load(real.folder, real.model, probe=False)
    # What vLLM hides of the first pair is no part of a model's definition.
    head.choose(zero_first=False, **changes)
    return head


def text():
    return torch.randint(1, 32, (13,), generator=torch.Generator().manual_seed(8))


def hidden_of(head, model, ids):
    with torch.no_grad(), HiddenStates(model, head.hidden_layers) as states:
        return states.of(model(ids[None], **states.options))[0][0]


def levels(head, real, ids):
    hidden, state = hidden_of(head, real.model, ids)[:-1], head.new_state()
    with torch.no_grad():
        rows = [head.read(state, [hidden], ids[1:])]
        rows.append(head.step(state, [0], torch.tensor([DRAFTED])))
    return torch.cat(rows)


def assert_equal(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-5 * float(wanted.abs().max()))


def test_logits_of_two_levels_are_those_of_transformers_own_layer(real):
    head, ids = loaded(real), text()
    assert head.spec.family == real.case.family
    assert_equal(levels(head, real, ids), real.levels(ids, DRAFTED))


def test_logits_do_not_depend_on_how_the_text_is_cut_nor_on_other_branches(real):
    head, ids = loaded(real), text()
    hidden, state = hidden_of(head, real.model, ids)[:-1], head.new_state()
    with torch.no_grad():
        for start, end in ((0, 4), (4, 5), (5, 12)):
            first = head.read(state, [hidden[start:end]], ids[start + 1 : end + 1])
            if end < 12:
                head.step(state, [0, 0], torch.tensor([7, 9]))
        second = head.step(state, [0, 0], torch.tensor([9, DRAFTED]))[1:]
    assert_equal(torch.cat((first, second)), levels(head, real, ids))


def test_sizes_are_the_targets_whatever_a_release_calls_them(tmp_path):
    real, ids = write_real("step3p7", tmp_path), text()
    # The release of Step-3.5 has a list of bases, one a layer.
    table = {
        "model_type": "step3p7",
        "text_config": {"hidden_size": 32, "num_hidden_layers": 4, "rope_theta": [1e4] * 6},
    }
    (tmp_path / "config.json").write_text(json.dumps(table))
    assert_equal(levels(loaded(real), real, ids), real.levels(ids, DRAFTED))


def test_window_of_a_new_head_is_that_of_its_blocks(tmp_path):
    real = write_real("mimo_v2_flash", tmp_path)
    config = real.model.config
    head = CausalHead(family("mimo_v2").replace(sizes=Sizes.of(config)), real.model)
    assert head.spec.sizes.window == config.sliding_window < len(text())
    assert head.spec == head.levels[0].spec


def test_greedy_text_with_drafts_is_the_targets(real):
    decoder = Decoder(real.model, mv.drafters.Heads(loaded(real)), mv.SamplingParams(0.0))
    plain = decoder.generate(prompt(), max_new_tokens=12, speculate=False)
    fast = decoder.generate(prompt(), max_new_tokens=12)
    assert fast.tokens == plain.tokens
    assert fast.stats.drafted > 0


def test_inspection_finds_the_head_whole_and_probes_it(real):
    found = inspect_head(Checkpoint(real.folder), real.model, num_tokens=40)
    assert found.spec.family == real.case.family
    # Random weights agree with nothing.
    assert {kind for kind, _ in found.defects} <= {"dead"}
    assert found.probe is not None
    assert not found.notes


def test_export_writes_the_names_of_the_release(real, tmp_path):
    head = load(real.folder, real.model, probe=False)
    export(head, tmp_path / "out", "in_checkpoint", base=real.folder, target=real.model)
    written, released = {}, load_file(real.folder / "model.safetensors")
    for path in (tmp_path / "out").glob("*.safetensors"):
        written |= load_file(path)
    assert written.keys() == released.keys()
    assert all(torch.equal(written[name], released[name]) for name in released)


WITH_OWN_FORWARD = ("deepseek_v3", "glm4_moe", "mellum")


@pytest.mark.parametrize("name", WITH_OWN_FORWARD)
@torch.no_grad()
def test_logits_equal_transformers_own_mtp_forward(name, tmp_path):
    real, ids = write_real(name, tmp_path), text()
    # transformers knows the releases' own layer numbers alone.
    real.model._keys_to_ignore_on_load_unexpected = [real.pattern]
    head, reference = loaded(real), MtpModel.from_pretrained(real.model).eval()
    hidden = hidden_of(head, real.model, ids)[None, :-1]
    places = torch.arange(1, len(ids))[None]
    _, wanted, _ = reference(ids[None, 1:], hidden, None, places, MtpCache(config=None))
    assert_equal(levels(head, real, ids)[:1], wanted[0, :1])


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe"])
@torch.no_grad()
def test_logits_of_two_modules_equal_transformers_own_mtp_forward(name, tmp_path):
    fields = CASES[name].fields | {"num_mtp_layers": 2}
    real, ids = write_real(name, tmp_path, modules=2, fields=fields), text()
    real.model._keys_to_ignore_on_load_unexpected = [real.pattern]
    head, reference = loaded(real, recycle="post"), MtpModel.from_pretrained(real.model).eval()
    hidden, state = hidden_of(head, real.model, ids)[:-1], head.new_state()
    drafted, wanted, _ = reference(
        ids[None, 1:], hidden[None], None, torch.arange(1, len(ids))[None], MtpCache(config=None)
    )
    first = head.read(state, [hidden], ids[1:])
    second = head.step(state, [0], drafted[0, :1])
    assert_equal(torch.cat((first, second)), wanted[0])


def test_every_family_is_exact_or_refused_with_its_reason():
    exact = {case.family for case in CASES.values()}
    inside = {name for name, record in FAMILIES.items() if record.spec.is_inside_target}
    refused = {name for name in FAMILIES if FAMILIES[name].spec.obstacle}
    assert exact.isdisjoint(refused)
    assert inside - exact - refused == set()


def test_every_name_of_a_configuration_is_shown_where_transformers_has_its_class():
    classes = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    named = {
        kind
        for record in FAMILIES.values()
        for kind in record.spec.layout.model_types
        if kind in classes and not record.spec.obstacle
    }
    shown = CASES.keys() | {f"{kind}_text" for kind, case in CASES.items() if case.text_alone}
    assert named <= shown
