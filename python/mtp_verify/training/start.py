"""A head before its training: sizes of the target, vocabulary of the text, first weights."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from mtp_verify.errors import ParamsError
from mtp_verify.heads import FAMILIES, Sizes, family, load
from mtp_verify.heads.blocks.llama import RMSNorm
from mtp_verify.heads.families import block_of
from mtp_verify.heads.kinds import build
from mtp_verify.training import independent

if TYPE_CHECKING:
    from pathlib import Path

    from mtp_verify.heads import Head, HeadSpec
    from mtp_verify.training.recipe import Recipe
    from mtp_verify.training.shards import Shards

__all__ = ["check_features", "count_tokens", "new_head", "places_of", "spec_of", "start_from"]

_SPREAD = 0.035  # of the first weights
_QUIET = 0.25  # of the target's final norm: with all of it the first losses exceed 11 nats
# Projections back into the stream, and the correction's: a block starts as the identity.
_ENDS = ("o_proj", "down_proj", "output")


def spec_of(recipe: Recipe, config: Any) -> HeadSpec:
    """Return what the head is made of; its output rows are the target's own and not trained."""
    if recipe.family == independent.FAMILY:
        return independent.spec_of_draft(config, recipe.num_layers)
    sizes = Sizes.of(config)
    spec, record = family(recipe.family), FAMILIES[recipe.family]
    block, layers = record.block, record.default_layers
    depth = int(config.get_text_config(decoder=True).num_hidden_layers)
    size = min(recipe.draft_vocab_size, sizes.vocab_size)
    return spec.replace(
        sizes=sizes,
        block="llama" if block is None or block.needs_target else block.kind,
        num_modules=1 if spec.kind == "block" else recipe.num_modules,
        block_size=recipe.num_modules if spec.kind == "block" else spec.block_size,
        num_layers=recipe.num_layers,
        aux_layers=spec.aux_layers if layers is None else layers(depth),
        output_head="shared",
        own_embedding=False,
        draft_vocab_size=None if size == sizes.vocab_size else size,
        context_tokens=recipe.context_tokens and size < sizes.vocab_size,
    )


def count_tokens(shards: Shards, vocab_size: int) -> torch.Tensor:
    """Return how often each token (V,) is in the text."""
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for index in range(len(shards)):
        counts += torch.bincount(shards[index].tokens, minlength=vocab_size)
    return counts


def new_head(spec: HeadSpec, model: Any, counts: torch.Tensor, seed: int) -> Head:
    """Make a head with random weights, attached to its target.

    The draft vocabulary are the tokens most frequent by `counts` (V,), of equally frequent ones
    those of lower id. An independent draft model gets its weights from the target's layers.
    """
    if spec.family == independent.FAMILY:
        return independent.IndependentDraft(independent.shrink(model, spec.num_layers))
    is_trained = spec.kind in ("causal", "parallel") or spec.family == "block"
    if not is_trained:
        message = f"family: found {spec.family!r}, a {spec.kind} head; such heads are not trained"
        raise ParamsError(message, slug="bad_recipe")
    head = build(spec).attach(model)
    if spec.draft_vocab_size is not None:
        order = torch.argsort(counts, descending=True, stable=True)
        head.set_vocab(order[: spec.draft_vocab_size].sort().values)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in head.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding) and block_of(spec).attends:
                is_end = name.rpartition(".")[2] in _ENDS
                module.weight.normal_(0.0, 0.0 if is_end else _SPREAD, generator=generator)
        _scale_output_norms(head)
    return head


def start_from(head: Head, folder: Path) -> dict[str, Any]:
    """Give a new head the weights and the draft vocabulary of one that was trained before.

    Returns how that one was trained. ParamsError names the field in which its spec differs;
    UnsupportedModelError: it cannot be read.
    """
    if head.spec.family == independent.FAMILY:
        message = "a run from weights of an earlier one is for heads; an independent model has none"
        raise ParamsError(message, slug="bad_recipe")
    old = load(folder, dtype=torch.float32)
    for field in dataclasses.fields(head.spec):
        mine, theirs = getattr(head.spec, field.name), getattr(old.spec, field.name)
        if mine != theirs:
            message = f"{folder}: {field.name}: found {theirs!r}, wanted {mine!r} as in the recipe"
            raise ParamsError(message, slug="bad_recipe")
    head.load_state_dict(old.state_dict())
    if old.vocab is not None:
        head.set_vocab(old.vocab)
    return old.record


def _scale_output_norms(head: Head) -> None:
    """Start output norms from a fraction of the target's."""
    weight, levels = getattr(head.shared.norm, "weight", None), cast("Any", head.levels)
    for norm in (getattr(module, "norm", None) for module in levels):
        if isinstance(norm, RMSNorm) and weight is not None:
            norm.weight.copy_(_QUIET * weight.float() - (1.0 if norm.plus_one else 0.0))


def places_of(head: Head) -> torch.Tensor:
    """Return the place (V,) of each token in the head's draft vocabulary, or -1."""
    size = head.spec.known_sizes.vocab_size
    if head.vocab is None:
        return torch.arange(size)
    places = torch.full((size,), -1)
    places[head.vocab] = torch.arange(head.vocab.numel())
    return places


def check_features(recipe: Recipe, spec: HeadSpec) -> None:
    """Refuse losses on hidden states for heads whose output does not take the place of one."""
    if (recipe.feature_weight or recipe.adversarial_weight) and spec.feed != "post":
        what = f"the output of a {spec.family} head does not take the place of the hidden state"
        rule = "feature and adversarial losses are for families with feed = post"
        message = f"{what} that it reads; {rule}"
        raise ParamsError(message, slug="bad_recipe")
