"""Program synthesis in the small: find a program from two examples of what it prints.

Problems are functions from an argument to what a short program of `machine` prints. A quarter of
them is never trained on. A program is right if it passes all unit tests: what is printed for every
argument, of which the model has seen two.

Reference:
    Chen et al., Evaluating large language models trained on code, arXiv 2107.03374 (pass@k).
"""

from __future__ import annotations

from itertools import product
from math import comb
from random import Random
from typing import TYPE_CHECKING

import torch

from studies.machine import INSTRUCTIONS, MODULUS, execute
from studies.toy import Toy, complete

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["VOCAB", "Problems", "make_problems", "pass_at_k"]

_SHOWN = 2
VOCAB = MODULUS + len(INSTRUCTIONS)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """How likely one of k programs is right, without bias, from `samples` of which `right` are.

    Example:
        >>> pass_at_k(10, 1, 1), pass_at_k(10, 1, 10)
        (0.1, 1.0)
    """
    return 1.0 - comb(samples - right, k) / comb(samples, k)


def make_problems(length: int) -> tuple[Problems, Problems]:
    """All functions of programs of a length: three quarters to train on, and the rest."""
    found: dict[tuple[int, ...], list[Sequence[str]]] = {}
    for program in product(INSTRUCTIONS, repeat=length):
        printed = (execute(program, argument) or () for argument in range(MODULUS))
        found.setdefault(tuple(value for row in printed for value in row), []).append(program)
    functions = list(found.items())
    Random(0).shuffle(functions)
    most = len(functions) * 3 // 4
    return Problems(functions[:most], length), Problems(functions[most:], length)


class Problems:
    """Functions, and all programs of one length that compute them.

    Args:
        functions: what is printed, for each argument in turn, and the programs that print it.
        length: instructions of a program.
    """

    def __init__(
        self, functions: Sequence[tuple[Sequence[int], Sequence[Sequence[str]]]], length: int
    ) -> None:
        self.length = length
        self.prompt_len = _SHOWN * (1 + length)
        printed = [values for values, _ in functions]
        self.values = torch.tensor(printed).view(-1, MODULUS, length)
        pairs = [(row, program) for row, (_, same) in enumerate(functions) for program in same]
        self._functions = torch.tensor([row for row, _ in pairs])
        self._programs = torch.tensor([_encode(program) for _, program in pairs])

    def texts(self, generator: torch.Generator, count: int) -> torch.Tensor:
        """(count, T) tokens: two arguments, each with what is printed, and a program."""
        chosen = torch.randint(len(self._programs), (count,), generator=generator)
        prompts = self._prompts(generator, self._functions[chosen])
        return torch.cat((prompts, self._programs[chosen]), dim=1)

    def solve(
        self, model: Toy, generator: torch.Generator, functions: int, samples: int
    ) -> list[int]:
        """How many of a model's programs pass all tests, for each of the first functions."""
        rows = torch.arange(min(functions, len(self.values)))
        prompts = self._prompts(generator, rows).repeat_interleave(samples, dim=0)
        written = complete(model, prompts, self.length, generator=generator)
        return [
            sum(_passes(ids, values) for ids in programs)
            for programs, values in zip(
                written.view(-1, samples, self.length).tolist(), self.values.tolist(), strict=False
            )
        ]

    def _prompts(self, generator: torch.Generator, rows: torch.Tensor) -> torch.Tensor:
        arguments = torch.rand((len(rows), MODULUS), generator=generator).argsort(1)[:, :_SHOWN]
        printed = self.values[rows[:, None], arguments]
        return torch.cat((arguments[..., None], printed), dim=2).flatten(1)


def _encode(program: Sequence[str]) -> list[int]:
    return [MODULUS + INSTRUCTIONS.index(word) for word in program]


def _passes(ids: Sequence[int], values: Sequence[Sequence[int]]) -> bool:
    if not all(MODULUS <= word < VOCAB for word in ids):
        return False
    program = [INSTRUCTIONS[word - MODULUS] for word in ids]
    return all(execute(program, argument) == row for argument, row in enumerate(values))
