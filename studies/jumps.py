"""Texts with rare hard transitions, and how fast the two kinds of training learn them.

A text counts up in runs of equal length. Where a run ends the next one starts anywhere: at a fixed
function of the starts of the last two runs. Within a run the next token is the last one plus one;
across its end it takes two looks far back and arithmetic.

Reference:
    Gloeckle et al., Better & faster large language models via multi-token prediction,
    arXiv 2404.19737, section 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from studies.learning import Course, Task, train

if TYPE_CHECKING:
    from collections.abc import Mapping

    from studies.toy import Toy

__all__ = ["TOKENS", "jumping", "learn"]

_VOCAB = 11
_RUN, _NUM_RUNS = 6, 5
_BATCH = 32
TOKENS = _BATCH * _RUN * _NUM_RUNS  # of one update


def jumping(generator: torch.Generator, count: int) -> torch.Tensor:
    """(count, T) tokens; the first two runs start at random."""
    starts = list(torch.randint(_VOCAB, (2, count), generator=generator))
    while len(starts) < _NUM_RUNS:
        starts.append((3 * starts[-2] + 5 * starts[-1] + 1) % _VOCAB)
    runs = torch.stack(starts, dim=1)[:, :, None] + torch.arange(_RUN)
    return (runs % _VOCAB).flatten(1)


def learn(*, quick: bool = False) -> dict[int, Course]:
    """Train on one token and on three ahead; score the next token, hard places and easy ones."""
    seeds, every, num_marks = ((0,), 20, 1) if quick else ((0, 1, 2), 25, 10)
    texts = jumping(torch.Generator().manual_seed(1_000_003), 100 if quick else 500)
    hard = torch.arange(2, _NUM_RUNS) * _RUN
    easy = torch.tensor([place for place in range(_RUN + 1, texts.shape[1]) if place % _RUN])

    def score(model: Toy) -> Mapping[str, float]:
        with torch.no_grad():
            hits = (model(texts[:, :-1]).argmax(-1) == texts[:, 1:]).float()
        return {
            "hard": hits[:, hard - 1].mean().item(),
            "easy": hits[:, easy - 1].mean().item(),
        }

    task = Task(_VOCAB, lambda generator: jumping(generator, _BATCH), score, first=_RUN + 1)
    marks = [every * (index + 1) for index in range(num_marks)]
    return {n: train(task, n, marks, seeds) for n in (1, 3)}
