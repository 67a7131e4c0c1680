"""The kernel of rows that live on a device: a step there where it is covered, else the host's."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from mtp_verify._core import Draft, DraftBatch, Verdict, VerdictBatch
from mtp_verify.errors import MtpVerifyError
from mtp_verify.verifier.intake import as_words
from mtp_verify.verifier.kernels.device.drafts import DeviceDrafts
from mtp_verify.verifier.kernels.device.layout import Outcomes
from mtp_verify.verifier.kernels.device.shadow import above
from mtp_verify.verifier.kernels.device.verifier import DTYPES, DeviceVerifier
from mtp_verify.verifier.kernels.host import Host

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from mtp_verify._core import CoreParams, Lossy
    from mtp_verify.verifier.kernels.edits import Edits
    from mtp_verify.verifier.params import SamplingParams

__all__ = ["OnDevice"]

T = TypeVar("T")

# Verifiers of so many shapes are kept; each has its own memory.
_KEPT = 8

# What a device refuses and the host does: rules and options, and rows that are on the host.
_OF_THE_HOST = {"not_supported", "law_data"}


class OnDevice(Host):
    """Verify on the device where the logits are; copy what is not covered there to the host."""

    def __init__(self, backend: str = "auto") -> None:
        """Keep no verifier yet; `backend` as for `DeviceVerifier`."""
        self._backend = backend
        self._verifiers: OrderedDict[tuple[Any, ...], DeviceVerifier] = OrderedDict()
        self._lock = Lock()

    def verify(
        self,
        draft: Draft,
        logits: Any,
        params: CoreParams,
        rule: str,
        *,
        seed: int,
        position: int,
        lossy: Lossy | None,
        edits: Edits | None,
        top_logprobs: int,
    ) -> Verdict:
        """See `Host.verify`."""
        if lossy is None and top_logprobs == 0:
            try:
                found = self._decided([draft], logits, params, rule, [seed], [position], [edits])
            except MtpVerifyError as error:
                raise error.alone() from None
            if found is not None:
                return found[0]
        return super().verify(
            draft, logits, params, rule, seed=seed, position=position, lossy=lossy, edits=edits,
            top_logprobs=top_logprobs,
        )  # fmt: skip

    def verify_batch(
        self,
        drafts: DraftBatch | Sequence[Draft],
        logits: Any,
        params: CoreParams | Sequence[CoreParams],
        rule: str | Sequence[str],
        *,
        seeds: Sequence[int],
        positions: Sequence[int],
        lossy: Lossy | Sequence[Lossy | None] | None,
        edits: Sequence[Edits | None],
        top_logprobs: int | Sequence[int],
    ) -> VerdictBatch:
        """See `Host.verify_batch`."""
        is_lossy = lossy is not None and (not isinstance(lossy, list) or any(lossy))
        listed = top_logprobs if isinstance(top_logprobs, list) else [top_logprobs]
        if not is_lossy and not any(listed):
            found = self._decided(drafts, logits, params, rule, seeds, positions, edits)
            if found is not None:
                return found
        return super().verify_batch(
            drafts, logits, params, rule, seeds=seeds, positions=positions, lossy=lossy,
            edits=edits, top_logprobs=top_logprobs,
        )  # fmt: skip

    def verify_in_place(
        self,
        drafts: DeviceDrafts,
        logits: Tensor,
        params: SamplingParams,
        *,
        rule: str,
        seeds: Any,
        positions: Any,
    ) -> Outcomes | None:
        """Verify drafts of the device, and return the outcomes there; None if it does not do this.

        Raises:
            MtpVerifyError: As `mtp_verify.verify_batch`; the outcomes are waited for to see it.
        """
        addresses = as_words("seeds", seeds), as_words("positions", positions)
        return self._tried(_checked, drafts, logits, params._core, rule, *addresses, [])

    def _decided(
        self,
        drafts: DraftBatch | Sequence[Draft],
        logits: Any,
        params: CoreParams | Sequence[CoreParams],
        rule: str | Sequence[str],
        seeds: Sequence[int],
        positions: Sequence[int],
        edits: Sequence[Edits | None],
    ) -> VerdictBatch | None:
        """Return the verdicts, or None if the device does not do this."""
        if any(own is not None and own.process for own in edits):
            return None
        rows = _joined(logits, _sizes(drafts))
        if rows is None:
            return None
        return self._tried(DeviceVerifier.host, drafts, rows, params, rule, seeds, positions, edits)

    def _tried(self, read: Callable[[DeviceVerifier], T], *step: Any) -> T | None:
        """Return what is read of a step that was started, or None if the device does not do it."""
        try:
            with self._lock:
                return read(self._started(*step))
        except MtpVerifyError as error:
            if error.slug in _OF_THE_HOST:
                return None
            raise

    def _started(
        self,
        drafts: DeviceDrafts | DraftBatch | Sequence[Draft],
        logits: Tensor,
        params: CoreParams | Sequence[CoreParams],
        rule: str | Sequence[str],
        seeds: Sequence[int],
        positions: Sequence[int],
        edits: Sequence[Edits | None],
    ) -> DeviceVerifier:
        sizes = _sizes(drafts)
        verifier = self._verifier(logits, len(sizes), int(sizes.sum()), drafts)
        height = logits.shape[1] if logits.dim() == 3 else None
        has_mask = any(own is not None and own.bitmask is not None for own in edits)
        mask = _joined_masks(sizes, edits) if has_mask else None
        verifier.send(
            drafts, params, rule, seeds=seeds, positions=positions, height=height, edits=edits,
            bitmask=mask,
        )  # fmt: skip
        verifier.verify(logits)
        return verifier

    def _verifier(self, logits: Tensor, requests: int, rows: int, drafts: Any) -> DeviceVerifier:
        """Return a verifier that is large enough, a used one if there is one."""
        vocab = logits.shape[-1]
        matrix = None
        if isinstance(drafts, DeviceDrafts):
            matrix = drafts.logits if drafts.probs is None else drafts.probs
        columns, drafted = (vocab, 1) if matrix is None else (matrix.shape[1], len(matrix))
        sizes = (above(requests), above(rows), above(drafted))
        key = (logits.device, logits.dtype, vocab, columns, sizes)
        verifier = self._verifiers.pop(key, None)
        if verifier is None:
            verifier = DeviceVerifier(
                sizes[0], sizes[1], vocab, logits.dtype, device=logits.device,
                max_drafted=sizes[2], columns=columns, backend=self._backend,
            )  # fmt: skip
        self._verifiers[key] = verifier
        if len(self._verifiers) > _KEPT:
            self._verifiers.popitem(last=False)
        return verifier


def _checked(step: DeviceVerifier) -> Outcomes:
    """Return copies of a step's outcomes on the device, once its errors have been raised."""
    step.host()
    return Outcomes(*(part.clone() for part in step.outcomes))


