"""Program synthesis in the small: find a program from three examples of what it does.

Problems are functions from 11 arguments to 11 values that short programs of `machine` compute. A
quarter of them is never trained on. A program is right if it passes all unit tests: the value at
every argument, of which the model has seen three.

Reference:
    Chen et al., Evaluating large language models trained on code, arXiv 2107.03374 (pass@k).
"""

from __future__ import annotations

from math import comb
from random import Random
from typing import TYPE_CHECKING

import torch

from mtp_verify.study.machine import INSTRUCTIONS, MODULUS, execute
from mtp_verify.study.toy import Toy, complete

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PROGRAM", "PROMPT", "VOCAB", "Problems", "pass_at_k"]

_SHOWN = 3
_LONGEST = 5
PROMPT = 2 * _SHOWN
PROGRAM = _LONGEST + 1  # and the end
_END = MODULUS + len(INSTRUCTIONS)
VOCAB = _END + 1


def pass_at_k(samples: int, right: int, k: int) -> float:
    """How likely one of k programs is right, without bias, from `samples` of which `right` are.

    Example:
        >>> pass_at_k(10, 1, 1), pass_at_k(10, 1, 10)
        (0.1, 1.0)
    """
    return 1.0 - comb(samples - right, k) / comb(samples, k)


class Problems:
    """Functions, and the shortest programs that were found for them.

    Args:
        tries: random programs to look through.
        trained: the three quarters to train on; otherwise the rest.
    """

    def __init__(self, tries: int, *, trained: bool) -> None:
        random = Random(0)
        found: dict[tuple[int, ...], list[Sequence[str]]] = {}
        for _ in range(tries):
            program = random.choices(INSTRUCTIONS, k=random.randint(1, _LONGEST))
            results = (execute(program, argument) for argument in range(MODULUS))
            values = tuple(value for value in results if value is not None)
            if len(values) < MODULUS or len(set(values)) == 1:
                continue
            known = found.setdefault(values, [])
            if known and len(program) > len(known[0]):
                continue
            if known and len(program) < len(known[0]):
                known.clear()
            if program not in known:
                known.append(program)
        # By their values, so that the split is the same however many tries there were.
        chosen = [
            item for item in found.items() if (Random(str(item[0])).random() < 0.75) == trained
        ]
        self.values = torch.tensor([values for values, _ in chosen])
        pairs = [(row, program) for row, (_, programs) in enumerate(chosen) for program in programs]
        self._functions = torch.tensor([row for row, _ in pairs])
        self._programs = torch.tensor([_encode(program) for _, program in pairs])

    def texts(self, generator: torch.Generator, count: int) -> torch.Tensor:
        """(count, T) tokens: three arguments with their values, and a program."""
        chosen = torch.randint(len(self._programs), (count,), generator=generator)
        prompts = self._prompts(generator, self._functions[chosen])
        return torch.cat((prompts, self._programs[chosen]), dim=1)

    def solve(
        self, model: Toy, generator: torch.Generator, functions: int, samples: int
    ) -> list[int]:
        """How many of a model's programs pass all tests, for each of the first functions."""
        rows = torch.arange(min(functions, len(self.values)))
        prompts = self._prompts(generator, rows).repeat_interleave(samples, dim=0)
        written = complete(model, prompts, PROGRAM, generator=generator).view(-1, samples, PROGRAM)
        return [
            sum(_passes(ids, values) for ids in programs)
            for programs, values in zip(written.tolist(), self.values.tolist(), strict=False)
        ]

    def _prompts(self, generator: torch.Generator, rows: torch.Tensor) -> torch.Tensor:
        arguments = torch.rand((len(rows), MODULUS), generator=generator).argsort(1)[:, :_SHOWN]
        values = self.values[rows].gather(1, arguments)
        return torch.stack((arguments, values), dim=2).flatten(1)


def _encode(program: Sequence[str]) -> list[int]:
    ids = [MODULUS + INSTRUCTIONS.index(word) for word in program]
    return ids + [_END] * (PROGRAM - len(ids))


def _passes(ids: Sequence[int], values: Sequence[int]) -> bool:
    words = ids[: ids.index(_END)] if _END in ids else ids
    if not all(MODULUS <= word < _END for word in words):
        return False
    program = [INSTRUCTIONS[word - MODULUS] for word in words]
    return all(execute(program, argument) == value for argument, value in enumerate(values))
