"""A tiny programming language, and the sandbox that runs it.

A program is a sequence of instructions on a stack of numbers modulo 11, which holds the argument at
the start. `again` starts the program over, on the stack as it is, unless the top is 0: so programs
can run for ever, and are stopped. Nothing else can be reached from inside: an instruction that is
not in the table is a fault.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["INSTRUCTIONS", "MODULUS", "execute"]

MODULUS = 11
_MAX_STEPS, _MAX_DEPTH = 60, 16
_BINARY: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}
_CONSTANTS = {"1": 1, "2": 2}
INSTRUCTIONS = (*_CONSTANTS, *_BINARY, "dup", "swap", "again")


def execute(program: Sequence[str], argument: int) -> int | None:
    """Run a program.

    Args:
        program: instructions.
        argument: on the stack at the start.

    Returns:
        The top of the stack at the end. None for a fault: an unknown instruction, one that finds
        too little on the stack, too deep a stack, or more than 60 steps.

    Example:
        >>> execute(["dup", "*", "1", "+"], 5)  # 5 * 5 + 1 modulo 11
        4
        >>> execute(["1", "again"], 5) is None  # never 0: stopped
        True
    """
    stack = [argument % MODULUS]
    place = 0
    for _ in range(_MAX_STEPS):
        if place == len(program):
            return stack[-1]
        word = program[place]
        place += 1
        if word in _CONSTANTS:
            stack.append(_CONSTANTS[word])
        elif word == "dup":
            stack.append(stack[-1])
        elif word == "again":
            place = 0 if stack[-1] else place
        elif len(stack) < 2:
            return None
        elif word == "swap":
            stack[-2:] = stack[-1], stack[-2]
        elif word in _BINARY:
            second, first = stack.pop(), stack.pop()
            stack.append(_BINARY[word](first, second) % MODULUS)
        else:
            return None
        if len(stack) > _MAX_DEPTH:
            return None
    return None
