"""Reasoning: polynomial arithmetic, in and beyond the range of the training.

Expressions of up to two operations are trained on; their values are asked for two operations, and
for three, which no training text has.

Reference:
    Gloeckle et al., Better & faster large language models via multi-token prediction,
    arXiv 2404.19737, section 4.2, where the ring is F_7[X] / (X^5) and training has up to five
    operations.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import torch

from studies.finding import Finding
from studies.learning import Task, advantage, course_table, draw_courses, train
from studies.polynomials import DEGREE, OPERATIONS, PRIME, evaluate, expression
from studies.toy import Toy, complete

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["run", "sums"]

_TRAINED, _BEYOND = 2, 3
_IDS = {name: PRIME + index for index, name in enumerate((*OPERATIONS, "=", "pad"))}
_PROMPT = DEGREE * (_BEYOND + 1) + _BEYOND + 1
_VOCAB = PRIME + len(_IDS)
_BATCH = 32


def sums(random: Random, count: int, fewest: int, most: int) -> torch.Tensor:
    """(count, T) tokens: padding, an expression, `=`, and its value.

    Args:
        random: draws the expressions.
        count: of the texts.
        fewest: operations of an expression.
        most: operations of an expression, as likely as any number between.
    """
    texts = []
    for _ in range(count):
        written = expression(random, random.randint(fewest, most))
        ids = [word if isinstance(word, int) else _IDS[word] for word in (*written, "=")]
        padding = [_IDS["pad"]] * (_PROMPT - len(ids))
        texts.append([*padding, *ids, *evaluate(written)])
    return torch.tensor(texts)


def _sample(generator: torch.Generator) -> torch.Tensor:
    seed = int(torch.randint(2**62, (), generator=generator))
    return sums(Random(seed), _BATCH, 1, _TRAINED)


def run(*, quick: bool = False) -> Finding:
    """Train on the next token and on the whole value ahead."""
    seeds, every, num_marks, num_tests = ((0,), 20, 1, 50) if quick else ((0, 1, 2), 200, 4, 300)
    asked = {
        f"{count} operations": sums(Random(1_000_003 + count), num_tests, count, count)
        for count in (1, _TRAINED, _BEYOND)
    }

    def score(model: Toy) -> Mapping[str, float]:
        found = {}
        for name, texts in asked.items():
            hits = complete(model, texts[:, :_PROMPT], DEGREE) == texts[:, _PROMPT:]
            found[name] = hits.all(1).float().mean().item()
        return found

    task = Task(_VOCAB, _sample, score, first=_PROMPT)
    marks = [every * (index + 1) for index in range(num_marks)]
    courses = {
        "next token" if n == 1 else f"{n} ahead": train(task, n, marks, seeds, num_blocks=2)
        for n in (1, DEGREE)
    }
    plain, ahead = courses.values()
    gains = {name: advantage(ahead, plain, name) for name in asked}
    inside, outside = f"{_TRAINED} operations", f"{_BEYOND} operations"
    signs = (gains[inside].sign, gains[outside].sign)
    verdict = "reproduced" if min(signs) > 0 else "mixed" if max(signs) > 0 else "not reproduced"
    return Finding(
        claim="Training on several tokens ahead is better at arithmetic in several steps.",
        rule="values right in the mean of all marks: above next token, interval over seeds on one "
        "side of 0, both within the trained number of operations and beyond it",
        verdict=verdict,
        result=f"{DEGREE} ahead over next token: {gains[inside]} for {inside}, {gains[outside]} "
        f"for {outside}, in the mean of the training; at its end {ahead.estimate(inside)} against "
        f"{plain.estimate(inside)} are right, and {ahead.estimate(outside)} against "
        f"{plain.estimate(outside)} beyond",
        data={
            "seeds": list(seeds),
            "advantage": {name: vars(gain) for name, gain in gains.items()},
            "courses": {label: course.to_data() for label, course in courses.items()},
        },
        tables=(
            course_table(
                f"values right, of {num_tests}: mean of {len(seeds)} seed(s) and 95 % interval",
                courses,
                tuple(asked),
            ),
        ),
        draw=lambda path: draw_courses(
            courses,
            {name: f"values right, {name}" for name in asked},
            _BATCH * (_PROMPT + DEGREE),
            path,
        ),
    )
