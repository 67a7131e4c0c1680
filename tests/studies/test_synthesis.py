"""Problems, their split, unit tests, and pass@k."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

from studies import synthesis
from studies.machine import INSTRUCTIONS, MODULUS, execute
from studies.synthesis import VOCAB, Problems, make_problems, pass_at_k


@pytest.fixture(scope="module")
def problems() -> tuple[Problems, Problems]:
    return make_problems(2)


@pytest.mark.parametrize("right", range(6))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(right: int) -> None:
    for k in (1, 2, 5):
        draws = list(combinations(range(5), k))
        share = sum(min(draw) < right for draw in draws) / len(draws)
        assert pass_at_k(5, right, k) == pytest.approx(share)


def test_no_function_is_on_both_sides(problems: tuple[Problems, Problems]) -> None:
    trained, held_out = (set(map(str, side.values.tolist())) for side in problems)
    assert not trained & held_out
    assert len(trained) == 3 * len(held_out) == 18
    assert len(problems[0]._programs) + len(problems[1]._programs) == len(INSTRUCTIONS) ** 2


def test_a_text_shows_what_its_program_prints(problems: tuple[Problems, Problems]) -> None:
    side = problems[0]
    for text in side.texts(torch.Generator().manual_seed(0), 50).tolist():
        program = [INSTRUCTIONS[i - MODULUS] for i in text[side.prompt_len :]]
        assert len(program) == side.length
        examples = text[:3], text[3:6]
        assert examples[0][0] != examples[1][0]
        assert all(execute(program, argument) == printed for argument, *printed in examples)


def test_only_programs_that_pass_every_test_count(
    problems: tuple[Problems, Problems], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = problems[0]
    row = int(trained._functions[0])
    right = trained._programs[0]
    wrong = torch.full_like(right, 3)  # a number where an instruction should be
    other = right.roll(1) if right[0] != right[1] else (right - MODULUS + 1) % 6 + MODULUS
    written = torch.stack([right, wrong, other]).repeat(len(trained.values), 1)
    monkeypatch.setattr(synthesis, "complete", lambda *_, **__: written)
    model: Any = None
    counts = trained.solve(model, torch.Generator().manual_seed(0), len(trained.values), 3)
    assert counts[row] == 1
    assert len(counts) == len(trained.values)
    assert int(right.max()) < VOCAB
