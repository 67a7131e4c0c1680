"""The texts of the arithmetic task."""

from __future__ import annotations

from random import Random

from studies.polynomials import DEGREE, OPERATIONS, PRIME, evaluate
from studies.reasoning import sums


def test_a_text_is_padding_an_expression_and_its_value() -> None:
    texts = sums(Random(0), 50, 1, 3).tolist()
    names = (*range(PRIME), *OPERATIONS, "=", "pad")
    found = set()
    for text in texts:
        words = [names[token] for token in text if names[token] != "pad"]
        assert words[-DEGREE - 1] == "="
        written = words[: -DEGREE - 1]
        assert tuple(words[-DEGREE:]) == evaluate(written)
        found.add(sum(word in OPERATIONS for word in written))
    assert found == {1, 2, 3}
