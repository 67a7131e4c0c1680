"""`inspect`, `reattach` and `export`: what they say of sound, lost, stale and dead heads."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import mtp_verify as mv
from mtp_verify.checkpoints.folder import Checkpoint
from mtp_verify.commands import cli
from mtp_verify.heads import CausalHead, Sizes, export, family, load, reattach, save
from mtp_verify.heads.io.inspect import engines, inspect_head
from tests.block_heads import KINDS, write_block_head
from tests.heads import tiny_head
from tests.models import tiny_model
from tests.published import (
    REPOSITORIES,
    in_checkpoint_head,
    write,
    write_eagle,
    write_in_checkpoint,
)


def run(capsys, *words):
    code = cli.main([*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def agreeing(folder):
    """A target that says the next token in a circle, and a module that says so too."""
    model = tiny_model("llama")
    head = in_checkpoint_head("mimo", model)
    with torch.no_grad():
        for module in (model, head):
            for name, parameter in module.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    parameter.mul_(1e-3)
        embed = torch.eye(32)
        model.model.embed_tokens.weight.copy_(embed)
        model.lm_head.weight.copy_(embed.roll(1, 0))
        model.model.norm.weight.fill_(1.0)
        head.levels[0].fusion.weight.zero_()
        head.levels[0].fusion.weight[:, 32:] = torch.eye(32)
        for norm in ("embed_norm", "hidden_norm", "norm"):
            head.levels[0].get_submodule(norm).weight.fill_(1.0)
    model.save_pretrained(folder / "base")
    export(head, folder / "good", "in_checkpoint", base=folder / "base")
    return model, head


def test_sound_head_is_ok(tmp_path, capsys):
    agreeing(tmp_path)
    code, found = run(capsys, "inspect", tmp_path / "good", "--tokens", 60)
    assert (code, found["status"], found["defects"]) == (0, "ok", [])
    assert (found["family"], found["num_modules"], found["claimed_modules"]) == ("mimo", 1, 1)
    assert found["engines"]["vllm"] == 'yes: method "mtp"'
    assert min(found["probe"][0]["accepted"]) > 0.8
    assert found["parameters"] == sum(
        tensor.numel()
        for name, tensor in load_file(tmp_path / "good/mtp-00001.safetensors").items()
        if "mtp_layers" in name
    )
    assert cli.main(["inspect", str(tmp_path / "good"), "--tokens", "60"]) == 0
    text = capsys.readouterr().out
    assert "Would it load?" in text
    assert text.rstrip().endswith("status: ok")


def test_random_head_is_dead(tmp_path, capsys):
    model, _ = agreeing(tmp_path)
    bad = in_checkpoint_head("mimo", model)
    export(bad, tmp_path / "bad", "in_checkpoint", base=tmp_path / "base")
    code, found = run(capsys, "inspect", tmp_path / "bad", "--tokens", 60)
    assert (code, found["status"]) == (1, "dead")
    assert "below 5%" in found["defects"][0]["what"]


def test_head_far_below_the_original_is_stale(tmp_path, capsys):
    model, _ = agreeing(tmp_path)
    with torch.no_grad():
        # Half of the tokens now lead elsewhere.
        model.lm_head.weight[:16] = model.lm_head.weight[:16].roll(3, 0)
    model.save_pretrained(tmp_path / "tuned")
    reattach(tmp_path / "good", tmp_path / "tuned", tmp_path / "out")
    # The head reads the target's output head, so it follows that; its own projection is turned too.
    tensors = load_file(tmp_path / "out/mtp-00001.safetensors")
    name = "model.mtp_layers.0.input_proj.weight"
    tensors[name][:20] = tensors[name][:20].roll(1, 0)
    save_file(tensors, tmp_path / "out/mtp-00001.safetensors")
    words = ("inspect", tmp_path / "out", "--reference", tmp_path / "good", "--tokens", 60)
    code, found = run(capsys, *words)
    assert (code, found["status"]) == (1, "stale")


def halved(head):
    """A head in bfloat16, and its tensors as they are then."""
    head.to(torch.bfloat16)
    return head, {name: tensor.clone() for name, tensor in head.state_dict().items()}


LAYOUTS = [("eagle", "eagle"), ("eagle3", "speculators"), ("medusa", "medusa"), ("mimo", "native")]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_export_keeps_the_dtype_of_the_head_beside_a_wider_target(name, layout, tmp_path, capsys):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")  # in float32
    changes = {"aux_layers": (0, 1)} if name == "eagle3" else {}
    head, before = halved(tiny_head(name, model, **changes))
    save(head, tmp_path / "head")
    words = ("export", tmp_path / "head", "--layout", layout, "--base", tmp_path / "base")
    code, found = run(capsys, *words, "--out", tmp_path / "out")
    assert (code, found["dtypes"]) == (0, {"bfloat16": len(before)})
    again = load(tmp_path / "out", dtype="auto").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in before.items())
    assert {tensor.dtype for tensor in again.values()} == {torch.bfloat16}

    assert cli.main([*map(str, words), "--out", str(tmp_path / "again")]) == 0
    assert "bfloat16 (as in HEAD)" in capsys.readouterr().out
    wide = ("--out", tmp_path / "wide", "--dtype", "float32")
    code, found = run(capsys, *words, *wide)
    assert (found["dtypes"], found["head_dtypes"]) == (
        {"float32": len(before)}, {"bfloat16": len(before)},
    )  # fmt: skip
    again = load(tmp_path / "wide", dtype="auto").state_dict()
    assert all(torch.equal(again[name], tensor.float()) for name, tensor in before.items())


@pytest.mark.parametrize("name", ["mimo", "qwen3_next"])
def test_modules_keep_their_dtype_inside_a_wider_checkpoint(name, tmp_path, capsys):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    head, before = halved(in_checkpoint_head(name, model))
    save(head, tmp_path / "head")
    words = ("export", tmp_path / "head", "--layout", "in_checkpoint", "--base", tmp_path / "base")
    code, found = run(capsys, *words, "--out", tmp_path / "out")
    assert (code, found["dtypes"]) == (0, {"bfloat16": len(before)})
    written = load_file(tmp_path / "out" / "mtp-00001.safetensors")
    stored = [tensor for tensor in written.values() if tensor.dtype == torch.bfloat16]
    assert sum(tensor.numel() for tensor in stored) == sum(t.numel() for t in before.values())


def test_heads_of_several_dtypes_are_written_as_they_are(tmp_path, capsys):
    head = tiny_head("medusa", tiny_model("llama"))
    names = list(head.state_dict())
    head.get_parameter(names[0]).data = head.get_parameter(names[0]).data.half()
    save(head, tmp_path / "head")
    words = ["export", str(tmp_path / "head"), "--layout", "medusa"]
    code, found = run(capsys, *words, "--out", tmp_path / "out")
    assert (code, found["dtypes"]) == (0, {"float16": 1, "float32": len(names) - 1})


def test_biases_that_a_medusa_repository_lacks_have_its_dtype(tmp_path):
    head, _ = halved(tiny_head("medusa", tiny_model("llama")))
    export(head, tmp_path / "out", "medusa")
    file = tmp_path / "out" / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if not name.endswith("bias")}
    save_file(kept, file)
    again = load(tmp_path / "out", dtype="auto").state_dict()
    assert any(name.endswith("bias") for name in again)
    assert {tensor.dtype for tensor in again.values()} == {torch.bfloat16}


def test_inspect_names_the_dtype_of_the_file(tmp_path, capsys):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")  # in float32
    head, before = halved(tiny_head("mimo", model))
    save(head, tmp_path / "head", target=model)
    words = ("inspect", tmp_path / "head", "--target", tmp_path / "base", "--tokens", 0)
    assert run(capsys, *words)[1]["dtypes"] == {"BF16": len(before)}


def test_lost_head_is_missing(tmp_path, capsys):
    model = tiny_model("llama")
    config = model.config.to_dict() | {"num_nextn_predict_layers": 1}
    write(tmp_path, config, dict(model.state_dict()))
    code, found = run(capsys, "inspect", tmp_path)
    assert (code, found["status"], found["family"]) == (1, "missing", None)
    assert "reattach" in found["defects"][0]["what"]


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        (lambda t: t.pop("model.mtp_layers.0.mlp.up_proj.weight"), "missing", "up_proj"),
        (lambda t: t["model.mtp_layers.0.input_proj.weight"].fill_(float("nan")), "damaged",
         "not finite"),
        (lambda t: t["model.mtp_layers.0.input_proj.weight"].zero_(), "dead", "all zero"),
        (lambda t: t.update({"model.mtp_layers.0.x": torch.zeros(1)}), "damaged", "not known"),
        (lambda t: t.update({"model.mtp_layers.0.input_proj.weight": torch.ones(2, 2)}), "damaged",
         "wrong shape"),
    ],
)  # fmt: skip
def test_defects_of_tensors_are_found(change, status, message, tmp_path, capsys):
    write_in_checkpoint("mimo", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    code, found = run(capsys, "inspect", tmp_path, "--tokens", 0)
    assert (code, found["status"]) == (1, status)
    assert message in found["defects"][0]["what"]


def test_freshly_initialised_head_is_dead(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    head = CausalHead(family("mimo").replace(sizes=Sizes.of(model.config))).attach(model)
    with torch.no_grad():
        head.levels[0].fusion.weight.normal_(std=0.02)
    export(head, tmp_path / "out", "in_checkpoint", base=tmp_path / "base")
    found = inspect_head(Checkpoint(tmp_path / "out"))
    assert found.status == "dead"
    assert "never trained" in found.defects[0][1]


def test_configuration_that_claims_more_modules_than_there_are(tmp_path):
    model, _ = write_in_checkpoint("deepseek_v3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"num_nextn_predict_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = inspect_head(Checkpoint(tmp_path), model, num_tokens=0)
    assert found.defects == [
        ("missing", "the configuration claims 3 modules and the tensors are of 1")
    ]


def test_blocks_of_the_targets_kind_need_it_to_be_checked(tmp_path):
    write_in_checkpoint("glm4_moe", tmp_path)
    found = inspect_head(Checkpoint(tmp_path))
    assert found.status == "ok"
    assert "were not checked" in found.notes[0]


def test_foreign_family_is_named(tmp_path, capsys):
    tensors = {f"mtp.0.{part}.weight": torch.zeros(2, 2) for part in ("e_proj", "h_proj", "enorm")}
    write(tmp_path, {"model_type": "deepseek_v4"}, tensors)
    code, found = run(capsys, "inspect", tmp_path)
    assert (code, found["status"]) == (1, "unsupported")
    assert "hyper-connections" in found["defects"][0]["what"]


def test_repository_is_measured_on_its_target(tmp_path, capsys):
    model = tiny_model("llama")
    write_eagle(tmp_path / "head", model)
    model.save_pretrained(tmp_path / "target")
    words = ("inspect", tmp_path / "head", "--target", tmp_path / "target", "--tokens", 60)
    _, found = run(capsys, *words)
    assert found["family"] == "eagle"
    assert found["copies"] == {"embed_tokens.weight": True}
    assert len(found["probe"]) == 1


@pytest.mark.parametrize("name", ["eagle", "eagle3", "medusa", "dflash", "dspark of speculators"])
def test_a_head_is_not_measured_on_random_numbers_in_place_of_its_target(name, tmp_path, capsys):
    """Its repository names the target's kind of model, and holds none of its layers."""
    model = tiny_model("llama")
    if name in REPOSITORIES:
        REPOSITORIES[name](tmp_path, model)
    else:
        write_block_head(tmp_path, KINDS[name], model)
    code, found = run(capsys, "inspect", tmp_path)
    assert (code, found["status"], found["probe"]) == (0, "ok", None)
    assert found["family"] == name.partition(" ")[0]


