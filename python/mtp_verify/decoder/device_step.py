"""The verification of one step on a device, for the drafts that a decoder has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtp_verify._core import Draft
from mtp_verify.decoder.drafted import WITHOUT_ROWS
from mtp_verify.drafters.sketch import Sketch
from mtp_verify.errors import DraftError
from mtp_verify.verifier.kernels.device.drafts import DeviceDrafts
from mtp_verify.verifier.kernels.device.verifier import DeviceVerifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mtp_verify._core import VerdictBatch
    from mtp_verify.verifier.params import SamplingParams
    from mtp_verify.verifier.words import Rule

__all__ = ["Step", "joined"]

# Laws that do not say by themselves which nodes were sampled.
_WITH_FLAGS = ("mixed", "top_plus_one")


def joined(drafts: Sequence[Draft | Sketch]) -> DeviceDrafts:
    """Return the drafts of a step in packed arrays.

    Raises:
        DraftError: drawn tokens whose rows are on the host, or rows of several drafters.
    """
    blanks = [draft.blank if isinstance(draft, Sketch) else draft for draft in drafts]
    offsets = np.concatenate(([0], np.cumsum([draft.num_nodes for draft in blanks])))
    parents = np.concatenate([draft.tree.parents for draft in blanks])
    laws = [draft.law for draft in drafts]
    for draft in drafts:
        if isinstance(draft, Draft) and draft.law not in WITHOUT_ROWS and draft.num_nodes > 1:
            message = f"found a draft of law {draft.law} whose rows are on the host"
            raise DraftError(message, slug="law_data")
    sketches = [draft for draft in drafts if isinstance(draft, Sketch)]
    if not sketches:
        tokens = np.concatenate([np.maximum(draft.tokens, 0) for draft in blanks])
        return DeviceDrafts(offsets, parents, tokens, laws)
    given: dict[str, Any] = {}
    drawn = [sketch for sketch in sketches if sketch.logits is not None]
    rows = [sketch.logits for sketch in drawn if sketch.logits is not None]
    if drawn:
        first, width = drawn[0], rows[0].shape[1]
        is_mixed = any(own.shape[1] != width for own in rows)
        if is_mixed or any(s.params != first.params or s.vocab is not first.vocab for s in drawn):
            message = "found rows of several drafters, wanted those of one"
            raise DraftError(message, slug="law_data")
        given = {"logits": torch.cat(rows), "params": first.params, "vocab": first.vocab}
        given["rows"] = np.zeros(len(parents), np.int64)  # Any: the table has the true ones.
    if any(law in _WITH_FLAGS for law in laws):
        none = [np.zeros(draft.num_nodes, np.bool_) for draft in drafts]
        flags = [
            d.sampled if isinstance(d, Sketch) else own for d, own in zip(drafts, none, strict=True)
        ]
        given["sampled"] = np.concatenate(flags)
    depths, children = zip(*(sketch.bounds for sketch in sketches), strict=True)
    bounds = max(depths), max(children)
    return DeviceDrafts(
        offsets, parents, None, laws, **given, table=_table(drafts, sketches), bounds=bounds
    )


def _table(drafts: Sequence[Draft | Sketch], sketches: Sequence[Sketch]) -> torch.Tensor:
    """Return what the device knows of all nodes, and the host of some."""
    device, start = sketches[0].table.device, 0
    parts: list[torch.Tensor] = []
    for draft in drafts:
        table = (Sketch.of(draft, device) if isinstance(draft, Draft) else draft).table
        if isinstance(draft, Sketch) and draft.logits is not None:
            rows = torch.where(table[3:] < 0, table[3:], table[3:] + start)
            table, start = torch.cat((table[:3], rows)), start + len(draft.logits)
        parts.append(table)
    return torch.cat(parts, dim=1)


class Step:
    """A `DeviceVerifier` that is made anew where a step is larger than those before."""

    def __init__(self) -> None:
        self._verifier: DeviceVerifier | None = None

    def decide(
        self,
        drafts: DeviceDrafts,
        logits: torch.Tensor,
        params: Sequence[SamplingParams],
        *,
        rule: Sequence[Rule],
        seeds: Sequence[int],
        positions: Sequence[int],
        masks: Sequence[NDArray[np.int32] | None],
    ) -> VerdictBatch:
        """Return the verdicts: what has to be known goes there in one copy, and comes back in one.

        Args:
            drafts: of `joined`.
            logits: (R, V), or (B, W, V) with the rows of each draft first.
            params: as all that follows, one for each draft.
            rule: as the others of `mv.verify_batch`.
            seeds: of the noise.
            positions: of the roots.
            masks: (N+1, words) what a constraint allows after each node of a draft, or None.

        Raises:
            MtpVerifyError: the device does not do this, or a row is not a distribution.
        """
        verifier = self._large_enough(drafts, logits)
        height = logits.shape[1] if logits.dim() == 3 else None
        mask = None
        if given := [own for own in masks if own is not None]:
            counts, words = np.diff(drafts.offsets), given[0].shape[1]
            parts = zip(masks, counts, strict=True)
            free = [np.full((n, words), -1, np.int32) if own is None else own for own, n in parts]
            mask = np.concatenate(free)
        verifier.plan(
            drafts, list(params), rule=list(rule), seeds=seeds, positions=positions,
            height=height, bitmask=mask,
        )  # fmt: skip
        verifier.verify(logits)
        return verifier.host()

    @property
    def trees(self) -> list[NDArray[np.int32]]:
        """See `DeviceVerifier.trees`, of the last step."""
        assert self._verifier is not None
        return self._verifier.trees

    def _large_enough(self, drafts: DeviceDrafts, logits: torch.Tensor) -> DeviceVerifier:
        counts = np.diff(drafts.offsets)
        sizes = {"requests": len(counts), "rows": int(counts.sum()), "depth": int(counts.max()) - 1}
        rows = drafts.logits
        sizes |= {"drafted": 0, "columns": 0} if rows is None else {
            "drafted": len(rows), "columns": rows.shape[1],
        }  # fmt: skip
        old = self._verifier
        if old is not None and _holds(old, sizes, logits):
            return old
        # Powers of two, so that it is done a few times; the memory of the old one is let go.
        most = {name: 1 << max(size - 1, 0).bit_length() for name, size in sizes.items()}
        if old is not None:
            most = {name: max(size, vars(old.capacity)[name]) for name, size in most.items()}
        self._verifier = DeviceVerifier(
            most["requests"], most["rows"], logits.shape[-1], logits.dtype, device=logits.device,
            max_depth=most["depth"], max_drafted=most["drafted"],
            columns=sizes["columns"] or logits.shape[-1],
        )  # fmt: skip
        return self._verifier


def _holds(verifier: DeviceVerifier, sizes: dict[str, int], logits: torch.Tensor) -> bool:
    has = vars(verifier.capacity)
    fits = all(has[name] >= size for name, size in sizes.items() if name != "columns")
    return (
        fits
        and sizes["columns"] in (0, has["columns"])
        and logits.shape[-1] == has["vocab"]
        and logits.dtype == verifier.dtype
        and logits.device == verifier.device
    )
