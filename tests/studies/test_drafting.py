"""Drafters side by side, and the figures of one."""

from __future__ import annotations

import pytest
import torch

from mtp_verify.decoder.generation import Stats
from mtp_verify.drafters import Model
from studies.drafting import MODES, PLAIN, decode, figures
from tests.models import tiny_model


def test_a_target_that_drafts_for_itself_is_always_right() -> None:
    target = tiny_model("llama")
    prompts = torch.tensor([[1, 2, 3], [4, 5, 6]])
    found = decode(target, {"itself": Model(target, num_tokens=2)}, prompts, new_tokens=9)
    assert set(found) == set(MODES)
    itself = figures(found["greedy"]["itself"])
    assert itself["by_depth"] == [1.0, 1.0]
    assert itself["tau"] > 2.0
    assert found["greedy"][PLAIN].tau == 1.0
    assert found["greedy"][PLAIN].emitted == found["greedy"]["itself"].emitted == 18


def test_the_error_is_that_of_the_mean_over_steps() -> None:
    stats = Stats()
    for num_accepted in (0, 2, 2, 0):
        stats.record(2, 2, num_accepted, num_accepted + 1)
    found = figures(stats)
    assert found["tau"] == 2.0
    assert found["tau_error"] == pytest.approx(1.0 / 4**0.5)
    assert found["by_depth"] == [0.5, 1.0]
    assert found["tried"] == [4, 2]