def test_native_head_is_inspected(tmp_path, capsys):
    model = tiny_model("llama")
    save(tiny_head("eagle", model), tmp_path / "head")
    code, found = run(capsys, "inspect", tmp_path / "head")
    assert (code, found["status"], found["family"]) == (0, "ok", "eagle")
    model.save_pretrained(tmp_path / "target")
    words = ("inspect", tmp_path / "head", "--target", tmp_path / "target", "--tokens", 60)
    assert run(capsys, *words)[1]["probe"] is not None
    (tmp_path / "head/head.json").write_text("{}")
    code, found = run(capsys, "inspect", tmp_path / "head")
    assert (code, found["status"]) == (1, "damaged")


def test_every_family_has_an_answer_for_each_engine():
    from mtp_verify.heads import FAMILIES

    for record in FAMILIES.values():
        assert set(engines(record.spec)) == {"transformers", "vllm", "sglang"}


def fine_tuned(folder, name="deepseek_v3"):
    """An original with a head, and a fine-tune of it that lost it."""
    model, head = write_in_checkpoint(name, folder / "original")
    tensors = load_file(folder / "original/model.safetensors")
    copy = "model.layers.2.embed_tokens.weight"
    if name == "deepseek_v3":
        tensors[copy] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, folder / "original/model.safetensors")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.001 * torch.randn_like(parameter))
    kept = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    config = json.loads((folder / "original/config.json").read_text())
    config.pop("num_nextn_predict_layers", None)
    write(folder / "tuned", config, kept)
    return model, head


