"""A tiny programming language, and the sandbox that runs it.

A program is a sequence of instructions on one number modulo 11, which is the argument at the start.
`again` starts the program over, on the number as it is, unless that is 0: so programs can run for
ever, and are stopped. Nothing else can be reached from inside: an instruction that is not in the
table is a fault.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["INSTRUCTIONS", "MODULUS", "execute"]

MODULUS = 11
_MAX_STEPS = 60
_AGAIN = "again"
# From the number to the next one, and from the number and the argument.
_UNARY: dict[str, Callable[[int], int]] = {
    "inc": lambda number: number + 1,
    "double": lambda number: 2 * number,
    "negate": lambda number: -number,
    "square": lambda number: number * number,
}
_BINARY: dict[str, Callable[[int, int], int]] = {"add": operator.add, "times": operator.mul}
INSTRUCTIONS = (*_UNARY, *_BINARY, _AGAIN)


def execute(program: Sequence[str], argument: int) -> int | None:
    """Run a program.

    Args:
        program: instructions.
        argument: the number at the start.

    Returns:
        The number at the end. None for a fault: an unknown instruction, or more than 60 steps.

    Example:
        >>> execute(["square", "inc"], 5)  # 5 * 5 + 1 modulo 11
        4
        >>> execute(["square", "again"], 5) is None  # never 0: stopped
        True
    """
    number = argument % MODULUS
    place = 0
    for _ in range(_MAX_STEPS):
        if place == len(program):
            return number
        word = program[place]
        place += 1
        if word in _UNARY:
            number = _UNARY[word](number) % MODULUS
        elif word in _BINARY:
            number = _BINARY[word](number, argument) % MODULUS
        elif word == _AGAIN:
            place = 0 if number else place
        else:
            return None
    return None
