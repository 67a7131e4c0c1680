"""Published checkpoints: every family loads from its layout, exactly, and drafts."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.heads import FAMILIES, load
from tests.heads import random_hidden
from tests.models import VOCAB, prompt, tiny_model
from tests.published import (
    IN_CHECKPOINT,
    REPOSITORIES,
    in_checkpoint_head,
    in_checkpoint_tensors,
    llama_config,
    write,
    write_eagle,
    write_eagle3,
    write_in_checkpoint,
    write_medusa,
    write_speculators,
)


def rows(head):
    state = head.new_state()
    with torch.no_grad():
        found = [head.read(state, random_hidden(head, 5), torch.arange(1, 6))]
        found += [
            head.step(state, [n], torch.tensor([n + 2])) for n in range((head.max_depth or 3) - 1)
        ]
    return torch.cat(found)


def assert_drafts(model, head):
    decoder = Decoder(model, mv.drafters.Heads(head), mv.SamplingParams(temperature=0.0))
    plain = decoder.generate(prompt(), max_new_tokens=8, speculate=False)
    fast = decoder.generate(prompt(), max_new_tokens=8)
    assert fast.tokens == plain.tokens
    assert fast.stats.drafted > 0


@pytest.mark.parametrize("name", IN_CHECKPOINT)
def test_module_inside_a_targets_checkpoint(name, tmp_path):
    model, head = write_in_checkpoint(name, tmp_path)
    found = load(tmp_path, model, probe=False)
    assert found.spec.family == name
    assert found.spec.replace(disputed=()) == head.spec.replace(disputed=())
    assert torch.equal(rows(found), rows(head))
    assert_drafts(model, found)


def test_every_family_has_a_test_or_a_reason():
    native_only = {"meta"}  # no published layout is known
    # test_hydra.py, test_recurrent.py, test_trained.py, test_block_head.py
    elsewhere = {"hydra", "mlp_speculator", "arctic_lstm", "mtp"}
    elsewhere |= {name for name, record in FAMILIES.items() if record.spec.kind == "block"}
    repositories = {"eagle", "eagle3", "medusa"}
    # A Llama cannot stand for these targets; `test_real_families` has the real ones.
    real = {"nemotron_h", "longcat_flash"}
    known = set(IN_CHECKPOINT) | native_only | elsewhere | repositories | real
    assert {name for name, record in FAMILIES.items() if record.block} == known


@pytest.mark.parametrize("name", REPOSITORIES)
def test_repository_of_its_own(name, tmp_path):
    model = tiny_model("llama")
    head = REPOSITORIES[name](tmp_path, model)
    found = load(tmp_path, model)
    assert found.spec.replace(layout=head.spec.layout, sizes=None) == head.spec.replace(sizes=None)
    assert torch.equal(rows(found), rows(head))
    assert_drafts(model, found)


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_before_residual": True},
        {"recycle": "post"},
        {"feature_norm": "all"},
        {"feature_norm": "each"},
    ],
)
def test_options_of_speculators_are_read(changes, tmp_path):
    model = tiny_model("llama")
    head = write_speculators(tmp_path, model, **changes)
    assert torch.equal(rows(load(tmp_path, model)), rows(head))


def test_missing_option_of_speculators_is_disputed(tmp_path):
    model = tiny_model("llama")
    write_speculators(tmp_path, model)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["norm_before_residual"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(tmp_path, model, probe=False).spec.disputed == ("norm_before_residual",)


def test_medusa_with_several_blocks(tmp_path):
    model = tiny_model("llama")
    head = write_medusa(tmp_path, model, num_layers=2)
    assert torch.equal(rows(load(tmp_path, model)), rows(head))


def test_medusa_with_several_blocks_needs_no_target(tmp_path):
    model = tiny_model("llama")
    head = write_medusa(tmp_path, model, num_layers=2)
    assert torch.equal(rows(load(tmp_path).attach(model)), rows(head))


def test_early_medusa_uses_the_targets_output_head(tmp_path):
    model = tiny_model("llama")
    write_medusa(tmp_path, model)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(".1.weight")}
    write(tmp_path, {"medusa_num_heads": 3}, kept)
    head = load(tmp_path, model)
    assert head.spec.output_head == "shared"
    assert rows(head).shape == (3, VOCAB)


def test_several_modules_and_their_layers_need_no_configuration(tmp_path):
    model = tiny_model("llama")
    head = in_checkpoint_head("deepseek_v3", model, num_modules=2)
    tensors = {}
    for level in range(2):
        one = in_checkpoint_head("deepseek_v3", model)
        state = {name: head.state_dict()[name.replace("levels.0", f"levels.{level}")]
                 for name in one.state_dict()}  # fmt: skip
        one.load_state_dict(state)
        tensors |= {
            name.replace("layers.2", f"layers.{2 + level}"): tensor
            for name, tensor in in_checkpoint_tensors("deepseek_v3", one).items()
        }
    config = model.config.to_dict() | {"model_type": "deepseek_v3"}
    write(tmp_path, config, {**model.state_dict()}, tensors)
    found = load(tmp_path, model)
    assert found.spec.num_modules == 2
    assert torch.equal(rows(found), rows(head))


def test_qwen_modules_share_all_but_the_block(tmp_path):
    model = tiny_model("llama")
    head = in_checkpoint_head("qwen3_next", model, num_modules=2)
    for name in ("embed_norm", "hidden_norm", "fusion", "norm"):
        head.levels[1].get_submodule(name).load_state_dict(
            head.levels[0].get_submodule(name).state_dict()
        )
    one = in_checkpoint_head("qwen3_next", model)
    tensors = {}
    for level in range(2):
        one.load_state_dict(
            {name: head.state_dict()[name.replace("levels.0", f"levels.{level}")]
             for name in one.state_dict()}
        )  # fmt: skip
        tensors |= {
            name.replace("mtp.layers.0", f"mtp.layers.{level}"): tensor
            for name, tensor in in_checkpoint_tensors("qwen3_next", one).items()
        }
    write(tmp_path, model.config.to_dict() | {"model_type": "qwen3_next"}, tensors)
    assert torch.equal(rows(load(tmp_path, model)), rows(head))


def with_copies(folder, change):
    model, head = write_in_checkpoint("deepseek_v3", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.2.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return model, head


def test_equal_copies_of_embedding_and_output_head_are_tied(tmp_path):
    model, head = with_copies(tmp_path, lambda tensors: None)
    found = load(tmp_path, model)
    assert (found.spec.own_embedding, found.spec.output_head) == (False, "shared")
    assert torch.equal(rows(found), rows(head))


def test_other_copies_are_kept(tmp_path):
    def change(tensors):
        tensors["model.layers.2.embed_tokens.weight"][3] += 1.0
        tensors["model.layers.2.shared_head.head.weight"][4] += 1.0

    model, head = with_copies(tmp_path, change)
    found = load(tmp_path, model)
    assert (found.spec.own_embedding, found.spec.output_head) == (True, "own")
    assert not torch.equal(rows(found), rows(head))
    assert found.embedding.weight[3, 0] == model.model.embed_tokens.weight[3, 0] + 1.0


def renamed(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def test_equal_names_are_resolved_by_model_type_or_disputed(tmp_path):
    model, _ = write_in_checkpoint("glm4_moe", tmp_path)
    assert load(tmp_path, model, probe=False).spec.recycle == "pre"
    renamed(tmp_path, model_type="unheard_of")
    assert "recycle" in load(tmp_path, model, probe=False).spec.disputed


def test_equal_names_that_no_probe_tells_apart_are_refused(tmp_path):
    # Norms of w and of 1 + w.
    model, _ = write_in_checkpoint("qwen3_next", tmp_path)
    renamed(tmp_path, model_type="unheard_of")
    with pytest.raises(mv.errors.UnsupportedModelError, match=r"unheard_of.*differ in norm_kind"):
        load(tmp_path, model)


def test_exaone_module_of_full_attention_is_refused(tmp_path):
    model, _ = write_in_checkpoint("exaone_moe", tmp_path)
    renamed(tmp_path, mtp_layer_types=["full_attention"])
    with pytest.raises(mv.errors.UnsupportedModelError, match="has rotary positions"):
        load(tmp_path, model)


def test_model_type_of_the_whole_goes_before_that_of_its_language_model(tmp_path):
    model, _ = write_in_checkpoint("exaone_moe", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "qwen3_next"}
    for whole, wanted in (("exaone4_5", "exaone_moe"), ("qwen3_5", "qwen3_5")):
        together = {"model_type": whole, "text_config": config}
        (tmp_path / "config.json").write_text(json.dumps(together))
        assert load(tmp_path, model, probe=False).spec.family == wanted


def test_eight_bit_blocks_are_scaled(tmp_path):
    model, _ = write_in_checkpoint("deepseek_v3", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.2.mlp.gate_proj.weight"
    small = tensors[name].clone().to(torch.float8_e4m3fn)
    tensors[name] = small
    scale = torch.tensor([[0.5], [0.25]])  # 64 rows in blocks of 48
    tensors[f"{name}_scale_inv"] = scale
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"weight_block_size": [48, 32]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = load(tmp_path, model).levels[0].layers[0].layer.mlp.gate_proj.weight
    wanted = small.float()
    wanted[:48] *= 0.5
    wanted[48:] *= 0.25
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=0.0)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (3, 1)])
def test_scales_that_do_not_fit_their_weight_are_refused(shape, tmp_path):
    write_in_checkpoint("mimo", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.mtp_layers.0.mlp.gate_proj.weight"
    tensors |= {name: tensors[name].to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(shape)}
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"weight_block_size": [48, 32]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(mv.errors.UnsupportedModelError, match=r"scale_inv: found .* 48 x 32 of"):
        load(tmp_path)


@pytest.mark.parametrize("with_target", [False, True])
def test_weights_of_integers_are_refused(with_target, tmp_path):
    model, _ = write_in_checkpoint("mimo", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.mtp_layers.0.mlp.gate_proj.weight"
    save_file({**tensors, name: tensors[name].to(torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(mv.errors.UnsupportedModelError, match=r"found torch\.int8, wanted"):
        load(tmp_path, model if with_target else None)


_DEEPSEEK = ("enorm", "hnorm", "eh_proj", "shared_head.norm")
_FINAL = ("enorm", "hnorm", "eh_proj", "final_layernorm")
FOREIGN = {
    "deepseek_v4": ("mtp.0.e_proj", "mtp.0.h_proj", "mtp.0.enorm", "mtp.0.hnorm"),
    "qwen4_exp": ("mtp.fc_embedding", "mtp.fc_hidden", "mtp.pre_fc_norm_embedding"),
    "inkling": ("model.mtp.layers.0.hidden_norm", "model.mtp.layers.0.embed_norm",
                "model.mtp.layers.0.input_proj", "model.mtp.chain_norm"),
    "kimi_k3": tuple(f"language_model.model.layers.2.{part}" for part in _DEEPSEEK),
    "glm5_next": tuple(f"model.layers.2.{part}" for part in _DEEPSEEK),
    "openpangu": tuple(f"model.layers.2.{part}" for part in _DEEPSEEK),
    "hunyuan_v4": tuple(f"model.mtp_layers.0.{part}" for part in _FINAL),
    "minimax_m3": tuple(f"language_model.model.mtp.layers.0.{part}" for part in _FINAL),
    "gemma4_assistant": ("pre_projection", "post_projection", "norm"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_families_that_cannot_be_run_are_recognised(name, tmp_path):
    assert FAMILIES[name].spec.obstacle
    tensors = {f"{part}.weight": torch.zeros(2, 2) for part in FOREIGN[name]}
    write(tmp_path, {"model_type": FAMILIES[name].spec.layout.model_types[0]}, tensors)
    with pytest.raises(mv.errors.UnsupportedModelError, match=FAMILIES[name].spec.obstacle):
        load(tmp_path)


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path):
    model = tiny_model("llama")
    write_eagle(tmp_path, model)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["layers.0.mlp.up_proj.weight"]
    tensors["strange"] = torch.zeros(1)
    tensors["layers.0.self_attn.o_proj.weight"] = torch.zeros(3, 5)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(mv.errors.UnsupportedModelError) as error:
        load(tmp_path, model)
    assert "missing: layers.0.mlp.up_proj.weight" in str(error.value)
    assert "not known: strange" in str(error.value)
    assert "wrong shape: layers.0.self_attn.o_proj.weight [3, 5] for [32, 32]" in str(error.value)


@pytest.mark.parametrize("name", ["glm4_moe", "mimo"])
def test_defects_inside_a_targets_checkpoint_are_named(name, tmp_path):
    model, _ = write_in_checkpoint(name, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    block = IN_CHECKPOINT[name]["block"]
    del tensors[f"{block}mlp.up_proj.weight"]
    tensors[f"{block}strange.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(mv.errors.UnsupportedModelError) as error:
        load(tmp_path, model)
    assert f"missing: {block}mlp.up_proj.weight" in str(error.value)
    assert f"not known: {block}strange.weight" in str(error.value)
    tensors[f"{block}mlp.up_proj.weight"] = torch.zeros(2, 2)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(mv.errors.UnsupportedModelError, match=r"mlp\.up_proj\.weight \[2, 2\] for"):
        load(tmp_path, model)


def test_lost_modules_are_told_from_a_model_that_never_had_any(tmp_path):
    model = tiny_model("llama")
    config = model.config.to_dict()
    write(tmp_path, config | {"num_nextn_predict_layers": 1}, dict(model.state_dict()))
    with pytest.raises(
        mv.errors.UnsupportedModelError, match="num_nextn_predict_layers = 1: it was lost"
    ):
        load(tmp_path, model)
    write(tmp_path, config, dict(model.state_dict()))
    with pytest.raises(mv.errors.UnsupportedModelError, match="no head is recognised"):
        load(tmp_path, model)


def test_head_of_another_target_is_refused(tmp_path):
    write_eagle(tmp_path, tiny_model("llama"))
    with pytest.raises(mv.errors.UnsupportedModelError, match=r"width 32 and 32 tokens.*16 and 32"):
        load(tmp_path, tiny_model("llama", hidden_size=16))


def test_target_is_asked_for_where_it_is_needed(tmp_path):
    model, _ = write_in_checkpoint("glm4_moe", tmp_path / "a")
    with pytest.raises(mv.errors.ParamsError, match="give the target"):
        load(tmp_path / "a")
    write_eagle3(tmp_path / "b", model)
    (tmp_path / "b/config.json").write_text(json.dumps(llama_config()))
    with pytest.raises(mv.errors.ParamsError, match="give the target"):
        load(tmp_path / "b")
    with pytest.raises(mv.errors.UnsupportedModelError, match=r"fc\.weight"):
        load(tmp_path / "b", model)


def test_layers_of_eagle3_by_default_depend_on_the_targets_depth(tmp_path):
    model = tiny_model("llama", num_hidden_layers=6)
    write_speculators(tmp_path, model)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["eagle_aux_hidden_state_layer_ids"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(tmp_path, model).spec.aux_layers == (2, 3, 3)


def test_draft_vocabularies_that_disagree_are_refused(tmp_path):
    model = tiny_model("llama")
    write_eagle3(tmp_path, model)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["t2d"][:] = True
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(mv.errors.UnsupportedModelError, match="name different tokens"):
        load(tmp_path, model)


def test_head_loads_from_shards(tmp_path):
    model, head = write_in_checkpoint("mimo", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    config = json.loads((tmp_path / "config.json").read_text())
    write(tmp_path, config, *({name: tensors[name] for name in names[k::3]} for k in range(3)))
    assert torch.equal(rows(load(tmp_path, model)), rows(head))
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(mv.errors.UnsupportedModelError, match="missing: model-00002-of-00003"):
        load(tmp_path, model)


def test_index_that_leads_outside_or_astray_is_refused(tmp_path):
    model, _ = write_in_checkpoint("mimo", tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for where, message in (
        ({"a": "../x.safetensors"}, "does not say which file"),
        ({"a": 3}, "does not say which file"),
        ([], "does not say which file"),
        ({"a": "model.safetensors"}, "not in the file it names: a"),
    ):
        index.write_text(json.dumps({"weight_map": where}))
        with pytest.raises(mv.errors.UnsupportedModelError, match=message):
            load(tmp_path, model)


def test_pickles_are_refused_unless_allowed(tmp_path):
    model = tiny_model("llama")
    head = write_eagle(tmp_path, model)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(mv.errors.UnsupportedModelError, match=r"save_file.*allow_pickle=True"):
        load(tmp_path, model)
    assert torch.equal(rows(load(tmp_path, model, allow_pickle=True)), rows(head))


def test_pickle_that_runs_code_is_refused_even_then(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    (tmp_path / "medusa_lm_head.pt").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(mv.errors.UnsupportedModelError, match="weights-only loader refuses"):
        load(tmp_path, allow_pickle=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 0}, "divisor"),
        ({"num_attention_heads": -4}, "num_attention_heads: found -4"),
        ({"hidden_size": "32"}, "hidden_size: found '32'"),
        ({"hidden_size": 10**15}, "hidden_size"),
        ({"num_key_value_heads": 3}, "divisor"),
        ({"rope_theta": "x"}, "rope: found"),
        ({"rope_scaling": {"rope_type": "strange"}}, "rope_type: found 'strange'"),
        ({"rope_scaling": {"rope_type": ["llama3"]}}, "a name for rope_type"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": "x"}}, "make no sense"),
        ({"rope_theta": 10**300}, "rope_theta > 0"),
        (
            {"num_attention_heads": 1 << 30, "num_key_value_heads": 1, "head_dim": 1 << 30},
            "make no sense",
        ),
        ({"head_dim": 10**9}, "wrong shape"),
        ({"rms_norm_eps": []}, None),
        ({"vocab_size": None}, "vocab_size: found None"),
        ({"target_hidden_size": 64}, "target_hidden_size: found"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(change, message, tmp_path):
    model = tiny_model("llama")
    write_eagle(tmp_path, model)
    (tmp_path / "config.json").write_text(json.dumps(llama_config(**change)))
    if message is None:
        load(tmp_path, model)
        return
    with pytest.raises(mv.MtpVerifyError, match=message):
        load(tmp_path, model)


def test_unsupported_speculators_are_named(tmp_path):
    write_speculators(tmp_path, tiny_model("llama"))
    config = json.loads((tmp_path / "config.json").read_text())
    config["speculators_model_type"] = "dflash"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        mv.errors.UnsupportedModelError, match=r"found 'dflash', and its tensors .* of eagle3"
    ):
        load(tmp_path)
    config["speculators_model_type"] = "other"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        mv.errors.UnsupportedModelError, match=r"found 'other', wanted one of: .*eagle3"
    ):
        load(tmp_path)
