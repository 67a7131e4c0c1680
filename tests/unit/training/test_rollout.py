"""The roll-out of training equals drafting, level by level."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtp_verify.training.batches import collate
from mtp_verify.training.rollout import roll_out
from mtp_verify.training.start import places_of

HEADS = (
    {"family": "mimo"},
    {"family": "eagle", "num_layers": 2},
    {"family": "eagle3"},
    {"family": "deepseek_v3", "num_modules": 2},
    {"family": "medusa", "num_modules": 3},
    {"family": "hydra", "num_modules": 3},
    {"family": "meta", "num_modules": 3},
)


@pytest.mark.parametrize("fields", HEADS, ids=lambda fields: fields["family"])
def test_levels_equal_what_drafting_computes(stand: Any, recipe: Any, fields: Any) -> None:
    head, text, _ = stand.head(recipe.replace(**fields))
    with torch.no_grad():
        for parameter in head.parameters():  # every weight must matter
            parameter.add_(0.1 * torch.randn_like(parameter))
    texts = [text[0], text[1]]
    batch = collate(texts, places_of(head))
    with torch.no_grad():
        levels = [
            head.logits(features, level) for level, features in enumerate(roll_out(head, batch, 3))
        ]
    assert len(levels) == 3
    for place, one in enumerate(texts):
        for row in (4, 7):
            state = head.new_state()
            with torch.no_grad():
                rows = [head.read(state, [h[: row + 1] for h in one.hidden], one.tokens[: row + 1])]
                for level in (1, 2):
                    token = one.tokens[row + level : row + level + 1]
                    rows.append(head.step(state, [level - 1], token))
            for level in range(3):
                assert torch.allclose(levels[level][place, row], rows[level][0], atol=1e-4), level
