"""Planning: a choice that only makes sense from its end.

A star has arms of equal length that leave one node. Given its edges in any order, the centre and
the tip of one arm, the answer is the path from the centre to the tip. Every node of it follows from
the one before, except the first: which arm it is can only be seen by going back from the tip. With
forced inputs next-token training sees that step in one token of the answer; training on as many
tokens ahead as the path is long is asked at the same position for the tip, for the node before it,
and so on back to the first: each a step harder than the last.

An edge is one token here. With edges as two tokens neither kind of training leaves chance within
the updates that a minute on a CPU gives: finding an edge by its end is then a circuit of its own.

References:
    Bachmann and Nagarajan, The pitfalls of next-token prediction, arXiv 2403.06963 (the task);
    Gloeckle et al., Better & faster large language models via multi-token prediction,
    arXiv 2404.19737.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from studies.finding import Finding
from studies.learning import Task, advantage, course_table, draw_courses, train
from studies.toy import Toy, complete

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NUM_NODES", "run", "stars"]

NUM_NODES = 8
_ARM = 3  # edges from the centre to a tip; there are two arms
_BATCH = 64
_PROMPT = 2 * _ARM + 2  # edges, centre, tip
_VOCAB = NUM_NODES * NUM_NODES + NUM_NODES  # edges, then nodes


def stars(generator: torch.Generator, count: int, *, backwards: bool = False) -> torch.Tensor:
    """(count, T) tokens: the edges in random order, the centre, a tip, and the path between them.

    Args:
        generator: of the graphs.
        count: number of graphs.
        backwards: the path is written from the tip, so that every step is one look at the edges.
    """
    nodes = torch.rand((count, NUM_NODES), generator=generator).argsort(1)
    centre = nodes[:, :1]
    arms = nodes[:, 1 : 1 + 2 * _ARM].view(count, 2, _ARM)
    paths = torch.cat((centre[:, None].expand(-1, 2, -1), arms), dim=2)
    edges = (paths[:, :, :-1] * NUM_NODES + paths[:, :, 1:]).flatten(1)
    order = torch.rand(edges.shape, generator=generator).argsort(1)
    answer = paths[:, 0, 1:] + NUM_NODES * NUM_NODES
    prompt = (edges.gather(1, order), centre + NUM_NODES * NUM_NODES, answer[:, -1:])
    return torch.cat((*prompt, answer.flip(1) if backwards else answer), dim=1)


def _task(num_tests: int, *, backwards: bool) -> Task:
    texts = stars(torch.Generator().manual_seed(1_000_003), num_tests, backwards=backwards)
    prompts, paths = texts[:, :_PROMPT], texts[:, _PROMPT:]

    def score(model: Toy) -> Mapping[str, float]:
        hits = complete(model, prompts, _ARM) == paths
        return {
            "path": hits.all(1).float().mean().item(),
            "first": hits[:, 0].float().mean().item(),
        }

    def sample(generator: torch.Generator) -> torch.Tensor:
        return stars(generator, _BATCH, backwards=backwards)

    return Task(_VOCAB, sample, score, first=_PROMPT)


def run(*, quick: bool = False) -> Finding:
    """Train on the next token, on the whole path ahead, and on the next token of reversed paths."""
    seeds, every, num_marks, num_tests = ((0,), 20, 2, 100) if quick else ((0, 1, 2), 125, 12, 300)
    marks = tuple(every * (index + 1) for index in range(num_marks))
    forwards, backwards = (_task(num_tests, backwards=flag) for flag in (False, True))
    courses = {
        "next token": train(forwards, 1, marks, seeds, width=48, num_blocks=2),
        f"{_ARM} ahead": train(forwards, _ARM, marks, seeds, width=48, num_blocks=2),
        "next token, path reversed": train(backwards, 1, marks[:4], seeds, width=48, num_blocks=2),
    }
    plain, ahead, reverse = courses.values()
    gain = advantage(ahead, plain, "path")
    solved = reverse.estimate("path").mean > 0.95
    verdict = "reproduced" if gain.sign > 0 and solved else "not reproduced"
    return Finding(
        claim="Training on several tokens ahead learns to plan where next-token training does not.",
        rule=f"paths right in the mean of all marks: {_ARM} ahead above next token, interval over "
        "seeds on one side of 0; and reversed paths, which need no plan, above 0.95 at the end",
        verdict=verdict,
        result=f"{_ARM} ahead is {gain} above next token in the mean of the training; at its end "
        f"{ahead.estimate('path')} against {plain.estimate('path')} of the paths are right, and "
        f"{reverse.estimate('path')} of the reversed ones; chance is 0.5",
        data={
            "seeds": list(seeds),
            "advantage": vars(gain),
            "courses": {label: course.to_data() for label, course in courses.items()},
        },
        tables=(
            course_table(
                f"right on {num_tests} graphs: mean of {len(seeds)} seed(s) and 95 % interval",
                courses,
                ("path", "first"),
            ),
        ),
        draw=lambda path: draw_courses(
            courses,
            {"path": "whole paths right", "first": "first nodes right"},
            _BATCH * (_PROMPT + _ARM),
            path,
        ),
    )
