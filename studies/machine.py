"""A tiny programming language, and the sandbox that runs it.

A program is a sequence of instructions on one number modulo 11, which is the argument at the start.
Each instruction changes the number and prints it. Nothing else can be reached from inside: an
instruction that is not in the table is a fault.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["INSTRUCTIONS", "MODULUS", "execute"]

MODULUS = 11
_LONGEST = 60
# From the number to the next one, and from the number and the argument.
_UNARY: dict[str, Callable[[int], int]] = {
    "inc": lambda number: number + 1,
    "double": lambda number: 2 * number,
    "negate": lambda number: -number,
    "square": lambda number: number * number,
}
_BINARY: dict[str, Callable[[int, int], int]] = {"add": operator.add, "times": operator.mul}
INSTRUCTIONS = (*_UNARY, *_BINARY)


def execute(program: Sequence[str], argument: int) -> list[int] | None:
    """Run a program.

    Args:
        program: at most 60 instructions.
        argument: the number at the start.

    Returns:
        What it prints, a number for each instruction. None for a fault.

    Example:
        >>> execute(["square", "inc", "add"], 5)  # 25, 26 and 31 modulo 11
        [3, 4, 9]
        >>> execute(["import os"], 5) is None
        True
    """
    number = argument % MODULUS
    printed: list[int] = []
    for word in program[: _LONGEST + 1]:
        if word in _UNARY:
            number = _UNARY[word](number) % MODULUS
        elif word in _BINARY:
            number = _BINARY[word](number, argument) % MODULUS
        else:
            return None
        printed.append(number)
    return printed if len(printed) <= _LONGEST else None
