"""Drafters in repositories of their own: each is known by its names, and run or truly refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import mtp_verify as mv
from mtp_verify.commands.cli import main
from mtp_verify.heads import FAMILIES, load
from tests.heads import random_hidden
from tests.models import VOCAB, tiny_model
from tests.published import (
    llama_config,
    write,
    write_eagle,
    write_eagle3,
    write_in_checkpoint,
    write_medusa,
    write_speculators,
)

D = 32
BLOCK = [
    "input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj",
    "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
]  # fmt: skip
QWEN_BLOCK = [*BLOCK, "self_attn.q_norm", "self_attn.k_norm"]
DFLASH = [
    "fc",
    "hidden_norm",
    "norm",
    *(f"layers.{n}.{part}" for n in range(2) for part in QWEN_BLOCK),
]
# Family -> what its configuration says, and the names of its tensors but for `.weight`.
KNOWN = {
    "dflash2": ({"selector_rank": 4}, [
        *DFLASH, ".candidate_selector.predecessor_codebook", "candidate_selector.hidden_projection",
        ".candidate_selector.successor_codebook", ".layers.0.attention_conv.base_kernel",
    ]),
    "redrafter": ({"model_type": "recurrent_drafting_drafter", "rnn": True}, [
        "input_proj", ".input_proj.bias", "rnn_u", ".rnn_u.bias", "rnn_w", "lm_head.0.linear",
        "lm_head.1",
    ]),
    "redrafter, a sum": ({"rnn": False}, ["input_proj", "lm_head.0.linear", "lm_head.1"]),
}  # fmt: skip


def write_names(folder, config, names):
    tensors = {
        (name[1:] if name.startswith(".") else f"{name}.weight"): torch.ones(4, 4) for name in names
    }
    write(folder, llama_config(**config), tensors)


@pytest.mark.parametrize("name", KNOWN)
def test_drafters_that_are_not_run_are_refused_by_their_own_name(name, tmp_path, capsys):
    config, names = KNOWN[name]
    family = name.partition(" ")[0].rstrip(",")
    write_names(tmp_path, config, names)
    obstacle = FAMILIES[family].spec.obstacle
    with pytest.raises(mv.errors.UnsupportedModelError) as caught:
        load(tmp_path, tiny_model("llama"))
    assert f"heads of the family {family} cannot be run here: {obstacle}" in str(caught.value)
    assert caught.value.slug == "unsupported_head"
    assert main(["inspect", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "unsupported"
    assert f"family {family} cannot" in found["defects"][0]["what"]


def test_a_language_model_that_drafts_at_mask_tokens_is_named(tmp_path):
    model = tiny_model("llama")
    write(tmp_path, model.config.to_dict() | {"pard_token": 7}, dict(model.state_dict()))
    with pytest.raises(mv.errors.UnsupportedModelError, match="PARD drafter: a language model"):
        load(tmp_path, model)


def test_tensors_of_an_unknown_head_are_not_reported_as_lost(tmp_path):
    model = tiny_model("llama")
    tensors = {**model.state_dict(), "model.nextn.0.strange.weight": torch.ones(4, 4)}
    config = model.config.to_dict() | {"num_nextn_predict_layers": 1}
    write(tmp_path, config, tensors)
    with pytest.raises(
        mv.errors.UnsupportedModelError, match=r"no known family has: model\.nextn\.0\.strange"
    ) as caught:
        load(tmp_path, model)
    assert "lost" not in str(caught.value)


def rows(head):
    state = head.new_state()
    with torch.no_grad():
        found = [head.read(state, random_hidden(head, 5), torch.arange(1, 6))]
        found += [
            head.step(state, [n], torch.tensor([n + 2])) for n in range((head.max_depth or 3) - 1)
        ]
    return torch.cat(found)


def renamed(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file({change(name): tensor for name, tensor in tensors.items()},
              folder / "model.safetensors")  # fmt: skip


@pytest.mark.parametrize("make", [write_eagle, write_eagle3, write_speculators])
@pytest.mark.parametrize("kept", [(), ("lm_head.weight", "d2t", "t2d")], ids=["all", "most"])
def test_names_behind_model_are_those_of_the_head(make, kept, tmp_path):
    model = tiny_model("llama")
    make(tmp_path, model)
    wanted = rows(load(tmp_path, model, probe=False))
    renamed(tmp_path, lambda name: name if name in kept else f"model.{name}")
    found = load(tmp_path, model, probe=False)
    assert torch.equal(rows(found), wanted)
    decoder = mv.Decoder(model, mv.drafters.Heads(found), mv.SamplingParams(temperature=0.0))
    ids = torch.arange(1, 9)[None]
    assert decoder.generate(ids, max_new_tokens=8).tokens == (
        decoder.generate(ids, max_new_tokens=8, speculate=False).tokens
    )


@pytest.mark.parametrize("is_bundled", [False, True])
def test_medusa_heads_by_the_name_of_their_module(is_bundled, tmp_path):
    model = tiny_model("llama")
    head = write_medusa(tmp_path, model)
    tensors = {
        f"medusa_head.{name}": tensor
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    if is_bundled:
        tensors |= {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict() | {"medusa_num_heads": 3}
    write(tmp_path, config, tensors)
    for target in (model, None):
        found = load(tmp_path, target, probe=False)
        assert (found.spec.family, found.spec.num_modules) == ("medusa", 3)
        for name, tensor in head.state_dict().items():
            assert torch.equal(found.state_dict()[name], tensor)
    assert torch.equal(rows(load(tmp_path, model)), rows(head))


def test_a_target_in_a_larger_model_keeps_its_head(tmp_path):
    model, head = write_in_checkpoint("mimo_v2", tmp_path)
    renamed(tmp_path, lambda name: f"language_model.{name}")
    config = json.loads((tmp_path / "config.json").read_text())
    wrapped = {"model_type": "mimo_v2", "text_config": config}
    (tmp_path / "config.json").write_text(json.dumps(wrapped))
    found = load(tmp_path, model, probe=False)
    assert found.spec.family == "mimo_v2"
    assert torch.equal(rows(found), rows(head))


def test_a_plain_target_is_no_head_whatever_stands_before_its_names(tmp_path):
    model = tiny_model("llama")
    for start in ("", "language_model.", "model."):
        tensors = {f"{start}{name}": t.clone() for name, t in model.state_dict().items()}
        write(tmp_path, model.config.to_dict(), tensors)
        with pytest.raises(mv.errors.UnsupportedModelError, match="no head is recognised"):
            load(tmp_path, model)
    assert model.config.vocab_size == VOCAB
