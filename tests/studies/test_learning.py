"""Estimates over seeds, and the training of a course."""

from __future__ import annotations

import math

import torch

from studies.learning import Course, Estimate, Task, advantage, course_table, train


def _course(*scores: list[float]) -> Course:
    marks = tuple(range(1, len(scores[0]) + 1))
    return Course(1, marks, [[{"right": value} for value in row] for row in scores])


def test_the_interval_is_students() -> None:
    # Standard deviation 0.1, three seeds: 4.303 * 0.1 / sqrt(3).
    assert Estimate.of([0.4, 0.5, 0.6]) == Estimate(0.5, 0.248)
    alone = Estimate.of([0.4])
    assert alone.mean == 0.4
    assert math.isnan(alone.half)
    assert str(alone) == "0.400"


def test_the_sign_is_that_of_the_whole_interval() -> None:
    assert [Estimate(mean, 0.1).sign for mean in (0.2, 0.05, -0.05, -0.2)] == [1, 0, 0, -1]
    assert Estimate(-0.2, math.nan).sign == -1


def test_seeds_are_compared_in_pairs_over_all_marks() -> None:
    # By seed 0.25 and 0.25, though the seeds themselves are far apart.
    gain = advantage(_course([0.5, 1.0], [0.0, 0.5]), _course([0.5, 0.5], [0.0, 0.0]), "right")
    assert gain == Estimate(0.25, 0.0)


def test_the_table_has_the_middle_and_the_end() -> None:
    table = course_table("t", {"a": _course([0.1, 0.2, 0.3, 0.4])}, ["right"])
    assert table.rows == (("a", "2", "0.200"), ("a", "4", "0.400"))
    assert len(course_table("t", {"a": _course([0.1])}, ["right"]).rows) == 1


def test_a_course_scores_every_seed_at_every_mark() -> None:
    seen: list[int] = []

    def sample(generator: torch.Generator) -> torch.Tensor:
        seen.append(int(torch.randint(1_000_000, (), generator=generator)))
        return torch.zeros(2, 5, dtype=torch.long)

    task = Task(3, sample, lambda model: {"heads": float(len(model.heads))})
    course = train(task, 2, [1, 3], [0, 1], width=16)
    assert course.values("heads", 0) == course.values("heads", 1) == [2.0, 2.0]
    assert len(seen) == len(set(seen)) == 6
