"""From training to inference: modules that were trained with a trunk draft for it afterwards.

DeepSeek trains its multi-token modules for the sake of the trunk and may drop them, or draft with
them. Here a small trunk is trained with and without them; then the modules draft for their trunk,
beside modules that never were trained and modules that met a finished trunk.

Reference:
    DeepSeek-V3, arXiv 2412.19437, section 2.2: the modules, the weighted loss, and an acceptance of
    85 to 90 % for the second token.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mtp_verify.console.report import Table
from mtp_verify.drafters import Heads
from mtp_verify.heads import CausalHead
from mtp_verify.training.batches import Batch
from mtp_verify.training.losses import mtp_loss
from mtp_verify.training.recipe import Recipe
from mtp_verify.training.rollout import roll_out
from mtp_verify.training.start import new_head, spec_of
from studies.drafting import MODES, decode, figures
from studies.finding import Finding
from studies.spelling import (
    VOCAB_SIZE,
    Spelling,
    learn,
    next_token_loss,
    small_target,
)

if TYPE_CHECKING:
    from pathlib import Path

    from mtp_verify.heads import Head

__all__ = ["level_losses", "run"]

_MODULES = 2
_DEPTH = 4  # of a draft; from the third token on the last module is used again
_EARLY, _LATE = 0.3, 0.1  # the weight of the modules' loss, and from where on the smaller one
_TURN = 10 / 14.8
_MARKS = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of the training at which tau is measured
_SURE = 2.0  # standard errors
_SLACK = 0.01  # of the trunk's loss

UNTRAINED, TOGETHER = "not trained", "trained together"
ONE, AFTERWARDS = "together, first module alone", "trained afterwards"


def level_losses(head: Head, tokens: torch.Tensor, hidden: torch.Tensor) -> list[torch.Tensor]:
    """The mean loss of each module.

    Args:
        head: attached to its trunk.
        tokens: (B, T).
        hidden: (B, T, d), of the trunk.

    Returns:
        A scalar for each module; module k predicts the token 2 + k places ahead.
    """
    after = tokens[:, 1:]
    batch = Batch(
        hidden=(hidden[:, :-1],),
        tokens=after,
        top_ids=after[..., None],
        top_probs=torch.ones(*after.shape, 1),
        targets=after,
        lengths=torch.full((len(after),), after.shape[1]),
        extra=after.new_empty(0),
        known=torch.zeros(*after.shape, 0, dtype=torch.bool),
        vocab_size=VOCAB_SIZE,
    )
    losses = []
    for level, features in enumerate(roll_out(head, batch, head.spec.num_modules)):
        known = tokens[:, 1 + level :]  # what row i has read ends with the first i + 1 of these
        losses.append(next_token_loss(head.logits(features[:, : known.shape[1]], level), known))
    return losses


def run(*, quick: bool = False) -> Finding:
    """Train trunks with and without modules on several seeds, and draft with each.

    Args:
        quick: one seed, hardly trained.
    """
    seeds, steps, prompts, new_tokens = ((0,), 4, 2, 12) if quick else ((0, 1, 2), 250, 12, 48)
    starts = Spelling().write(prompts, 10, seed=3)
    held_out = Spelling().write(64, 64, seed=4)
    runs = [_one_seed(seed, steps, starts, held_out, new_tokens) for seed in seeds]
    return _judge(runs, list(seeds), steps)


def _one_seed(
    seed: int, steps: int, starts: torch.Tensor, held_out: torch.Tensor, new_tokens: int
) -> dict[str, Any]:
    """Losses of both trunks, the curve of tau, and figures of each set of modules."""
    alone, joint = (small_target(seed=seed) for _ in range(2))
    untrained, together, afterwards = (_modules(trunk, seed) for trunk in (alone, joint, alone))
    learn(
        alone,
        lambda tokens, _: next_token_loss(alone(tokens, use_cache=False).logits, tokens),
        steps=steps,
        seed=seed,
    )
    curve: list[tuple[int, float]] = []
    marks = {round(mark * steps) for mark in _MARKS}

    def watch(step: int) -> None:
        if step in marks:
            found = decode(joint, {TOGETHER: _drafter(together)}, starts[:4], new_tokens=new_tokens)
            curve.append((step, found["greedy"][TOGETHER].tau))

    def joint_loss(tokens: torch.Tensor, share: float) -> torch.Tensor:
        output = joint(tokens, output_hidden_states=True, use_cache=False)
        weight = _EARLY if share < _TURN else _LATE
        levels = level_losses(together, tokens, output.hidden_states[-1])
        return mtp_loss(next_token_loss(output.logits, tokens), levels, weight)

    learn(nn.ModuleList([joint, together]), joint_loss, steps=steps, seed=seed, watch=watch)
    alone.requires_grad_(False)  # noqa: FBT003

    def late_loss(tokens: torch.Tensor, _: float) -> torch.Tensor:
        states = alone(tokens, output_hidden_states=True, use_cache=False).hidden_states[-1]
        return torch.stack(level_losses(afterwards, tokens, states)).mean()

    learn(afterwards, late_loss, steps=steps, seed=seed)
    found = {
        **_drafted(alone, {UNTRAINED: untrained, AFTERWARDS: afterwards}, starts, new_tokens),
        **_drafted(joint, {TOGETHER: together, ONE: _first(together, joint)}, starts, new_tokens),
    }
    with torch.no_grad():
        losses = [
            float(next_token_loss(trunk(held_out, use_cache=False).logits, held_out))
            for trunk in (alone, joint)
        ]
    return {"loss_alone": losses[0], "loss_joint": losses[1], "curve": curve, "figures": found}


def _modules(trunk: Any, seed: int) -> Head:
    recipe = Recipe(family="deepseek_v3", num_modules=_MODULES, context_tokens=False)
    spec = spec_of(recipe, trunk.config)
    return new_head(spec, trunk, torch.zeros(VOCAB_SIZE, dtype=torch.int64), seed)


def _first(head: Head, trunk: Any) -> Head:
    """The first of several modules, used again at every depth."""
    one = CausalHead(head.spec.replace(num_modules=1))
    state = head.state_dict()
    one.load_state_dict({name: state[name] for name in one.state_dict()})
    return one.attach(trunk)


def _drafter(head: Head) -> Heads:
    return Heads(head, num_tokens=_DEPTH)


def _drafted(
    trunk: Any, heads: dict[str, Head], starts: torch.Tensor, new_tokens: int
) -> dict[str, dict[str, Any]]:
    drafters = {name: _drafter(head) for name, head in heads.items()}
    found = decode(trunk, drafters, starts, new_tokens=new_tokens)
    return {name: {mode: figures(found[mode][name]) for mode in MODES} for name in heads}


def _judge(runs: list[dict[str, Any]], seeds: list[int], steps: int) -> Finding:
    names = (UNTRAINED, TOGETHER, ONE, AFTERWARDS)
    pairs = [
        (one["figures"][TOGETHER][mode], one["figures"][UNTRAINED][mode])
        for one in runs
        for mode in MODES
    ]
    drafts = all(
        late["tau"] - early["tau"] > _SURE * math.hypot(late["tau_error"], early["tau_error"])
        for late, early in pairs
    )
    costs = [one["loss_joint"] / one["loss_alone"] - 1 for one in runs]
    is_free = max(costs) <= _SLACK
    means = {
        name: {mode: _mean([one["figures"][name][mode]["tau"] for one in runs]) for mode in MODES}
        for name in names
    }
    first = _mean([one["figures"][TOGETHER]["greedy"]["by_depth"][0] for one in runs])
    return Finding(
        claim="Modules trained with the trunk draft for it afterwards, and cost the trunk nothing.",
        rule="on every seed, greedy and sampled: tau above that of modules that were never trained "
        f"by two standard errors; the trunk's held-out loss at most {_SLACK:.0%} above that of a "
        "trunk trained alone on the same text. Both: reproduced; one: mixed.",
        verdict=("not reproduced", "mixed", "reproduced")[drafts + is_free],
        result=f"tau, greedy: {means[UNTRAINED]['greedy']:.2f} before, "
        f"{means[TOGETHER]['greedy']:.2f} after training together (first drafted token accepted "
        f"{first:.0%}), {means[AFTERWARDS]['greedy']:.2f} with modules trained afterwards on the "
        f"finished trunk; the trunk's loss changes by {min(costs):+.1%} to {max(costs):+.1%}",
        data={"seeds": seeds, "steps": steps, "mean_tau": means, "runs": runs},
        tables=(_tau_table(runs, names), _loss_table(runs, seeds)),
        draw=lambda path: _draw(runs, seeds, names, path),
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _by_depth(runs: list[dict[str, Any]], name: str, mode: str) -> list[float]:
    rows = [one["figures"][name][mode]["by_depth"] for one in runs]
    return [_mean(list(shares)) for shares in zip(*rows, strict=False)]


def _tau_table(runs: list[dict[str, Any]], names: tuple[str, ...]) -> Table:
    rows = []
    for name in names:
        for mode in MODES:
            taus = [one["figures"][name][mode]["tau"] for one in runs]
            shares = _by_depth(runs, name, mode)
            cells = [f"{share:.2f}" for share in shares] + [""] * (_DEPTH - len(shares))
            rows.append(
                (name, mode, f"{_mean(taus):.2f}", f"{min(taus):.2f} to {max(taus):.2f}", *cells)
            )
    depths = (f"at {depth}" for depth in range(1, _DEPTH + 1))
    return Table(
        f"modules as drafters of their trunk, {len(runs)} seed(s): tau, acceptance by depth",
        ("modules", "mode", "tau", "by seed", *depths),
        tuple(rows),
        left=2,
    )


def _loss_table(runs: list[dict[str, Any]], seeds: list[int]) -> Table:
    return Table(
        "the trunk's own next-token loss on held-out text",
        ("seed", "alone", "with modules", "change"),
        tuple(
            (
                str(seed),
                f"{one['loss_alone']:.4f}",
                f"{one['loss_joint']:.4f}",
                f"{one['loss_joint'] / one['loss_alone'] - 1:+.1%}",
            )
            for seed, one in zip(seeds, runs, strict=True)
        ),
    )


def _draw(runs: list[dict[str, Any]], seeds: list[int], names: tuple[str, ...], path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mtp-verify", "font.size": 9}):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        rise, depths = figure.subplots(1, 2)
        for seed, one in zip(seeds, runs, strict=True):
            rise.plot(*zip(*one["curve"], strict=True), "o-", markersize=4, label=f"seed {seed}")
        rise.set(xlabel="updates of trunk and modules", ylabel="tokens per step, greedy")
        rise.set_title("drafting while it is trained together")
        for name in names[1:]:
            shares = _by_depth(runs, name, "sampled")
            depths.plot(range(1, len(shares) + 1), shares, "o-", markersize=4, label=name)
        depths.set(xlabel="depth", ylabel="accepted, if all before was", ylim=(0, 1.02))
        depths.set(xticks=range(1, _DEPTH + 1))
        depths.set_title("sampled, at the end")
        for panel in (rise, depths):
            panel.grid(linewidth=0.3)
            panel.legend()
        figure.savefig(path, metadata={"Date": None})