def _sizes(drafts: DeviceDrafts | DraftBatch | Sequence[Draft]) -> NDArray[np.int64]:
    """Return the nodes of each tree."""
    if isinstance(drafts, (DraftBatch, DeviceDrafts)):
        offsets: NDArray[np.int64] = np.asarray(drafts.offsets, np.int64)
        return offsets[1:] - offsets[:-1]
    return np.array([draft.num_nodes for draft in drafts], np.int64)


def _joined(logits: Any, sizes: NDArray[np.int64]) -> Tensor | None:
    """Return the rows in one tensor, or None if they are not those of the trees.

    The core then says what is wrong.
    """
    if isinstance(logits, (list, tuple)):
        is_right = all(isinstance(own, torch.Tensor) and own.dim() == 2 for own in logits)
        if not is_right or [len(own) for own in logits] != sizes.tolist():
            return None
        kinds = {(own.device, own.dtype, own.shape[1]) for own in logits}
        is_right = len(kinds) == 1 and logits[0].dtype in DTYPES
        return torch.cat(list(logits)) if is_right else None
    if logits.dtype not in DTYPES:
        return None
    if logits.dim() == 3:
        fits = len(logits) == len(sizes) and logits.shape[1] >= sizes.max(initial=0)
        return logits if fits and logits.is_contiguous() else None
    return logits if logits.dim() == 2 and len(logits) == sizes.sum() else None


def _joined_masks(sizes: NDArray[np.int64], edits: Sequence[Edits | None]) -> NDArray[np.int32]:
    """Return (R, words), the masks of all nodes; all tokens are allowed where there is none."""
    masks = [None if own is None else own.bitmask for own in edits]
    words = next(mask.shape[1] for mask in masks if mask is not None)
    parts = [
        np.full((size, words), -1, np.int32) if mask is None else np.asarray(mask)
        for mask, size in zip(masks, sizes, strict=True)
    ]
    return np.concatenate(parts)
