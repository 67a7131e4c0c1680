"""Toy models trained side by side on several seeds, and their scores on the way.

Whatever an experiment compares (tokens ahead, sizes), models of one seed start from the same
next-token path and read the same texts. A figure is a mean over seeds with Student's interval: what
other seeds would give, not what other texts would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mtp_verify.console.report import Table
from mtp_verify.testing.stats import t_quantile
from studies.toy import Toy, fit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch
    from matplotlib.axes import Axes

__all__ = [
    "Course",
    "Estimate",
    "Task",
    "advantage",
    "course_table",
    "draw_course",
    "draw_courses",
    "train",
]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: of the seeds.
        half: half the width of the 95 % interval; NaN for one seed.
    """

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Estimate from one value a seed.

        Example:
            >>> Estimate.of([0.4, 0.5, 0.6])
            Estimate(mean=0.5, half=0.248)
        """
        count, half = len(values), math.nan
        if count > 1:
            half = t_quantile(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
        return cls(round(float(np.mean(values)), 3), round(half, 3))

    @property
    def sign(self) -> int:
        """1 or -1 if the interval lies on one side of 0, else 0; of one seed that of the mean."""
        edge = abs(self.mean) - (0.0 if math.isnan(self.half) else self.half)
        return 0 if edge <= 0.0 else 1 if self.mean > 0.0 else -1

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if math.isnan(self.half) else f"{self.mean:.3f} ± {self.half:.3f}"


@dataclass(frozen=True)
class Task:
    """What is learned, and how it is scored.

    Attributes:
        vocab_size: number of tokens.
        sample: gives (B, T) tokens of training text.
        score: figures of a model by name.
        first: the first position whose token counts in the loss.
    """

    vocab_size: int
    sample: Callable[[torch.Generator], torch.Tensor]
    score: Callable[[Toy], Mapping[str, float]]
    first: int = 0


@dataclass(frozen=True)
class Course:
    """How models of one kind learned, a seed each.

    Attributes:
        num_params: of one model, all heads counted.
        marks: the numbers of updates at which they were scored.
        scores: by seed, then by mark.
    """

    num_params: int
    marks: tuple[int, ...]
    scores: list[list[Mapping[str, float]]] = field(repr=False)

    def values(self, name: str, mark: int = -1) -> list[float]:
        """One figure of every seed, at the mark of this index."""
        return [scores[mark][name] for scores in self.scores]

    def estimate(self, name: str, mark: int = -1) -> Estimate:
        """Its mean over seeds."""
        return Estimate.of(self.values(name, mark))

    def to_data(self) -> dict[str, object]:
        """Everything, for JSON."""
        return {"params": self.num_params, "marks": self.marks, "scores": self.scores}


def train(
    task: Task,
    n: int,
    marks: Sequence[int],
    seeds: Sequence[int],
    *,
    width: int = 32,
    num_blocks: int = 1,
    rate: float = 3e-3,
) -> Course:
    """Train one model a seed and score it at each mark.

    Args:
        task: what is learned.
        n: tokens that are predicted at each position.
        marks: rising numbers of updates; the last ends the training.
        seeds: of weights and texts.
        width: of the hidden states.
        num_blocks: of the trunk; the next-token path has one more.
        rate: of learning.
    """
    scores: list[list[Mapping[str, float]]] = []
    for seed in seeds:
        model = Toy(task.vocab_size, n, width=width, num_blocks=num_blocks, seed=seed)
        found: list[Mapping[str, float]] = []

        def watch(step: int, model: Toy = model, found: list[Mapping[str, float]] = found) -> None:
            if step in marks:
                found.append(task.score(model))

        fit(model, task.sample, marks[-1], first=task.first, seed=seed, rate=rate, watch=watch)
        scores.append(found)
    return Course(sum(p.numel() for p in model.parameters()), tuple(marks), scores)


def advantage(course: Course, over: Course, name: str) -> Estimate:
    """How much more of a figure one kind of training had, in the mean of all marks.

    Seeds are compared in pairs: they start alike and read the same texts.
    """
    pairs = zip(course.scores, over.scores, strict=True)
    return Estimate.of([_mean(ours, name) - _mean(theirs, name) for ours, theirs in pairs])


def _mean(scores: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(score[name] for score in scores) / len(scores)


def course_table(title: str, courses: Mapping[str, Course], names: Sequence[str]) -> Table:
    """Figures half way and at the end, with intervals over seeds.

    Args:
        title: of the table.
        courses: by label.
        names: of the figures.
    """
    rows = []
    for label, course in courses.items():
        for mark in sorted({(len(course.marks) - 1) // 2, len(course.marks) - 1}):
            found = [str(course.estimate(name, mark)) for name in names]
            rows.append((label, str(course.marks[mark]), *found))
    return Table(title, ("trained on", "updates", *names), tuple(rows))


def draw_course(axis: Axes, courses: Mapping[str, Course], name: str, tokens: int) -> None:
    """Plot one figure against tokens seen: thick the mean, thin each seed.

    Args:
        axis: is drawn on.
        courses: by label.
        name: of the figure, a share.
        tokens: of one update.
    """
    for index, (label, course) in enumerate(courses.items()):
        seen = [mark * tokens for mark in course.marks]
        colour = f"C{index}"
        for scores in course.scores:
            axis.plot(seen, [score[name] for score in scores], colour, linewidth=0.6, alpha=0.6)
        means = [course.estimate(name, mark).mean for mark in range(len(seen))]
        axis.plot(seen, means, colour, linewidth=2, label=label)
    axis.set(xlabel="tokens seen", ylim=(0, 1.02))
    axis.grid(linewidth=0.3)


def draw_courses(
    courses: Mapping[str, Course], panels: Mapping[str, str], tokens: int, path: Path
) -> None:
    """Plot several figures side by side.

    Args:
        courses: by label.
        panels: figure -> title, one panel each.
        tokens: of one update.
        path: of the SVG.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mtp-verify", "font.size": 9}):
        figure = Figure(figsize=(4.7 * len(panels), 3.4), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (name, title) in zip(axes, panels.items(), strict=True):
            draw_course(axis, courses, name, tokens)
            axis.set_title(title)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path, metadata={"Date": None})
