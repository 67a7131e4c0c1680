"""Parallel against causal heads: one target, one text, one number of steps, one number of weights.

A small target learns the language of `spelling` and writes the text that every drafter learns from:
Medusa, EAGLE, DeepSeek's module, KOALA's deeper and adversarially trained forms of the first two,
Meta's heads, and an independent model. Each then drafts for the target in the package's own loop.

References:
    Medusa, arXiv 2401.10774; EAGLE, arXiv 2401.15077; DeepSeek-V3, arXiv 2412.19437; KOALA, arXiv
    2408.08146; Meta, arXiv 2404.19737; independent drafts, arXiv 2211.17192.
"""

from __future__ import annotations

import math
import time
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mtp_verify.console.report import Table
from studies.drafting import MODES, decode, figures
from studies.finding import Finding
from studies.head_training import DEPTH, Entrant, train_drafter, write_text
from studies.spelling import Spelling, learn, next_token_loss, small_target

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ENTRANTS", "NUM_EQUAL", "run"]

_SURE = 2.0  # standard errors
_ADVERSARIAL = 0.05


def _medusa(num_layers: int, adversarial: float = 0.0) -> dict[str, Any]:
    return {
        "family": "medusa",
        "num_modules": DEPTH,
        "num_layers": num_layers,
        "adversarial_weight": adversarial,
    }


def _eagle(num_layers: int, adversarial: float = 0.0) -> dict[str, Any]:
    return {
        "family": "eagle",
        "num_layers": num_layers,
        "feature_weight": 1.0,
        "adversarial_weight": adversarial,
    }


# First those of equal weights. Four of Meta's blocks are narrowed to the weights of one ordinary
# block and its fusion; the independent model is widened to make up for the fusion.
ENTRANTS = (
    Entrant("Medusa", "parallel", _medusa(3)),
    Entrant(
        "Meta",
        "parallel",
        {"family": "meta", "num_modules": DEPTH},
        {"head_dim": 8, "intermediate_size": 22},
    ),
    Entrant("EAGLE", "causal", _eagle(1)),
    Entrant("DeepSeek MTP", "causal", {"family": "deepseek_v3"}),
    Entrant("independent", "independent", {"plain_share": 1.0}, {"intermediate_size": 152}),
    # KOALA's, whose K sets the number of weights; EAGLE above is its K = 1.
    Entrant("Medusa, K = 1", "parallel", _medusa(1)),
    Entrant("Medusa, K = 1, adv.", "parallel", _medusa(1, _ADVERSARIAL)),
    Entrant("Medusa, K = 2", "parallel", _medusa(2)),
    Entrant("Medusa, K = 2, adv.", "parallel", _medusa(2, _ADVERSARIAL)),
    Entrant("EAGLE, K = 1, adv.", "causal", _eagle(1, _ADVERSARIAL)),
    Entrant("EAGLE, K = 2", "causal", _eagle(2)),
    Entrant("EAGLE, K = 2, adv.", "causal", _eagle(2, _ADVERSARIAL)),
)
NUM_EQUAL = 5
_KOALA = (("Medusa, K = 1", "Medusa, K = 2, adv."), ("EAGLE", "EAGLE, K = 2, adv."))


def run(*, quick: bool = False) -> Finding:
    """Train the target and every drafter, then decode with each.

    Args:
        quick: only those of equal weights, and hardly trained.
    """
    if quick:
        entrants = ENTRANTS[:NUM_EQUAL]
        learning, texts, steps, new_tokens, prompts = 10, 16, 4, 12, 2
    else:
        entrants = ENTRANTS
        learning, texts, steps, new_tokens, prompts = 400, 384, 200, 48, 16
    target = small_target()
    learn(
        target,
        lambda tokens, _: next_token_loss(target(tokens, use_cache=False).logits, tokens),
        steps=learning,
    )
    target.requires_grad_(False)  # noqa: FBT003
    layers = (-1, target.config.num_hidden_layers - 1)
    drafters: dict[str, Any] = {}
    trained: dict[str, dict[str, Any]] = {}
    with TemporaryDirectory() as folder:
        shards = write_text(target, layers, texts, new_tokens, Path(folder))
        for index, entrant in enumerate(entrants):
            began = time.monotonic()
            place = Path(folder) / f"run-{index}"
            drafter, weights = train_drafter(entrant, target, shards, steps, place)
            drafters[entrant.name] = drafter
            trained[entrant.name] = {
                "kind": entrant.kind, "weights": weights, "seconds": time.monotonic() - began,
            }  # fmt: skip
    starts = Spelling().write(prompts, 10, seed=3)
    found = {
        mode: {name: figures(stats) for name, stats in by_name.items()}
        for mode, by_name in decode(target, drafters, starts, new_tokens=new_tokens).items()
    }
    return _judge(trained, found, {"learning": learning, "texts": texts, "steps": steps})


def _surely_above(mean: float, error: float, other: float, other_error: float) -> bool:
    return mean - other > _SURE * math.hypot(error, other_error)


