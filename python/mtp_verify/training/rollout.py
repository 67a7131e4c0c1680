"""Roll-out: all levels of a head over whole sequences, as drafting would run them.

Row i of level k predicts the token at i + 2 + k. Its inputs are true tokens, which is what a draft
looks like as long as it is accepted; its hidden state from level 1 on is the head's own. A level
that uses a module again sees that module's true rows up to its own and, of the drafted entries,
those of its own path alone: EAGLE-3's training-time test.

References:
    EAGLE-3, arXiv 2503.01840 (training-time test); HASS, arXiv 2408.15766.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.cache_utils import DynamicLayer

from mtp_verify.heads.block_head import BlockHead
from mtp_verify.heads.blocks.base import Segment, causal_mask
from mtp_verify.heads.causal import CausalHead
from mtp_verify.heads.correction import FeatureCorrection
from mtp_verify.training.independent import IndependentDraft

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mtp_verify.caches.dynamic import GrowingLayer
    from mtp_verify.heads.base import Head
    from mtp_verify.heads.parallel import ParallelHead
    from mtp_verify.training.batches import Batch

__all__ = ["level_logits", "roll_out"]


def roll_out(
    head: Head, batch: Batch, depth: int, hidden: Sequence[torch.Tensor] | None = None
) -> Iterator[torch.Tensor]:
    """Yield what the output head reads at each level, (B, n, d), for `head.logits`.

    Rows whose target is after the sequence's end have no meaning. A parallel head ends at its own
    depth; `hidden` takes the place of the batch's, as with noise.
    """
    states = batch.hidden if hidden is None else hidden
    if isinstance(head, IndependentDraft):
        features = head.features(batch.tokens)
        return (batch.shifted(features, level) for level in range(depth))
    if isinstance(head, CausalHead):
        return _causal(head, batch, depth, states)
    if isinstance(head, BlockHead):
        return _block(head, batch, depth, states)
    return _parallel(cast("ParallelHead", head), batch, depth, states)


def level_logits(
    head: Head, batch: Batch, features: torch.Tensor, level: int, rows: torch.Tensor
) -> torch.Tensor:
    """Return logits (R, D + E) of some rows, -inf at tokens that their sequences have not shown.

    The rows' features (R, d) are from `roll_out`; `rows` (B, n) says which of the batch they are.
    """
    if not batch.extra.numel():
        return head.logits(features, level)
    logits = head.logits(features, level, head.output_rows(batch.extra))
    logits[:, batch.vocab_size :].masked_fill_(~batch.known[rows], -torch.inf)
    return logits


def _causal(
    head: CausalHead, batch: Batch, depth: int, states: Sequence[torch.Tensor]
) -> Iterator[torch.Tensor]:
    count, device = batch.tokens.shape[1], batch.tokens.device
    positions = torch.arange(count, device=device)
    visible = causal_mask(0, count, head.spec.known_sizes.window, device)
    own = torch.eye(count, dtype=torch.bool, device=device)[None, None]
    last = head.spec.num_modules - 1
    passed, mask = head.fuse_features(states), visible
    layers: list[DynamicLayer] = []
    for level in range(depth):
        # A module of its own starts from true rows alone; one that is used again continues.
        if level <= last:
            layers, mask = [DynamicLayer() for _ in range(head.spec.num_layers)], visible
        else:
            mask = torch.cat((mask, own), dim=-1)
        tokens = batch.shifted(batch.tokens, level)
        places = (positions + level)[None].expand_as(tokens)
        cached = cast("list[GrowingLayer]", layers)
        segments = [Segment(count, mask, cached)]
        output, passed = head(passed, tokens, places, level=level, segments=segments)
        yield output


def _block(
    head: BlockHead, batch: Batch, depth: int, states: Sequence[torch.Tensor]
) -> Iterator[torch.Tensor]:
    module: Any = head.levels[0]
    context = head.context(states)
    x = head.slot_inputs(context, batch.tokens)
    is_causal = head.spec.in_block == "causal"
    for block in module.layers:
        x = block.over_text(x, context, 0, head.rotary, is_causal=is_causal)
    features = module.norm(x)[:, :, head.spec.block_size - head.num_rows :]
    for level in range(min(depth, head.num_rows)):
        found = features[:, :, level]
        if isinstance(head.correction, FeatureCorrection):
            embeds = head.shared.embed(batch.shifted(batch.tokens, level))
            found = head.correction.correct(embeds, found)
        yield found


def _parallel(
    head: ParallelHead, batch: Batch, depth: int, states: Sequence[torch.Tensor]
) -> Iterator[torch.Tensor]:
    count, device = batch.tokens.shape[1], batch.tokens.device
    positions = torch.arange(count, device=device)[None].expand_as(batch.tokens)
    visible = causal_mask(0, count, head.spec.known_sizes.window, device)
    hidden = head.prefixed(states[0], positions, visible)
    embeds: list[torch.Tensor] = []
    for level in range(min(depth, head.spec.num_modules)):
        if head.spec.fusion != "none":
            embeds.append(head.shared.embed(batch.shifted(batch.tokens, level)))
        yield head.features(hidden, level, positions, visible, embeds)
