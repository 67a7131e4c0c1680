"""Every kind of drafter trained on one target's text, with one recipe."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mtp_verify.drafters import Heads, Model
from mtp_verify.training.independent import IndependentDraft
from mtp_verify.training.loop import Trainer
from mtp_verify.training.recipe import Recipe
from mtp_verify.training.shards import Shards, shard_path, write_shard
from mtp_verify.training.start import count_tokens, new_head, spec_of
from mtp_verify.training.writing import write_texts
from studies.spelling import VOCAB_SIZE, Spelling, small_target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

__all__ = ["DEPTH", "RECIPE", "Entrant", "train_drafter", "write_text"]

DEPTH = 4
RECIPE = Recipe(context_tokens=False, plain_share=0.7)
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
        draft = IndependentDraft(small_target(num_layers=1, seed=1, **entrant.sizes))
        Trainer(draft, *shards[-1], recipe, steps=steps, folder=folder).run()
        return Model(draft.model, num_tokens=DEPTH), _count(draft)
    spec = spec_of(recipe, target.config)
    spec = spec.replace(sizes=dataclasses.replace(spec.known_sizes, **entrant.sizes))
    text, held_out = shards[spec.hidden_layers[0]]
    head = new_head(spec, target, count_tokens(text, VOCAB_SIZE), recipe.seed)
    Trainer(head, text, held_out, recipe, steps=steps, folder=folder).run()
    return Heads(head.eval(), num_tokens=DEPTH), _count(head)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
