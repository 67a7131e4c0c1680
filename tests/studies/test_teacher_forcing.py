"""The trace, the toy model and its training, and the experiment in its small form."""

from __future__ import annotations

import pytest
import torch

from studies import teacher_forcing
from studies.toy import Toy, fit


def test_the_trace_shows_what_is_thrown_away() -> None:
    def model(tokens: torch.Tensor) -> torch.Tensor:  # says: one more than it reads
        return torch.nn.functional.one_hot((tokens + 1) % 5, 5).float()

    steps = teacher_forcing.trace(model, [0, 1, 3, 4])
    assert [(s.read, s.said, s.forced) for s in steps] == [(0, 1, 1), (1, 2, 3), (3, 4, 4)]
    assert [s.is_overwritten for s in steps] == [False, True, False]


def test_models_of_one_seed_start_from_the_same_next_token_path() -> None:
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(Toy(5, 1, seed=3)(tokens), Toy(5, 3, seed=3)(tokens))
        assert not torch.equal(Toy(5, 1, seed=3)(tokens), Toy(5, 1, seed=4)(tokens))


def test_the_small_form_measures_both_ways_of_reading() -> None:
    found = teacher_forcing.run(quick=True)
    first, *_, last = found.data["gaps"][1]
    assert first == 0.0  # one token behind the given ones both have read the same
    assert last == pytest.approx(found.data["last_gap_by_seed"][1][0])
    assert 0.0 < found.data["forced"][1][-1] <= 1.0
    assert "overwritten" in found.tables[0].to_text()


@pytest.mark.timeout(180)
def test_every_head_learns_its_own_distance() -> None:
    def count(generator: torch.Generator) -> torch.Tensor:
        start = torch.randint(6, (16, 1), generator=generator)
        return (start + torch.arange(10)) % 6

    model = Toy(6, 3, width=32)
    fit(model, count, 60)
    tokens = count(torch.Generator().manual_seed(9))
    with torch.no_grad():
        trunk = model.trunk(tokens)
        for index in range(3):
            said = model.head(trunk, index).argmax(-1)
            assert torch.equal(said, (tokens + 1 + index) % 6)


def test_the_language_follows_its_rule_but_for_rare_exceptions() -> None:
    texts = teacher_forcing._text(torch.Generator().manual_seed(0), 200)
    regular = teacher_forcing._rule(texts[:, :-2], texts[:, 1:-1]) == texts[:, 2:]
    # 5 % are drawn anew, and one in 13 of those agrees: 4.6 % break it; 6000 places.
    assert 0.035 < 1 - regular.float().mean().item() < 0.057
