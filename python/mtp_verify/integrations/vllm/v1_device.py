"""The steps of V1's sampler whose rows are on a device; the host does not wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtp_verify.integrations.vllm.on_device import emitted, verifier_of
from mtp_verify.verifier.kernels.device.chains import Chains, Drawn
from mtp_verify.verifier.kernels.device.shadow import above

if TYPE_CHECKING:
    from torch import Tensor

    from mtp_verify.verifier.words import Rule

__all__ = ["verify"]

_SEEDS = 1 << 63


def verify(
    metadata: Any, draft_probs: Tensor | None, rows: Tensor, sampling: Any, rule: Rule
) -> Tensor:
    """Verify one step of `v1.forward`, whose arguments these are, rows after vLLM's processors.

    Returns:
        int32 (B, width) tokens, then -1, on the device.
    """
    vocab, device = rows.shape[-1], rows.device
    batch, width = len(metadata.num_draft_tokens), max(metadata.num_draft_tokens, default=0) + 1
    ends = metadata.cu_num_sampled_tokens.long()
    offsets = torch.cat([ends.new_zeros(1), ends])
    tokens = torch.full((len(rows),), -1, dtype=torch.int64, device=device)
    tokens[metadata.target_logits_indices.long() + 1] = metadata.draft_token_ids.long()
    drawn = None
    if draft_probs is not None and width > 1:
        # Drafts before request b: its rows without a bonus row for each of the b requests.
        first = offsets[:-1] - torch.arange(batch, device=device)
        drawn = Drawn(draft_probs, first, None)
        tokens = _with_forbidden(tokens, offsets, drawn, rows, width - 1)
    top_k, top_p = (
        None if own is None else own[:batch] for own in (sampling.top_k, sampling.top_p)
    )
    is_greedy = sampling.all_greedy
    chains = Chains(
        offsets=offsets,
        tokens=tokens,
        seeds=_seeds(sampling, batch, device),
        positions=ends.new_zeros(batch),
        temperature=torch.zeros(batch, device=device)
        if is_greedy
        else sampling.temperature[:batch],
        # vLLM turns top-k off by the size of the vocabulary.
        top_k=None if top_k is None or is_greedy else torch.where(top_k < vocab, top_k, 0),
        top_p=None if is_greedy else top_p,
    )
    # Few depths: each has its own memory.
    verifier = verifier_of(vocab, above(width) - 1, device)
    found, _ = emitted(verifier.verify(rows, chains, rule, drawn))
    return found[:, :width]


def _with_forbidden(
    tokens: Tensor, offsets: Tensor, drawn: Drawn, rows: Tensor, depth: int
) -> Tensor:
    """Put a token that is rejected in the place of each request's first placeholder.

    As on the host (`v1`): a drawn token that the grammar forbids is rejected, so that the residual
    of its row is drawn from, and any that the target's row excludes stands for it.
    """
    roots = offsets[:-1, None]
    places = roots + 1 + torch.arange(depth, device=rows.device)
    is_missing = places < offsets[1:, None]
    is_missing &= tokens[places.clamp(max=len(tokens) - 1)] < 0
    number = is_missing.int().argmax(1)
    above_it = (offsets[:-1] + number).clamp(max=len(rows) - 1)
    drafted = drawn.rows[(drawn.first + number).clamp(max=len(drawn.rows) - 1)]
    is_out = (rows[above_it] == -torch.inf) & (drafted > 0)
    is_known = is_missing.any(1) & is_out.any(1)
    stand_in = torch.where(is_known, is_out.int().argmax(1), -1)
    # A root's token is not read.
    return tokens.scatter(0, torch.where(is_known, above_it + 1, offsets[:-1]), stand_in)


def _seeds(sampling: Any, batch: int, device: torch.device) -> Tensor:
    """Draw a seed for each request and step, from the request's own generator if it has one."""
    if sampling.all_greedy:
        return torch.zeros(batch, dtype=torch.int64, device=device)
    seeds = torch.randint(_SEEDS - 1, (batch,), device=device)
    for row, generator in sampling.generators.items():
        if row < batch:
            seeds[row] = torch.randint(_SEEDS - 1, (), generator=generator, device=device)
    return seeds
