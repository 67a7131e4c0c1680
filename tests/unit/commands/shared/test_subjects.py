from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="models need torch")
pytest.importorskip("transformers", reason="models need transformers")

from mtp_verify.commands.shared.subjects import subject_for


def test_tiny_model_has_the_same_weights_every_time():
    first, second = (subject_for(tiny=True).load("float32") for _ in range(2))
    left, right = first.state_dict(), second.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_tiny_model_leaves_torch_random_state_alone():
    before = torch.random.get_rng_state()
    subject_for(tiny=True).load("float32")
    assert torch.equal(before, torch.random.get_rng_state())


def test_tiny_model_reads_and_writes_bytes():
    subject = subject_for(tiny=True)
    assert subject.decode(subject.encode("hello")) == "hello"
    assert subject.load("bfloat16").dtype is torch.bfloat16


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises((OSError, ValueError)):
        subject_for(folder=str(tmp_path))


def test_a_local_checkpoint_is_read_with_its_tokenizer(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    subject_for(tiny=True).load("float32").save_pretrained(tmp_path)
    subject = subject_for(folder=str(tmp_path))
    assert subject.encode("a b") == [0, 1]  # without a chat template the text itself
    assert subject.load("bfloat16").dtype is torch.bfloat16
