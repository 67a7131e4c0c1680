"""Texts with rare jumps."""

from __future__ import annotations

import torch

from studies.jumps import jumping


def test_runs_count_up_and_jump_by_the_rule() -> None:
    texts = jumping(torch.Generator().manual_seed(0), 100)
    runs = texts.view(100, 5, 6)
    assert torch.equal((runs[..., :-1] + 1) % 11, runs[..., 1:])
    starts = runs[..., 0]
    assert torch.equal((3 * starts[:, :-2] + 5 * starts[:, 1:-1] + 1) % 11, starts[:, 2:])
