"""Writers side by side: the same shards as one alone, and an end whatever happens."""

from __future__ import annotations

import dataclasses
import multiprocessing
from typing import TYPE_CHECKING, Any

import pytest
import torch

from mtp_verify.training.shards import Shards
from mtp_verify.training.writers import Job, write_shards
from tests.models import tiny_model

if TYPE_CHECKING:
    from pathlib import Path


def load() -> Any:
    return tiny_model("llama")


def _jobs(folder: Path, count: int) -> list[Job]:
    return [
        Job(folder / f"{index}", [[3, 5 + index], [7, 1, 2]], (-1,), [0.0, 1.0], 5, index)
        for index in range(count)
    ]


def test_several_write_what_one_writes(tmp_path: Path) -> None:
    alone = [job.path for job in write_shards(load(), _jobs(tmp_path / "a", 3), None, 2)]
    others = [job.path for job in write_shards(load(), _jobs(tmp_path / "b", 3), load, 2)]
    assert sorted(path.name for path in others) == [path.name for path in alone]
    for one, two in zip(Shards(alone), Shards(sorted(others)), strict=True):
        assert torch.equal(one.tokens, two.tokens)
        torch.testing.assert_close(one.hidden, two.hidden)
    assert not multiprocessing.active_children()


def test_a_fault_of_one_ends_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    first, second = _jobs(tmp_path, 2)
    second = dataclasses.replace(second, path=tmp_path / "file" / "1")
    with pytest.raises(OSError, match="file"):
        list(write_shards(load(), [first, second], load, 2))
    assert not multiprocessing.active_children()


def test_a_shard_that_is_there_stays(tmp_path: Path) -> None:
    (job,) = _jobs(tmp_path, 1)
    job.path.write_bytes(b"written before")
    assert list(write_shards(load(), [job], None, 1)) == [job]
    assert job.path.read_bytes() == b"written before"
