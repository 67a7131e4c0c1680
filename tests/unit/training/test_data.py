"""Training text: prompts, what is recorded of a generation, shards, batches."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest
import torch

from mtp_verify.errors import ParamsError
from mtp_verify.training import shards as shards_module
from mtp_verify.training.batches import collate, plan_epoch
from mtp_verify.training.prompts import HELD_OUT, TOPICS, make_prompts
from mtp_verify.training.shards import Shards, shard_path, write_shard
from mtp_verify.training.writing import write_texts

if TYPE_CHECKING:
    from pathlib import Path


def test_no_topic_is_on_both_sides() -> None:
    train, held_out = make_prompts(0, held_out=False), make_prompts(0, held_out=True)
    assert len(set(TOPICS)) == len(TOPICS)
    assert len(set(TOPICS)) == len(TOPICS) > 25 * len(HELD_OUT) > 400
    assert not any(topic in prompt for topic in HELD_OUT for prompt in train)
    assert all(any(topic in prompt for topic in HELD_OUT) for prompt in held_out)
    assert train == make_prompts(0, held_out=False) != make_prompts(1, held_out=False)


def test_what_is_recorded_is_what_the_target_computes(stand: Any) -> None:
    prompts = [stand.prompts[0], stand.prompts[1][:3]]
    texts = write_texts(
        stand.model, prompts, (-1, 2), temperatures=[0.0, 1.0], max_new_tokens=6, seed=3
    )
    texts.sort(key=len, reverse=True)
    for prompt, text in zip(prompts, texts, strict=True):
        ids = torch.tensor([[prompt[0], *text.tokens.tolist()]])
        assert ids[0, : len(prompt)].tolist() == prompt
        with torch.no_grad():
            output = stand.model(ids, output_hidden_states=True)
        law = output.logits[0, :-1].softmax(-1)
        assert len(text) == len(prompt) + 5
        for states, layer in zip(text.hidden, (-1, 2), strict=True):
            torch.testing.assert_close(
                states, output.hidden_states[layer][0, :-1], rtol=1e-4, atol=1e-4
            )
        answer = slice(len(prompt) - 1, None)
        assert not text.top_probs[: len(prompt) - 1].any()
        found = law[answer].gather(1, text.top_ids[answer])
        assert torch.allclose(found, text.top_probs[answer], atol=1e-5)
        if text.temperature == 0.0:
            assert text.top_ids[answer, 0].tolist() == text.tokens[answer].tolist()


def test_a_shard_comes_back_as_it_was(stand: Any, tmp_path: Path) -> None:
    texts = write_texts(
        stand.model, stand.prompts[:2], (-1,), temperatures=[0.0, 0.5], max_new_tokens=3, seed=0
    )
    write_shard(shard_path(tmp_path, 0), texts[:1])
    write_shard(shard_path(tmp_path, 1), texts[1:])
    found = Shards([shard_path(tmp_path, 0), shard_path(tmp_path, 1)])
    assert found.lengths == [len(text) for text in texts]
    for index, text in enumerate(texts):
        assert torch.equal(found[index].hidden[0], text.hidden[0])
        assert torch.equal(found[index].tokens, text.tokens)
        assert torch.allclose(found[index].top_probs, text.top_probs, atol=1e-3)
        assert found[index].temperature == pytest.approx(text.temperature)


def test_a_full_disk_leaves_complete_shards_and_says_what_to_do(
    stand: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [stand.shards((-1,))[0][0]]
    write_shard(shard_path(tmp_path, 0), texts)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards_module, "write_tensors", full)
    with pytest.raises(OSError, match=r"MB\) cannot be written: No space left.*make room"):
        write_shard(shard_path(tmp_path, 1), texts)
    assert [path.name for path in tmp_path.iterdir()] == ["shard-00000.safetensors"]


def test_what_is_not_a_shard_is_named(tmp_path: Path) -> None:
    path = shard_path(tmp_path, 0)
    path.write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(ParamsError, match="shard-00000"):
        Shards([path])


def test_an_epoch_holds_every_sequence_once_within_the_limit() -> None:
    lengths = [1 + (7 * index) % 30 for index in range(150)]
    plan = plan_epoch(lengths, 64, seed=1, epoch=0)
    assert sorted(index for batch in plan for index in batch) == list(range(150))
    assert all(len(batch) * max(lengths[index] for index in batch) <= 64 for batch in plan)
    assert plan == plan_epoch(lengths, 64, seed=1, epoch=0)
    assert plan != plan_epoch(lengths, 64, seed=1, epoch=1)
    used = sum(lengths)
    assert used / sum(len(b) * max(lengths[i] for i in b) for b in plan) > 0.7


def test_batches_hold_places_of_tokens_and_padding(stand: Any) -> None:
    text, _ = stand.shards((-1,))
    pair = [text[0], text[1]]
    places = torch.full((32,), -1)
    known = pair[0].tokens[3]
    places[known] = 5
    batch = collate(pair, places)
    assert batch.targets[0, 3] == 5
    assert (batch.targets[batch.tokens != known] == -1).all()
    end = int(batch.lengths[1])
    assert not batch.top_probs[1, end:].any()
    moved = batch.shifted(batch.tokens, 2)
    assert torch.equal(moved[:, :-2], batch.tokens[:, 2:])
    assert not moved[:, -2:].any()