def test_reattached_head_drafts_for_the_fine_tune(tmp_path, capsys):
    model, head = fine_tuned(tmp_path)
    words = (
        "--base",
        tmp_path / "original",
        "--tuned",
        tmp_path / "tuned",
        "--out",
        tmp_path / "o",
    )
    code, found = run(capsys, "reattach", *words)
    assert code == 0
    assert found["retied"] == ["model.layers.2.embed_tokens.weight"]
    assert 0 < found["embedding_drift"] < 0.05
    again = load(tmp_path / "o", model)
    for name, tensor in head.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    # Its stored copy equals the fine-tune's embedding, not the original's.
    assert not again.spec.own_embedding
    assert json.loads((tmp_path / "o/config.json").read_text())["num_nextn_predict_layers"] == 1
    assert (tmp_path / "o/model.safetensors").samefile(tmp_path / "tuned/model.safetensors")


def test_reattach_warns_of_a_drifted_embedding(tmp_path):
    fine_tuned(tmp_path)
    tensors = load_file(tmp_path / "tuned/model.safetensors")
    tensors["model.embed_tokens.weight"] *= 1.2
    save_file(tensors, tmp_path / "tuned/model.safetensors")
    with pytest.warns(UserWarning, match=r"moved by 20\.\d% from"):
        reattach(tmp_path / "original", tmp_path / "tuned", tmp_path / "out")


