"""Problems, their split, unit tests, and pass@k."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

from mtp_verify.study import synthesis
from mtp_verify.study.machine import INSTRUCTIONS, MODULUS, execute
from mtp_verify.study.synthesis import PROGRAM, PROMPT, Problems, pass_at_k


@pytest.fixture(scope="module")
def problems() -> tuple[Problems, Problems]:
    return Problems(1_000, trained=True), Problems(1_000, trained=False)


@pytest.mark.parametrize("right", range(6))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(right: int) -> None:
    for k in (1, 2, 5):
        draws = list(combinations(range(5), k))
        share = sum(min(draw) < right for draw in draws) / len(draws)
        assert pass_at_k(5, right, k) == pytest.approx(share)


def test_no_function_is_on_both_sides(problems: tuple[Problems, Problems]) -> None:
    trained, held_out = ({tuple(row) for row in side.values.tolist()} for side in problems)
    assert not trained & held_out
    assert len(trained) > 2 * len(held_out) > 0


def test_a_text_shows_what_its_program_does(problems: tuple[Problems, Problems]) -> None:
    for text in problems[0].texts(torch.Generator().manual_seed(0), 50).tolist():
        program = [INSTRUCTIONS[i - MODULUS] for i in text[PROMPT:] if i < synthesis._END]
        arguments, values = text[:PROMPT:2], text[1:PROMPT:2]
        assert len(set(arguments)) == 3
        assert [execute(program, argument) for argument in arguments] == values


def test_only_programs_that_pass_every_test_count(
    problems: tuple[Problems, Problems], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = problems[0]
    row = int(trained._functions[0])
    right = trained._programs[0]
    wrong = torch.full_like(right, 3)  # a number where an instruction should be
    empty = torch.full_like(right, synthesis._END)
    written = torch.stack([right, wrong, empty]).repeat(len(trained.values), 1)
    monkeypatch.setattr(synthesis, "complete", lambda *_, **__: written)
    model: Any = None
    counts = trained.solve(model, torch.Generator().manual_seed(0), len(trained.values), 3)
    identity = list(range(MODULUS))
    assert counts[row] == 1 + (trained.values[row].tolist() == identity)
    assert len(counts) == len(trained.values)
    assert written.shape[1] == PROGRAM
