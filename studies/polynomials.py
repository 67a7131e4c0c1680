"""Arithmetic on polynomials: expressions, and their values.

The ring is F_p[X] / (X^d). Expressions are sums, products, compositions and negations, written
behind their operands (Polish, reversed), so that no brackets are needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

__all__ = ["DEGREE", "OPERATIONS", "PRIME", "evaluate", "expression"]

PRIME = 3
DEGREE = 3  # d: coefficients of a polynomial, the constant one first
OPERATIONS = ("+", "*", "o", "-")  # sum, product, composition; negation takes one operand

_Poly = tuple[int, ...]


def expression(random: Random, num_operations: int) -> list[int | str]:
    """Draw an expression: coefficients and operations.

    Args:
        random: draws the operations, how they nest, and the coefficients.
        num_operations: in the expression.
    """
    if num_operations == 0:
        return [random.randrange(PRIME) for _ in range(DEGREE)]
    operation = random.choice(OPERATIONS)
    rest = num_operations - 1
    if operation == "-":
        return [*expression(random, rest), operation]
    left = random.randint(0, rest)
    return [*expression(random, left), *expression(random, rest - left), operation]


def evaluate(written: list[int | str]) -> tuple[int, ...]:
    """The value of an expression: d coefficients.

    Example:
        (1 + X) * (2 + X) = 2 + 3X + X^2, modulo 3.

        >>> evaluate([1, 1, 0, 2, 1, 0, "*"])
        (2, 0, 1)
        >>> evaluate([0, 0, 1, 1, 1, 0, "o"])  # X^2 of (1 + X)
        (1, 2, 1)
    """
    stack: list[_Poly] = []
    coefficients: list[int] = []
    for word in written:
        if isinstance(word, int):
            coefficients.append(word)
            if len(coefficients) == DEGREE:
                stack.append(tuple(coefficients))
                coefficients = []
        elif word == "-":
            stack.append(tuple(-a % PRIME for a in stack.pop()))
        else:
            second, first = stack.pop(), stack.pop()
            stack.append({"+": _add, "*": _multiply, "o": _compose}[word](first, second))
    return stack.pop()


def _add(first: _Poly, second: _Poly) -> _Poly:
    return tuple((a + b) % PRIME for a, b in zip(first, second, strict=True))


def _multiply(first: _Poly, second: _Poly) -> _Poly:
    return tuple(
        sum(first[i] * second[power - i] for i in range(power + 1)) % PRIME
        for power in range(DEGREE)
    )


def _compose(outer: _Poly, inner: _Poly) -> _Poly:
    """outer(inner(X)) by Horner's rule."""
    value: _Poly = (0,) * DEGREE
    for coefficient in reversed(outer):
        value = _add(_multiply(value, inner), (coefficient,) + (0,) * (DEGREE - 1))
    return value