def test_reattach_refuses_what_does_not_fit(tmp_path):
    fine_tuned(tmp_path)
    config = json.loads((tmp_path / "tuned/config.json").read_text()) | {"hidden_size": 64}
    (tmp_path / "tuned/config.json").write_text(json.dumps(config))
    with pytest.raises(mv.errors.UnsupportedModelError, match="hidden_size: found 64, wanted 32"):
        reattach(tmp_path / "original", tmp_path / "tuned", tmp_path / "out")
    write_eagle(tmp_path / "eagle", tiny_model("llama"))
    with pytest.raises(mv.errors.UnsupportedModelError, match="repository of its own"):
        reattach(tmp_path / "eagle", tmp_path / "tuned", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_command_writes_what_load_reads(tmp_path, capsys):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    save(tiny_head("eagle3", model, aux_layers=(0, 1)), tmp_path / "head")
    words = ("--layout", "speculators", "--base", tmp_path / "base", "--out", tmp_path / "out")
    code, found = run(capsys, "export", tmp_path / "head", *words)
    assert (code, found["family"]) == (0, "eagle3")
    assert load(tmp_path / "out", model).spec.family == "eagle3"
    code, found = run(capsys, "export", tmp_path / "head", *words)
    assert (code, found["status"]) == (2, "error")
    assert "not empty" in found["error"]["message"]


def test_reattach_counts_modules_where_the_configuration_does(tmp_path):
    fine_tuned(tmp_path, "glm4_moe")
    for name in ("original", "tuned"):
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps({"llm_config": json.loads(path.read_text())}))
    reattach(tmp_path / "original", tmp_path / "tuned", tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert list(config) == ["llm_config"]
    assert config["llm_config"]["num_nextn_predict_layers"] == 1


def test_drift_of_ernies_target_is_measured(tmp_path):
    fine_tuned(tmp_path, "ernie4_5_moe")
    done = reattach(tmp_path / "original", tmp_path / "tuned", tmp_path / "out")
    assert done.drift is not None
    assert 0.0 < done.drift < 0.05


def sees_and_writes():
    """A tiny model whose only class is one for conditional generation, around a Llama."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    sight = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4, projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(3)
    config = LlavaConfig(text_config=tiny_model("llama").config, vision_config=sight,
                         image_token_index=31, image_seq_length=4)  # fmt: skip
    return LlavaForConditionalGeneration(config).eval()


def test_a_target_that_is_only_for_conditional_generation_is_loaded(tmp_path, capsys):
    model = sees_and_writes()
    write_eagle(tmp_path / "head", model)
    model.save_pretrained(tmp_path / "target")
    words = ("inspect", tmp_path / "head", "--target", tmp_path / "target", "--tokens", 40)
    _, found = run(capsys, *words)
    assert (found["notes"], len(found["probe"])) == ([], 1)
    assert found["status"] in ("ok", "dead")  # It is random, and was measured.


def test_a_target_that_cannot_be_loaded_is_no_success(tmp_path, capsys):
    model, _ = write_in_checkpoint("glm_ocr", tmp_path / "inside")
    config = json.loads((tmp_path / "inside/config.json").read_text())
    (tmp_path / "inside/config.json").write_text(json.dumps(config | {"model_type": "nobody_s"}))
    code, found = run(capsys, "inspect", tmp_path / "inside")
    assert (code, found["status"]) == (1, "unchecked")
    assert "transformers cannot load the target" in found["defects"][0]["what"]
    write_eagle(tmp_path / "head", model)
    words = ("inspect", tmp_path / "head", "--target", tmp_path / "inside")
    code, found = run(capsys, *words)
    assert (code, found["status"]) == (1, "unchecked")
    code, found = run(capsys, "inspect", tmp_path / "head")  # No target was asked for.
    assert (code, found["status"]) == (0, "ok")


@pytest.mark.parametrize(
    ("name", "model_type", "answer"),
    [
        ("deepseek_v3", "deepseek_v3", "yes"), ("deepseek_v3", "axk1", "no: it has no"),
        ("deepseek_v3", "youtu", "no: it has no"), ("glm4_moe", "solar_open", "no: it has no"),
        ("glm4_moe", "glm4_moe", "yes"), ("step3p5", "step3p7", "yes"), ("mellum", "mellum", "yes"),
        ("nemotron_h", "nemotron_h", "no: it has no"), ("bailing", "nobody_s", "no: it has no"),
        ("qwen3_next", "qwen3_next", "no: the tensors are dropped"),
    ],
)  # fmt: skip
def test_transformers_is_asked_what_it_does_with_a_type(name, model_type, answer):
    assert engines(family(name), model_type)["transformers"].startswith(answer)


def test_the_type_is_that_of_the_language_model(tmp_path):
    write_in_checkpoint("deepseek_v3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "axk1"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = inspect_head(Checkpoint(tmp_path), None, num_tokens=0)
    assert found.engines["transformers"] == "no: it has no next-token modules for axk1"


def test_no_engine_of_today_is_named_for_medusa():
    answers = engines(family("medusa"))
    assert not any(answer.startswith("yes") for answer in answers.values())
    assert "0.32" in answers["vllm"]
