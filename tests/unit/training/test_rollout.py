"""The roll-out of training equals drafting, level by level."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtp_verify.training.batches import collate
from mtp_verify.training.rollout import level_logits, roll_out
from mtp_verify.training.start import places_of

HEADS = (
    {"family": "mimo"},
    {"family": "eagle", "num_layers": 2},
    {"family": "eagle3"},
    {"family": "deepseek_v3", "num_modules": 2},
    {"family": "medusa", "num_modules": 3},
    {"family": "hydra", "num_modules": 3},
    {"family": "meta", "num_modules": 3},
    {"family": "block", "num_modules": 4, "num_layers": 2},
)


@pytest.mark.parametrize("fields", HEADS, ids=lambda fields: fields["family"])
def test_levels_equal_what_drafting_computes(stand: Any, recipe: Any, fields: Any) -> None:
    head, text, _ = stand.head(recipe.replace(**fields))
    with torch.no_grad():
        for parameter in head.parameters():  # every weight must matter
            parameter.add_(0.1 * torch.randn_like(parameter))
    texts = [text[0], text[1]]
    batch = collate(texts, places_of(head), with_context=head.spec.context_tokens)
    every = torch.ones_like(batch.tokens, dtype=torch.bool)
    with torch.no_grad():
        levels = [
            level_logits(head, batch, features[every], level, every).view(*every.shape, -1)
            for level, features in enumerate(roll_out(head, batch, 3))
        ]
    assert len(levels) == 3
    tokens = torch.cat((head.vocab, batch.extra)).tolist()
    for place, one in enumerate(texts):
        for row in (4, 7):
            state = head.new_state()
            with torch.no_grad():
                rows = [head.read(state, [h[: row + 1] for h in one.hidden], one.tokens[: row + 1])]
                for level in (1, 2):
                    token = one.tokens[row + level : row + level + 1]
                    rows.append(head.step(state, [level - 1], token))
            columns = [tokens.index(t) for t in (*head.vocab.tolist(), *state.context_tokens.ids)]
            for level in range(3):
                whole = levels[level][place, row]
                assert torch.allclose(whole[columns], rows[level][0], atol=1e-4), level
                assert int(whole.isfinite().sum()) == len(columns)


def test_a_token_counts_from_where_its_sequence_has_shown_it(stand: Any, recipe: Any) -> None:
    head, text, _ = stand.head(recipe)
    batch = collate([text[0], text[1]], places_of(head), with_context=True)
    assert batch.extra.numel() > 0
    assert set(batch.extra.tolist()).isdisjoint(head.vocab.tolist())
    for place, one in enumerate((text[0], text[1])):
        for row in range(len(one)):
            shown = set(one.tokens[: row + 1].tolist())
            expected = [token in shown for token in batch.extra.tolist()]
            assert batch.known[place, row].tolist() == expected
    # A place behind the draft vocabulary is one only where its token has been shown.
    shown_at = [
        (b, int(batch.known[b, :, 0].nonzero()[0])) for b in range(2) if batch.known[b, -1, 0]
    ]
    assert shown_at
    for place, first in shown_at:
        rows = torch.zeros_like(batch.tokens, dtype=torch.bool)
        rows[place, [first - 1, first]] = True
        late = torch.tensor([[0, batch.vocab_size], [0, batch.vocab_size]])
        expected = [[0, -1], [0, batch.vocab_size]]
        assert batch.reachable(late, rows).tolist() == expected
