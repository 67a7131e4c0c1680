"""Verify trees where they are, and wait for nothing."""

from __future__ import annotations

import warnings
from functools import cache
from operator import gt
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtp_verify.integrations.sglang.links import plant_links
from mtp_verify.verifier.kernels.device.arena import Arena
from mtp_verify.verifier.kernels.device.drafts import DeviceDrafts
from mtp_verify.verifier.kernels.device.layout import FALLBACK
from mtp_verify.verifier.kernels.device.shadow import above
from mtp_verify.verifier.kernels.device.verifier import DeviceVerifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mtp_verify.integrations.sglang.trees import Trees
    from mtp_verify.verifier.params import SamplingParams
    from mtp_verify.verifier.words import Rule

__all__ = ["Stage", "stage_of", "verify_on_device"]


class Stage:
    """What is allocated once for rows of a kind: a verifier that grows, and a watch over it."""

    def __init__(self, device: torch.device, dtype: torch.dtype, vocab: int) -> None:
        """Allocate the watch; the verifier comes with its first step."""
        self._device, self._dtype, self._vocab = device, dtype, vocab
        self._sizes = [0, 0, 0]
        self._verifier: DeviceVerifier | None = None
        self._faults = Arena({"bits": ((), torch.int32)}, device)
        self._has_warned = False

    def verifier(self, batch: int, width: int) -> DeviceVerifier:
        """Return one for as many trees of so many columns."""
        sizes = batch, batch * width, width
        if self._verifier is None or any(map(gt, sizes, self._sizes)):
            self._sizes = [
                max(own, above(more)) for own, more in zip(self._sizes, sizes, strict=True)
            ]
            requests, rows, nodes = self._sizes
            self._verifier = None  # Let go before there is a larger one.
            self._verifier = DeviceVerifier(
                requests, rows, self._vocab, self._dtype, device=self._device, max_nodes=nodes
            )
        return self._verifier

    def watch(self, status: Tensor) -> None:
        """Warn, once, when a step is seen to have read a row that is no distribution.

        That is some calls later: the bits are copied to the host without a wait.
        """
        if self._has_warned:
            return
        if self._faults.host["bits"]:
            self._has_warned = True
            message = (
                "SGLang: a row of logits held NaN or nothing to draw from, or a drafted token had "
                "no probability in its row: what was emitted there is no sample; "
                "SGLANG_SANITIZE_NAN_LOGITS=1 replaces NaN, SGLANG_ENABLE_ASYNC_ASSERT=1 finds it"
            )
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            return
        bits = self._faults.tensors["bits"]
        bits.copy_(torch.maximum(bits, (status & ~FALLBACK).amax()))
        self._faults.fetch()


@cache
def stage_of(device: torch.device, dtype: torch.dtype, vocab: int) -> Stage:
    """Return the one stage of such rows."""
    return Stage(device, dtype, vocab)


def verify_on_device(
    trees: Trees,
    params: Sequence[SamplingParams],
    seeds: Any,
    positions: Any,
    rule: Rule,
    *,
    is_chain: bool,
) -> None:
    """Do what `verify_trees` does, but raise nothing that only the device knows.

    Tokens, links, seeds and positions stay there. Of a row that is no distribution comes token 0.
    """
    batch, width = trees.candidates.shape
    logits = trees.logits
    stage = stage_of(logits.device, logits.dtype, logits.shape[1])
    verifier = stage.verifier(batch, width)
    drafts, columns = _drafts(trees, is_chain=is_chain)
    verifier.plan(drafts, params, rule=rule, seeds=seeds, positions=positions)
    found = verifier.verify(logits)
    stage.watch(found.status[:batch])

    room = min(trees.accept_index.shape[1], width)
    kept = found.num_accepted[:batch].clamp(max=room - 1)
    is_there = torch.arange(room, device=kept.device) <= kept[:, None]
    path = found.path[:batch, : room - 1].long().clamp(min=0)
    numbers = torch.cat([path.new_zeros(batch, 1), path], dim=1)
    rows = trees.retrive_index.gather(1, columns.gather(1, numbers))
    tokens = found.tokens[:batch, :room].clamp(min=0)
    # What lies behind a path is written where the root's is, once more.
    emitted = torch.where(is_there, tokens, tokens[:, :1]).to(trees.predicts.dtype)
    trees.predicts[torch.where(is_there, rows, rows[:, :1])] = emitted
    trees.accept_index[:, :room] = torch.where(is_there, rows, -1).to(trees.accept_index.dtype)
    trees.accept_index[:, room:] = -1
    trees.accept_token_num.copy_(kept)


def _drafts(trees: Trees, *, is_chain: bool) -> tuple[DeviceDrafts, Tensor]:
    """Return the drafts, and (B, D) the column of each node."""
    batch, width = trees.candidates.shape
    offsets = np.arange(batch + 1) * width
    chain = np.tile(np.arange(-1, width - 1), batch)
    columns = torch.arange(width, device=trees.candidates.device).expand(batch, width)
    if trees.draft_probs is not None:
        # The row after each node; the last has none.
        after = np.full((batch, width), -1)
        after[:, :-1] = np.arange(batch * (width - 1)).reshape(batch, -1)
        probs = trees.draft_probs.flatten(0, 1)
        tokens = trees.candidates.flatten()
        return DeviceDrafts(
            offsets, chain, tokens, "chain", probs=probs, rows=after.flatten()
        ), columns
    if is_chain:
        return DeviceDrafts(offsets, chain, trees.candidates.flatten(), "unknown"), columns
    planted = plant_links(trees.candidates, trees.retrive_next_token, trees.retrive_next_sibling)
    first = torch.arange(0, batch * width, width, device=columns.device)
    places = (first[:, None] + planted.columns).flatten()
    bounds = (width - 1, width - 1)
    drafts = DeviceDrafts(
        offsets, chain, None, "unknown", table=planted.table, bounds=bounds, places=places
    )
    return drafts, planted.columns
