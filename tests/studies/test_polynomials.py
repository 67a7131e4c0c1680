"""Values of expressions against arithmetic on whole polynomials, by numpy."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from studies.polynomials import DEGREE, PRIME, evaluate, expression


def _naive(words: list[int | str]) -> list[int]:
    """By numpy's polynomials over the integers; reduced after every operation."""
    stack: list[np.ndarray] = []
    for start in range(len(words)):
        word = words[start]
        if isinstance(word, int):
            if not stack or len(stack[-1]) == DEGREE:
                stack.append(np.array([], dtype=int))
            stack[-1] = np.append(stack[-1], word)
            continue
        if word == "-":
            value = -stack.pop()
        else:
            second, first = stack.pop(), stack.pop()
            if word == "+":
                value = first + second
            elif word == "*":
                value = np.convolve(first, second)
            else:
                powers = [np.array([1])]
                for _ in range(DEGREE - 1):
                    powers.append(np.convolve(powers[-1], second))
                value = np.zeros(10, dtype=int)
                for coefficient, power in zip(first, powers, strict=True):
                    value[: len(power)] += coefficient * power
        stack.append(value[:DEGREE] % PRIME)
    (value,) = stack
    return [int(a) for a in value]


@pytest.mark.parametrize("num_operations", [0, 1, 2, 3])
def test_values_are_those_of_whole_polynomials(num_operations: int) -> None:
    random = Random(num_operations)
    for _ in range(100):
        words = expression(random, num_operations)
        assert sum(isinstance(word, str) for word in words) == num_operations
        assert list(evaluate(words)) == _naive(words)
