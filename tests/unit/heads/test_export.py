"""Exported heads come back bit for bit, in the names and options that engines read."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen2Config

import mtp_verify as mv
from mtp_verify.heads import CausalHead, Sizes, export, family, load
from mtp_verify.heads.io.export import LAYOUTS
from tests.heads import random_hidden, randomised, tiny_head
from tests.models import VOCAB, tiny_model
from tests.published import IN_CHECKPOINT, in_checkpoint_head, in_checkpoint_tensors


def rows(head):
    state = head.new_state()
    with torch.no_grad():
        found = [head.read(state, random_hidden(head, 5), torch.arange(1, 6))]
        depth = (head.max_depth or 3) - 1
        found += [head.step(state, [n], torch.tensor([n + 2])) for n in range(depth)]
    return torch.cat(found)


REPOSITORIES = [
    ("eagle", "eagle", {}),
    ("koala-causal", "eagle", {}),
    ("eagle", "eagle", {"fusion_bias": True}),
    ("eagle", "eagle", {"own_embedding": True}),
    ("eagle3", "eagle", {"aux_layers": (0, 1)}),
    ("eagle3", "eagle", {"aux_layers": (0, 1), "draft_vocab_size": None}),
    ("eagle3", "speculators", {"aux_layers": (0, 1)}),
    (
        "eagle3",
        "speculators",
        {"aux_layers": (0, 1), "recycle": "post", "norm_before_residual": True},
    ),
    ("eagle3", "speculators", {"aux_layers": (0, 1), "feature_norm": "each", "num_layers": 2}),
    ("eagle3", "eagle", {"aux_layers": (0, 1), "feature_norm": "all"}),
    ("medusa", "medusa", {}),
    ("koala-parallel", "medusa", {}),
    ("medusa", "medusa", {"draft_vocab_size": 9}),
    ("medusa", "medusa", {"output_head": "shared"}),
    ("medusa", "medusa", {"output_head": "shared", "draft_vocab_size": 9}),
]


@pytest.mark.parametrize(("name", "layout", "changes"), REPOSITORIES)
def test_repository_comes_back(name, layout, changes, tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    head = tiny_head(name, model, **changes)
    export(head, tmp_path / "out", layout, base=tmp_path / "base")
    again = load(tmp_path / "out", model)
    assert torch.equal(rows(again), rows(head))
    assert again.spec.replace(layout=head.spec.layout, sizes=None) == head.spec.replace(sizes=None)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
    }


@pytest.mark.parametrize("name", [*IN_CHECKPOINT])
def test_module_goes_into_the_targets_checkpoint_and_comes_back(name, tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    head = in_checkpoint_head(name, model)
    export(head, tmp_path / "out", "in_checkpoint", base=tmp_path / "base", target=model)
    # The names of the release, once more written out by hand.
    written = load_file(tmp_path / "out" / "mtp-00001.safetensors")
    wanted = in_checkpoint_tensors(name, head)
    assert set(wanted) <= set(written)
    assert all(torch.equal(written[key], tensor) for key, tensor in wanted.items())
    config = json.loads((tmp_path / "out/config.json").read_text())
    for key in family(name).layout.count_keys[:1]:
        assert config[key] == 1
    if name == "mimo":
        return  # The same module with zero biases: see below.
    config["model_type"] = family(name).layout.model_types[0]
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    again = load(tmp_path / "out", model)
    assert again.spec.family == name
    assert torch.equal(rows(again), rows(head))


def test_base_shards_are_linked_and_the_target_still_loads(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    export(
        in_checkpoint_head("mimo", model), tmp_path / "out", "in_checkpoint", base=tmp_path / "base"
    )
    shards = sorted((tmp_path / "base").glob("*.safetensors"))
    assert len(shards) > 1
    for shard in shards:
        assert (tmp_path / "out" / shard.name).samefile(shard)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(again).__name__ == "Qwen2ForCausalLM"
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0.0, atol=1e-5)


def test_module_for_a_llama_is_served_as_mimo(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    head = in_checkpoint_head("mimo", model)
    export(head, tmp_path / "out", "in_checkpoint", base=tmp_path / "base")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["MiMoForCausalLM"]
    assert config["num_nextn_predict_layers"] == 1
    again = load(tmp_path / "out", model)
    assert again.spec.sizes.qkv_bias
    torch.testing.assert_close(rows(again), rows(head), rtol=0.0, atol=1e-5)


def test_module_over_a_draft_vocabulary_goes_in_without_it(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    changes = {"output_head": "shared", "draft_vocab_size": 9, "context_tokens": True}
    head = tiny_head("mimo", model, **changes)
    export(head, tmp_path / "out", "in_checkpoint", base=tmp_path / "base")
    again = load(tmp_path / "out", model)
    assert (again.vocab, again.spec.context_tokens) == (None, False)
    # The engine drafts from all tokens; among the head's own they are scored alike.
    state, own = again.new_state(), head.new_state()
    hidden, tokens = random_hidden(head, 5), torch.arange(1, 6)
    with torch.no_grad():
        full = again.read(state, hidden, tokens)[..., head.vocab]
        part = head.read(own, hidden, tokens)[..., : len(head.vocab)]
    torch.testing.assert_close(full, part, rtol=0.0, atol=1e-5)


def test_several_modules_stand_behind_each_other(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    head = in_checkpoint_head("deepseek_v3", model, num_modules=2)
    export(head, tmp_path / "out", "in_checkpoint", base=tmp_path / "base", target=model)
    again = load(tmp_path / "out", model)
    assert again.spec.num_modules == 2
    assert torch.equal(rows(again), rows(head))


def test_second_export_replaces_the_module(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    export(
        in_checkpoint_head("mimo", model), tmp_path / "one", "in_checkpoint", base=tmp_path / "base"
    )
    head = in_checkpoint_head("mimo", tiny_model("llama", seed=4))
    head.attach(model)
    with torch.no_grad():
        head.levels[0].fusion.weight += 1.0
    export(head, tmp_path / "two", "in_checkpoint", base=tmp_path / "one")
    torch.testing.assert_close(rows(load(tmp_path / "two", model)), rows(head), rtol=0.0, atol=1e-4)


def test_configurations_say_what_engines_ask_for(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    head = tiny_head("eagle3", model, aux_layers=(0, 1))
    export(head, tmp_path / "eagle3", "eagle")
    config = json.loads((tmp_path / "eagle3/config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert config["eagle_aux_hidden_state_layer_ids"] == [0, 1]
    assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [-1, 0]
    assert (config["draft_vocab_size"], config["vocab_size"]) == (20, VOCAB)
    export(head, tmp_path / "speculators", "speculators", base=tmp_path / "base")
    config = json.loads((tmp_path / "speculators/config.json").read_text())
    assert config["norm_before_residual"] is False
    assert config["transformer_layer_config"]["model_type"] == "llama"
    assert config["speculators_config"]["verifier"]["architectures"] == ["LlamaForCausalLM"]
    assert config["speculators_config"]["proposal_methods"][0]["verifier_accept_k"] == 1
    export(tiny_head("medusa", model), tmp_path / "medusa", "medusa")
    config = json.loads((tmp_path / "medusa/config.json").read_text())
    assert config["medusa_fc_bias"] is True
    assert config["num_heads"] == 4
    tensors = load_file(tmp_path / "medusa/model.safetensors")
    assert {"blocks.0.layers.0.weight", "blocks.0.layers.0.bias", "lm_heads.3.weight"} <= set(
        tensors
    )


def test_layers_counted_from_the_end_are_written_from_the_first(tmp_path):
    model = tiny_model("llama", num_hidden_layers=3)
    model.save_pretrained(tmp_path / "base")
    head = tiny_head("eagle3", model, aux_layers=(0, -3, -2))
    export(head, tmp_path / "out", "speculators", base=tmp_path / "base")
    again = load(tmp_path / "out", model)
    assert again.spec.aux_layers == (0, 1, 2)
    assert torch.equal(rows(again), rows(head))
    # -1 is what the final norm gives; engines have that state before the norm.
    head = tiny_head("eagle3", model, aux_layers=(0, -1))
    with pytest.raises(mv.errors.ParamsError, match="not what the final norm gives"):
        export(head, tmp_path / "last", "speculators", base=tmp_path / "base")


def test_rotary_parameters_survive(tmp_path):
    model = tiny_model("llama")
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    sizes = Sizes(**{**vars(tiny_head("eagle", model).spec.sizes), "rope": rope})
    head = randomised(CausalHead(family("eagle").replace(sizes=sizes))).attach(model).eval()
    export(head, tmp_path / "out", "eagle")
    again = load(tmp_path / "out", model)
    assert again.spec.sizes == sizes
    assert torch.equal(rows(again), rows(head))


@pytest.mark.parametrize(
    ("name", "layout", "changes", "message"),
    [
        ("eagle", "gguf", {}, "found 'gguf', wanted one of: native, eagle"),
        ("eagle", "speculators", {}, "holds: eagle3"),
        ("eagle", "eagle", {"output_norm": True}, "no output norm"),
        ("eagle", "eagle", {"draft_vocab_size": 9}, "no draft vocabulary"),
        ("eagle3", "eagle", {"num_layers": 2}, "one block"),
        ("eagle", "in_checkpoint", {}, "repository of their own"),
        ("mimo", "in_checkpoint", {}, "give base="),
        ("eagle3", "speculators", {}, "give base="),
        ("eagle3", "eagle", {"aux_layers": (0, -2)}, "base= tells how many"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused(name, layout, changes, message, tmp_path):
    head = tiny_head(name, tiny_model("llama"), **changes)
    with pytest.raises(mv.errors.ParamsError, match=message):
        export(head, tmp_path / "out", layout)
    assert list(tmp_path.iterdir()) == []


def test_medusa_has_no_place_in_a_checkpoint(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(mv.errors.ParamsError, match="repository of their own"):
        export(
            tiny_head("medusa", model), tmp_path / "out", "in_checkpoint", base=tmp_path / "base"
        )


def small_config(model):
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
             "num_attention_heads", "num_key_value_heads")  # fmt: skip
    return {name: getattr(model.config, name) for name in names}


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_mimo_module_has_the_biases_that_vllm_reads(kind, has_bias, tmp_path):
    model = tiny_model("llama")
    if kind == "qwen2":
        model = AutoModelForCausalLM.from_config(Qwen2Config(**small_config(model)))
    model.save_pretrained(tmp_path / "base")
    sizes = Sizes(**{**vars(Sizes.of(model.config)), "qkv_bias": has_bias})
    head = randomised(CausalHead(family("mimo").replace(sizes=sizes))).attach(model).eval()
    export(head, tmp_path / "out", "in_checkpoint", base=tmp_path / "base")
    tensors = load_file(tmp_path / "out/mtp-00001.safetensors")
    for part in ("q_proj", "k_proj", "v_proj"):
        found = tensors[f"model.mtp_layers.0.self_attn.{part}.bias"]
        own = getattr(head.levels[0].layers[0].self_attn, part).bias
        assert torch.equal(found, torch.zeros_like(found) if own is None else own)
    again = load(tmp_path / "out", model, probe=False)
    assert torch.equal(rows(again), rows(head))


def test_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(mv.errors.ParamsError, match="not empty"):
        export(tiny_head("eagle", tiny_model("llama")), tmp_path, "eagle")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_head_of_target_layers_needs_the_target(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    head = in_checkpoint_head("glm4_moe", model)
    with pytest.raises(mv.errors.ParamsError, match="give target="):
        export(head, tmp_path / "out", "in_checkpoint", base=tmp_path / "base")


def test_failed_export_leaves_nothing(tmp_path, monkeypatch):
    def full(path, tensors):
        raise OSError("disk full")

    monkeypatch.setattr(sys.modules["mtp_verify.heads.io.export"], "write_tensors", full)
    with pytest.raises(OSError, match="disk full"):
        export(tiny_head("eagle", tiny_model("llama")), tmp_path / "out", "eagle")
    assert list(tmp_path.iterdir()) == []


def test_native_layout_is_that_of_save(tmp_path):
    model = tiny_model("llama")
    head = tiny_head("hydra", model)
    head.record = {"seed": 3}
    export(head, tmp_path, target=model)
    again = load(tmp_path, model)
    assert (again.record, again.spec) == ({"seed": 3}, head.spec)
    repositories = {"eagle", "speculators", "medusa", "dflash", "dspark"}
    assert set(LAYOUTS) == {"native", "in_checkpoint", *repositories}
