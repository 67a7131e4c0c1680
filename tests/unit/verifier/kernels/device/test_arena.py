"""Tensors in one piece of memory, and their mirrors."""

from __future__ import annotations

import torch

from mtp_verify.verifier.kernels.device.arena import Arena

FIELDS = {"words": ((3,), torch.int64), "flag": ((), torch.bool)}
CPU = torch.device("cpu")


def test_one_copy_takes_all_there_and_back():
    arena = Arena(FIELDS, CPU)
    arena.host["words"][:] = [4, 5, 6]
    arena.host["flag"][()] = True
    arena.send()
    assert arena.tensors["words"].tolist() == [4, 5, 6]
    assert arena.tensors["flag"]
    arena.tensors["words"].add_(1)
    arena.fetch()
    arena.wait()
    assert arena.host["words"].tolist() == [5, 6, 7]


def test_with_two_mirrors_the_last_step_stays_until_the_next_but_one():
    arena = Arena(FIELDS, CPU, mirrors=2)
    seen = []
    for step in range(4):
        arena.wait()
        arena.host["words"][:] = step
        arena.send()
        seen.append(arena.host["words"])
        assert arena.tensors["words"].tolist() == [step] * 3
    assert seen[0] is seen[2]
    assert seen[1] is seen[3]
    assert [words.tolist() for words in seen[2:]] == [[2] * 3, [3] * 3]
