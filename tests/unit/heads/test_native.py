"""Our own layout: bit for bit, atomic, and tied to the target it was made for."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.heads import HeadSpec, load, save
from tests.heads import VARIANTS, random_hidden, tiny_head
from tests.models import prompt, tiny_model


class Words:
    def __init__(self, words):
        self.words = words

    def get_vocab(self):
        return {word: index for index, word in enumerate(self.words)}


def rows(head):
    state = head.new_state()
    with torch.no_grad():
        found = [head.read(state, random_hidden(head, 5), torch.arange(1, 6))]
        found += [head.step(state, [n], torch.tensor([n + 2])) for n in range(2)]
    return torch.cat(found)


@pytest.mark.parametrize("name", VARIANTS)
def test_round_trip_is_exact(name, tmp_path):
    model = tiny_model("llama")
    head = tiny_head(name, model)
    save(head, tmp_path / "head", target=model, record={"seed": 5})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load(tmp_path / "head", model)
    assert (again.spec, again.record) == (head.spec, {"seed": 5})
    assert torch.equal(rows(again), rows(head))
    assert not again.training
    drafter = mv.drafters.Heads(again)
    assert Decoder(model, drafter).generate(prompt(), max_new_tokens=6).stats.drafted > 0


def test_head_of_the_targets_own_layer_comes_back(tmp_path):
    model = tiny_model("llama")
    head = tiny_head("deepseek", model, block="llama")
    from mtp_verify.heads import CausalHead, family
    from tests.heads import SIZES, randomised

    head = randomised(CausalHead(family("glm4_moe").replace(sizes=SIZES), model)).eval()
    save(head, tmp_path, target=model)
    assert torch.equal(rows(load(tmp_path, model)), rows(head))
    with pytest.raises(mv.errors.ParamsError, match="give the target"):
        load(tmp_path)


def test_head_loads_without_a_target_and_in_another_dtype(tmp_path):
    model = tiny_model("llama")
    head = tiny_head("eagle", model)
    save(head, tmp_path)
    again = load(tmp_path)
    assert torch.equal(rows(again.attach(model)), rows(head))
    half = load(tmp_path, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.bfloat16}
    assert load(tmp_path, tiny_model("llama").to(torch.bfloat16)).levels[0].fusion.weight.dtype == (
        torch.bfloat16
    )
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_second_save_replaces_the_first(tmp_path):
    model = tiny_model("llama")
    save(tiny_head("eagle", model, seed=1), tmp_path)
    head = tiny_head("mimo", model, seed=2)
    save(head, tmp_path)
    assert torch.equal(rows(load(tmp_path, model)), rows(head))
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(mv.errors.ParamsError, match="must be JSON"):
        save(head, tmp_path, record={"x": object()})
    assert len(list(tmp_path.iterdir())) == 2


def test_kill_before_the_last_rename_leaves_the_old_head(tmp_path, monkeypatch):
    model = tiny_model("llama")
    old = tiny_head("eagle", model, seed=1)
    save(old, tmp_path)

    def killed(path, chunks):
        raise KeyboardInterrupt

    monkeypatch.setattr("mtp_verify.heads.io.native.write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tiny_head("eagle", model, seed=2), tmp_path)
    assert torch.equal(rows(load(tmp_path, model)), rows(old))


def test_head_of_another_target_is_named(tmp_path):
    model = tiny_model("llama")
    save(tiny_head("eagle", model), tmp_path, target=model, tokenizer=Words("abc"))
    with pytest.raises(
        mv.errors.UnsupportedModelError, match=r"hidden_size of the target: found 16, wanted 32"
    ):
        load(tmp_path, tiny_model("llama", hidden_size=16))
    with pytest.raises(
        mv.errors.UnsupportedModelError, match=r"vocab_size of the target: found 40, wanted 32"
    ):
        load(tmp_path, tiny_model("llama", vocab_size=40))
    with pytest.raises(mv.errors.UnsupportedModelError, match="tokenizer of the target: found"):
        load(tmp_path, model, tokenizer=Words("acb"))
    load(tmp_path, model, tokenizer=Words("abc"))
    with pytest.warns(UserWarning, match="made for other weights"):
        load(tmp_path, tiny_model("llama", seed=9))


def test_same_weights_in_another_dtype_are_the_same_target(tmp_path):
    model = tiny_model("llama").to(torch.bfloat16)
    save(tiny_head("eagle", model), tmp_path, target=model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path, model.to(torch.float32))


def edit(folder, change):
    document = json.loads((folder / "head.json").read_text())
    change(document)
    (folder / "head.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=7), "format: found 7, wanted 1"),
        (lambda d: d.update(weights="../x"), "does not name"),
        (lambda d: d.update(weights="x"), "missing: x"),
        (lambda d: d.update(spec=[]), "not the description"),
        (lambda d: d["spec"].update(num_modules=10**9), "claims 1000000000 modules"),
        (lambda d: d["spec"].update(num_modules="2"), "num_modules: found '2'"),
        (lambda d: d["spec"]["sizes"].update(intermediate_size=10**11), "size: found 1000"),
        (lambda d: d["spec"]["sizes"].update(intermediate_size=99), r"wrong shape: .*48"),
        (lambda d: d["spec"]["sizes"].update(hidden_size=-5), "hidden_size: found -5"),
        (lambda d: d["spec"]["sizes"].update(head_dim=0), "head_dim: found 0"),
        (lambda d: d["spec"].update(fusion_bias=True), r"missing: levels\.0\.fusion\.bias"),
        (lambda d: d["spec"].update(fusion="sum"), "not a causal head"),
        (lambda d: d["spec"]["sizes"].update(activation="ctc_loss"), "found 'ctc_loss'"),
        (lambda d: d["spec"]["sizes"]["rope"].update(partial_rotary_factor=1e9), "rope: found"),
        (lambda d: d["spec"].update(draft_vocab_size=9), "found none, wanted a list of 9"),
        (lambda d: d["spec"].update(embed_norm=True), "missing: .*embed_norm"),
        (lambda d: d["spec"].update(num_layers=2), r"missing: levels\.0\.layers\.1"),
    ],
)  # fmt: skip
def test_damaged_descriptions_are_refused(tmp_path, change, message):
    save(tiny_head("eagle", tiny_model("llama")), tmp_path)
    edit(tmp_path, change)
    with pytest.raises(mv.MtpVerifyError, match=message):
        load(tmp_path)


def test_changed_weights_are_noticed(tmp_path):
    save(tiny_head("eagle", tiny_model("llama")), tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(mv.errors.UnsupportedModelError, match="not what was saved"):
        load(tmp_path)


@pytest.mark.parametrize("order", [[3, 3], [5, 2], [0, 99], [-1, 2]])
def test_bad_draft_vocabulary_is_refused(tmp_path, order):
    model = tiny_model("llama")
    head = tiny_head("deepseek", model, draft_vocab_size=2)
    head.vocab = torch.tensor(order)
    save(head, tmp_path)
    with pytest.raises(mv.errors.UnsupportedModelError, match="draft vocabulary"):
        load(tmp_path, model)


def test_no_such_head(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such"):
        load(tmp_path / "none")
    with pytest.raises(mv.errors.UnsupportedModelError):
        load(tmp_path)


def test_spec_survives(tmp_path):
    save(tiny_head("eagle3", tiny_model("llama")), tmp_path)
    text = json.dumps(json.loads((tmp_path / "head.json").read_text())["spec"])
    assert HeadSpec.from_json(text) == load(tmp_path).spec
