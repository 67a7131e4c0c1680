"""Teacher forcing: in training a wrong prediction is overwritten, in use it is built upon.

First the demonstration: a model's predictions beside the tokens that it is given next, whatever it
said. Then what it costs: the accuracy of a trained model that reads the truth, against one that
reads its own output, by distance from the prompt; for a model trained on the next token and one
trained on three.

The language: each token is a fixed function of the two before it, with a rare exception. An error
of its own sends a model onto another orbit, from which it does not come back.

References:
    Bengio et al., Scheduled sampling, arXiv 1506.03099; Bachmann and Nagarajan, The pitfalls of
    next-token prediction, arXiv 2403.06963; Gloeckle et al., arXiv 2404.19737.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify.console.report import Table
from studies.finding import Finding
from studies.toy import Toy, complete, fit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["ForcedStep", "run", "trace"]

_VOCAB = 19
_SEEDED = 2  # tokens that start a text
_GIVEN = 8  # true tokens before a model is on its own
_LENGTH = 32
_NOISE = 0.05
_AT = (1, 8, 16, 24)  # distances of the report


@dataclass(frozen=True)
class ForcedStep:
    """One position of a forced pass.

    Attributes:
        read: the token that the model reads.
        said: the token that it thinks most likely next.
        forced: the token that it is given instead.
    """

    read: int
    said: int
    forced: int

    @property
    def is_overwritten(self) -> bool:
        """Whether what was said is thrown away."""
        return self.said != self.forced


def trace(model: Any, tokens: Sequence[int]) -> list[ForcedStep]:
    """Show what teacher forcing does to each prediction.

    Args:
        model: from (1, n) tokens to logits (1, n, V), or to an object that has them as `logits`.
        tokens: a text of at least two tokens.

    Example:
        >>> model = Toy(vocab_size=4, num_heads=1)
        >>> [(step.read, step.forced) for step in trace(model, [2, 0, 1])]
        [(2, 0), (0, 1)]
    """
    with torch.no_grad():
        output = model(torch.tensor([list(tokens)]))
    rows = getattr(output, "logits", output)[0]
    said = rows.argmax(-1).tolist()
    return [
        ForcedStep(read, guess, truth)
        for read, guess, truth in zip(tokens[:-1], said[:-1], tokens[1:], strict=True)
    ]


def _rule(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (3 * a + 5 * b + 1) % _VOCAB


def _text(generator: torch.Generator, count: int, noise: float = _NOISE) -> torch.Tensor:
    """(count, L) tokens of the language."""
    tokens = torch.randint(_VOCAB, (count, _LENGTH), generator=generator)
    rare = torch.rand((count, _LENGTH), generator=generator) < noise
    for place in range(_SEEDED, _LENGTH):
        regular = _rule(tokens[:, place - 2], tokens[:, place - 1])
        tokens[:, place] = torch.where(rare[:, place], tokens[:, place], regular)
    return tokens


def _accuracies(model: Toy, texts: torch.Tensor) -> tuple[list[float], list[float]]:
    """Share of right tokens by distance from what is given: reading the truth, and its own."""
    with torch.no_grad():
        forced = model(texts).argmax(-1)[:, _GIVEN - 1 : -1] == texts[:, _GIVEN:]
    free = complete(model, texts[:, :_GIVEN], _LENGTH - _GIVEN) == texts[:, _GIVEN:]
    return forced.float().mean(0).tolist(), free.float().mean(0).tolist()


def run(*, quick: bool = False) -> Finding:
    """Train the pair on several seeds and measure the gap."""
    seeds, steps, trials = ((0,), 10, 20) if quick else ((0, 1, 2), 100, 1000)
    curves: dict[int, list[tuple[list[float], list[float]]]] = {1: [], 3: []}
    shown: list[ForcedStep] = []
    for seed in seeds:
        for n, found in curves.items():
            model = Toy(_VOCAB, n, seed=seed)
            fit(model, lambda g: _text(g, 64), steps, first=_SEEDED, seed=seed)
            texts = _text(torch.Generator().manual_seed(1000 + seed), trials, noise=0.0)
            found.append(_accuracies(model, texts))
            if not shown:
                shown = trace(model, texts[0, :12].tolist())
    forced = {n: _mean([pair[0] for pair in found]) for n, found in curves.items()}
    free = {n: _mean([pair[1] for pair in found]) for n, found in curves.items()}
    gaps = {n: [forced[n][far - 1] - free[n][far - 1] for far in _AT] for n in curves}
    far_by_seed = {n: [right[_AT[-1] - 1] - own[_AT[-1] - 1] for right, own in found]
                   for n, found in curves.items()}  # fmt: skip
    grows = 0.0 < gaps[1][1] < gaps[1][-1]
    smaller = gaps[3][-1] < gaps[1][-1]
    steps_table = Table(
        "what teacher forcing does: the next input is the text's token, whatever was said",
        ("reads", "says", "is given", ""),
        tuple(
            (str(s.read), str(s.said), str(s.forced), "overwritten" if s.is_overwritten else "")
            for s in shown
        ),
        left=0,
    )
    table = Table(
        f"accuracy by distance, mean of {len(seeds)} seed(s): reading the truth, and own output",
        ("trained on", "distance", "truth", "own", "gap"),
        tuple(
            (f"{n} ahead", str(far), f"{forced[n][far - 1]:.3f}", f"{free[n][far - 1]:.3f}",
             f"{forced[n][far - 1] - free[n][far - 1]:+.3f}")
            for n in curves for far in _AT
        ),
    )  # fmt: skip

    def draw(path: Path) -> None:
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6, 3.4))
        for n, colour in ((1, "C0"), (3, "C1")):
            far = range(1, _LENGTH - _GIVEN + 1)
            axes.plot(far, forced[n], colour, ls=":", label=f"{n} ahead, truth")
            axes.plot(far, free[n], colour, label=f"{n} ahead, own output")
        axes.set(
            xlabel="distance from the given tokens", ylabel="share of right tokens", ylim=(0, 1.02)
        )
        axes.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)

    return Finding(
        claim="Training on forced inputs hides errors that grow when a model reads its own output.",
        rule="next-token training: the gap is positive at distance 8 and larger at distance 24; "
        "the sign of the difference with three tokens ahead is reported as it is",
        verdict="reproduced" if grows else "not reproduced",
        result=f"gap {gaps[1][1]:+.3f} at distance 8 and {gaps[1][-1]:+.3f} at 24 with next-token "
        f"training, {gaps[3][1]:+.3f} and {gaps[3][-1]:+.3f} with three ahead, which is "
        f"{'smaller' if smaller else 'not smaller'} at 24",
        data={
            "seeds": list(seeds),
            "steps": steps,
            "distances": list(_AT),
            "gaps": gaps,
            "last_gap_by_seed": far_by_seed,
            "forced": forced,
            "free": free,
            "trace": [[s.read, s.said, s.forced] for s in shown],
        },
        tables=(steps_table, table),
        draw=draw,
    )


def _mean(curves: list[list[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*curves, strict=True)]