def _at(figure: dict[str, Any], depth: int) -> tuple[float, float]:
    """Acceptance at a depth from 1 and its standard error."""
    if len(figure["by_depth"]) < depth:
        return 0.0, 0.0
    share, tried = figure["by_depth"][depth - 1], max(figure["tried"][depth - 1], 1)
    return share, math.sqrt(share * (1 - share) / tried)


def _judge(
    trained: dict[str, dict[str, Any]],
    found: dict[str, dict[str, dict[str, Any]]],
    settings: dict[str, int],
) -> Finding:
    names = list(trained)[:NUM_EQUAL]
    causal, parallel = (
        [name for name in names if trained[name]["kind"] == kind] for kind in ("causal", "parallel")
    )
    deeper = [
        _surely_above(*_at(found[mode][one], depth), *_at(found[mode][other], depth))
        for mode in MODES
        for one, other, depth in product(causal, parallel, range(2, DEPTH + 1))
    ]
    gains = {
        (mode, late): (found[mode][early], found[mode][late])
        for mode in MODES
        for early, late in _KOALA
        if late in trained
    }
    koala = [
        _surely_above(late["tau"], late["tau_error"], early["tau"], early["tau_error"])
        for early, late in gains.values()
    ]
    checks = [*deeper, *koala]
    verdict = "reproduced" if all(checks) else "mixed" if any(checks) else "not reproduced"
    gained = "; ".join(
        f"{late}, {mode}: {after['tau'] - before['tau']:+.2f}"
        for (mode, late), (before, after) in gains.items()
    )
    ranges = ", ".join(
        f"{mode}: causal {_range(found[mode], causal)}, parallel {_range(found[mode], parallel)}"
        for mode in MODES
    )
    return Finding(
        claim="From the second drafted token on a causal head is right more often than a parallel "
        "one; more blocks and an adversarial loss (KOALA) help both kinds.",
        rule=f"equal weights: at depths 2 to {DEPTH}, greedy and sampled, acceptance of each "
        "causal head above that of each parallel one by two standard errors; KOALA: tau with K = 2 "
        "and the adversarial loss above K = 1 without, by as much. All: reproduced; some: mixed.",
        verdict=verdict,
        result=f"{sum(deeper)} of {len(deeper)} comparisons of depth and {sum(koala)} of "
        f"{len(koala)} of KOALA hold. tau, {ranges}."
        + (f" KOALA's gain in tau: {gained}." if gained else ""),
        data={"settings": settings, "drafters": trained, "figures": found},
        tables=tuple(_table(mode, trained, found[mode]) for mode in MODES),
        draw=lambda path: _draw(trained, found, path),
    )


def _range(by_name: dict[str, dict[str, Any]], names: Sequence[str]) -> str:
    taus = [by_name[name]["tau"] for name in names]
    return f"{min(taus):.2f} to {max(taus):.2f}"


def _table(
    mode: str, trained: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]]
) -> Table:
    rows = []
    for name, figure in found.items():
        facts = trained.get(name)
        rows.append(
            (
                name,
                f"{facts['weights']:,}" if facts else "",
                f"{facts['seconds']:.0f}" if facts else "",
                f"{figure['tau']:.2f} ± {_SURE * figure['tau_error']:.2f}",
                *(f"{_at(figure, depth)[0]:.2f}" if facts else "" for depth in range(1, DEPTH + 1)),
                f"{figure['draft_ms']:.2f}" if facts else "",
                f"{figure['tokens_per_second']:.0f}",
            )
        )
    depths = (f"at {depth}" for depth in range(1, DEPTH + 1))
    return Table(
        f"{mode}: tokens per step, acceptance by depth, cost of a draft",
        ("drafter", "weights", "trained, s", "tau", *depths, "draft, ms", "tokens/s"),
        tuple(rows),
    )


def _draw(trained: dict[str, dict[str, Any]], found: dict[str, Any], path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mtp-verify", "font.size": 8}):
        figure = Figure(figsize=(10.5, 3.6), layout="constrained")
        *panels, bars = figure.subplots(1, 3)
        for panel, mode in zip(panels, MODES, strict=True):
            for name in list(trained)[:NUM_EQUAL]:
                points = [_at(found[mode][name], depth) for depth in range(1, DEPTH + 1)]
                panel.errorbar(
                    range(1, DEPTH + 1),
                    [share for share, _ in points],
                    [_SURE * error for _, error in points],
                    fmt={"causal": "o-", "parallel": "s--", "independent": "^:"}[
                        trained[name]["kind"]
                    ],
                    markersize=4,
                    label=name,
                )
            panel.set(title=mode, xlabel="depth", ylabel="accepted, if all before was")
            panel.set(ylim=(0, 1.02), xticks=range(1, DEPTH + 1))
            panel.grid(linewidth=0.3)
        panels[0].legend()
        places = range(len(trained))
        for shift, mode in ((-0.2, "greedy"), (0.2, "sampled")):
            taus = [found[mode][name]["tau"] for name in trained]
            bars.barh([place + shift for place in places], taus, 0.38, label=mode)
        bars.set_yticks(list(places), list(trained))
        bars.invert_yaxis()
        bars.set(xlabel="tokens per step", title="all drafters", xlim=(1, None))
        bars.legend()
        figure.savefig(path, metadata={"Date": None})
