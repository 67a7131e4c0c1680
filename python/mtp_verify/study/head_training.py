"""Every kind of drafter trained on one target's text, with one recipe."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify.drafters import Heads, Model
from mtp_verify.heads import CausalHead, ParallelHead
from mtp_verify.study.spelling import VOCAB_SIZE, Spelling, small_target
from mtp_verify.training.batches import collate, plan_epoch
from mtp_verify.training.loop import Trainer
from mtp_verify.training.losses import distillation
from mtp_verify.training.muon import Muon
from mtp_verify.training.recipe import Recipe
from mtp_verify.training.shards import Shards, shard_path, write_shard
from mtp_verify.training.start import count_tokens, new_head, spec_of
from mtp_verify.training.writing import write_texts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["DEPTH", "RECIPE", "Entrant", "distill", "train_drafter", "write_text"]

DEPTH = 4
RECIPE = Recipe(context_tokens=False)
_PROMPT = 10  # letters
_TEMPERATURES = (0.0, 1.0)


@dataclass(frozen=True)
class Entrant:
    """One drafter of a comparison.

    Attributes:
        name: in tables.
        kind: "parallel", "causal" or "independent".
        recipe: what differs from `RECIPE`.
        sizes: what differs from the target's sizes, so that the number of weights comes out.
    """

    name: str
    kind: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Any] = field(default_factory=dict)


def write_text(
    target: Any, layers: Sequence[int], count: int, new_tokens: int, folder: Path
) -> dict[int, tuple[Shards, Shards]]:
    """Let the target write, half of it greedily and half sampled.

    Args:
        target: the model.
        layers: hidden layers that heads read.
        count: number of texts; one in eight more is held out.
        new_tokens: of a text.
        folder: of the shards.

    Returns:
        For each layer the text and the held-out text, with that layer's states.
    """
    held_out = max(count // 8, 1)
    prompts = Spelling().write(count + held_out, _PROMPT, seed=1).tolist()
    found: dict[int, list[Shards]] = {layer: [] for layer in layers}
    for part, chosen, temperatures in (
        ("text", prompts[:count], _TEMPERATURES),
        ("held-out", prompts[count:], (0.0,)),
    ):
        texts = write_texts(
            target,
            chosen,
            layers,
            temperatures=[temperatures[i % len(temperatures)] for i in range(len(chosen))],
            max_new_tokens=new_tokens,
            seed=2,
        )
        for place, layer in enumerate(layers):
            path = shard_path(folder / f"{part}-{place}", 0)
            one = slice(place, place + 1)
            write_shard(path, [dataclasses.replace(t, hidden=t.hidden[one]) for t in texts])
            found[layer].append(Shards([path]))
    return {layer: (pair[0], pair[1]) for layer, pair in found.items()}


def train_drafter(
    entrant: Entrant,
    target: Any,
    shards: Mapping[int, tuple[Shards, Shards]],
    steps: int,
    folder: Path,
) -> tuple[Heads | Model, int]:
    """Train one drafter.

    Args:
        entrant: which.
        target: whose text it is.
        shards: from `write_text`, for the layer that the drafter reads.
        steps: number of updates.
        folder: of the run.

    Returns:
        A drafter of greedy chains, and the number of weights that it learned.
    """
    recipe = RECIPE.replace(**entrant.recipe, evaluate_every=steps)
    if entrant.kind == "independent":
        model = small_target(num_layers=1, seed=1, **entrant.sizes)
        distill(model, shards[-1][0], recipe, steps)
        return Model(model, num_tokens=DEPTH), _count(model)
    spec = spec_of(recipe, target.config)
    spec = spec.replace(sizes=dataclasses.replace(spec.known_sizes, **entrant.sizes))
    bare = CausalHead(spec) if spec.kind == "causal" else ParallelHead(spec)
    text, held_out = shards[bare.hidden_layers[0]]
    head = new_head(spec, target, count_tokens(text, VOCAB_SIZE), recipe.seed)
    Trainer(head, text, held_out, recipe, steps=steps, folder=folder).run()
    return Heads(head.eval(), num_tokens=DEPTH), _count(head)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def distill(model: Any, shards: Shards, recipe: Recipe, steps: int) -> None:
    """Teach an independent model the target's law, with the optimizers that heads have.

    Args:
        model: of the target's vocabulary; changed.
        shards: of the target's text.
        recipe: rates and batches.
        steps: number of updates.
    """
    inside = [p for p in model.model.layers.parameters() if p.dim() == 2]
    known = {id(p) for p in inside}
    outside = [p for p in model.parameters() if id(p) not in known]
    optimizers = (
        Muon(inside, lr=recipe.matrix_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(outside, lr=recipe.vector_rate, betas=(0.9, 0.95), weight_decay=0.0),
    )
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    plan: list[list[int]] = []
    places = torch.arange(model.config.vocab_size)
    for step in range(steps):
        if not plan:
            plan = plan_epoch(shards.lengths, recipe.max_rows, recipe.seed, step)
        batch = collate([shards[index] for index in plan.pop()], places)
        # A shard's rows begin with its second token, which a row behind it may read.
        used = batch.top_probs[:, 1:].sum(-1) > 0
        logits = model(batch.tokens[:, :-1], use_cache=False).logits[used]
        loss = distillation(logits, batch.top_ids[:, 1:][used], batch.top_probs[:, 1:][used])
        model.zero_grad()
        loss.mean().backward()  # type: ignore[no-untyped-call]
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * recipe.rate_at(step, steps)
            optimizer.step()
