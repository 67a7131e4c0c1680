"""Additive attention masks of trees, of one sequence and of many.

Additive floats are the one form that both eager and SDPA attention take: booleans are added as 0
and 1 by eager attention, silently.
"""

from __future__ import annotations

import torch

from mtp_verify.errors import CacheError

__all__ = ["slot_mask", "tree_mask"]


def tree_mask(
    ancestors: torch.Tensor,
    past: int,
    dtype: torch.dtype,
    *,
    window: int | None = None,
    depths: torch.Tensor | None = None,
    capacity: int | None = None,
) -> torch.Tensor:
    """Return the additive attention mask of a tree behind `past` committed entries.

    Args:
        ancestors: (N+1, N+1) bool, row i marks node i and its ancestors.
        past: committed entries, all of them visible to every node.
        dtype: of the model.
        window: width of a sliding-window layer, which holds min(past, window - 1) old entries; keys
            are hidden by their position, given by `depths` (N+1,), not by their index.
        depths: (N+1,) int, needed with `window`.
        capacity: entries of a static layer, which shows those that are not written yet as well.

    Returns:
        (1, 1, N+1, kept + N+1 or capacity), 0 where visible and the lowest finite value elsewhere.
    """
    num_nodes = ancestors.shape[0]
    kept = past if window is None else min(past, window - 1)
    width = kept + num_nodes if capacity is None else capacity
    visible = torch.zeros((num_nodes, width), dtype=torch.bool, device=ancestors.device)
    visible[:, :kept] = True
    visible[:, kept : kept + num_nodes] = ancestors
    if window is not None:
        if depths is None:
            message = "a sliding-window mask needs the depths of the nodes"
            raise CacheError(message, slug="missing_depths")
        old = torch.arange(past - kept, past, device=ancestors.device)
        keys = torch.cat([old, past + depths])
        visible &= (past + depths)[:, None] - keys[None, :] < window
    return _additive(visible, dtype)[None, None]


def slot_mask(
    starts: torch.Tensor,
    num_shown: int,
    positions: torch.Tensor,
    ancestors: torch.Tensor,
    dtype: torch.dtype,
    *,
    window: int | None = None,
) -> torch.Tensor:
    """Return the additive attention mask of one tree for each slot, as `tree_mask`.

    All of it is made on the device of `starts`, and its shape depends on no value there.

    Args:
        starts: (B,) int64, committed entries of each slot, visible to all nodes of its tree.
        num_shown: entries that a forward shows of each slot, at least the largest start and W.
        positions: (B, W) int64, the place of each node in its sequence.
        ancestors: (B, W, W) bool; nodes that only fill a row up see themselves.
        dtype: of the model.
        window: of a sliding-window layer: keys as old as that are hidden.

    Returns:
        (B, 1, W, num_shown).
    """
    count, width = positions.shape
    device = ancestors.device
    begins = starts[:, None]
    entries = torch.arange(num_shown, device=device)[None]
    visible = (entries < begins)[:, None].repeat(1, width, 1)
    nodes = begins + torch.arange(width, device=device)
    visible.scatter_(2, nodes[:, None].expand(count, width, width), ancestors)
    if window is not None:
        places = entries.repeat(count, 1).scatter_(1, nodes, positions)
        visible &= positions[:, :, None] - places[:, None] < window
    return _additive(visible, dtype)[:, None]


def _additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)
