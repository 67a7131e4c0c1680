"""Verdicts on the drafts of a step, of all sequences in one call: on the host, or on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtp_verify._core import TokenTree
from mtp_verify.decoder.device_step import Step, joined
from mtp_verify.drafters.base import drafts_of, warn_once
from mtp_verify.drafters.sketch import blank
from mtp_verify.errors import MtpVerifyError
from mtp_verify.verifier.batch import verify_batch
from mtp_verify.verifier.kernels import to_host
from mtp_verify.verifier.kernels.device.forest import BAD_ROW, NO_NODE

if TYPE_CHECKING:
    from collections import abc

    from numpy.typing import NDArray

    from mtp_verify._core import Draft, Verdict
    from mtp_verify.decoder.sequences import Sequence
    from mtp_verify.drafters.base import Drafter, Request
    from mtp_verify.drafters.sketch import Sketch

__all__ = ["DeviceVerdicts", "Verdicts"]


class Verdicts:
    """Verifies on the host, where the rows are."""

    is_on_device = False

    def propose(
        self, drafter: Drafter, requests: abc.Sequence[Request], budgets: abc.Sequence[int]
    ) -> abc.Sequence[Draft | Sketch]:
        """Return what a drafter drafts; its tokens may stay on a device where that is of use."""
        return drafts_of(drafter, requests, budgets)

    def fetch(self, sequences: list[Sequence]) -> None:
        """Bring the rows of a step to the host, where they are read there."""

    def verify(self, sequences: list[Sequence]) -> list[tuple[Sequence, Verdict]]:
        """Verify all sequences that have not failed, in one call; one that fails leaves it."""
        alive = [sequence for sequence in sequences if sequence.error is None]
        while alive:
            try:
                verdicts = verify_batch(
                    [sequence.draft for sequence in alive],
                    [sequence.output.logits for sequence in alive],
                    [sequence.request.params for sequence in alive],
                    rule=[sequence.options.rule for sequence in alive],
                    seeds=[sequence.request.seed for sequence in alive],
                    positions=[sequence.request.position for sequence in alive],
                    lossy=[sequence.options.lossy for sequence in alive],
                    histories=[sequence.history for sequence in alive],
                    prompt_lens=[s.request.prompt_len if s.history else 0 for s in alive],
                    bitmasks=[sequence.masks for sequence in alive],
                    processors=[sequence.options.processors for sequence in alive],
                    top_logprobs=[sequence.options.top_logprobs for sequence in alive],
                )
            except Exception as error:  # a user's processor may raise anything
                place = getattr(error, "sequence", None)
                if place is None:
                    raise
                own = error.alone() if isinstance(error, MtpVerifyError) else error
                alive.pop(place).fail(own)
            else:
                return [(sequence, verdicts[place]) for place, sequence in enumerate(alive)]
        return []


class DeviceVerdicts(Verdicts):
    """Verifies on the device, and reads it once a step.

    That is for the verdicts; or for all rows, where these are needed on the host: what the device
    does not cover is verified there.
    """

    is_on_device = True

    def __init__(self) -> None:
        self._step = Step()
        self._is_fetched = False

    def propose(
        self, drafter: Drafter, requests: abc.Sequence[Request], budgets: abc.Sequence[int]
    ) -> abc.Sequence[Draft | Sketch]:
        """See `Verdicts.propose`."""
        return drafter.sketch(requests, budgets)

    def fetch(self, sequences: list[Sequence]) -> None:
        """See `Verdicts.fetch`."""
        self._is_fetched = any(_needs_rows(sequence) for sequence in sequences)
        if self._is_fetched:
            _fetch(sequences)

    def verify(self, sequences: list[Sequence]) -> list[tuple[Sequence, Verdict]]:
        """See `Verdicts.verify`."""
        alive = [sequence for sequence in sequences if sequence.error is None]
        if alive and not self._is_fetched:
            try:
                return self._decide(alive)
            except MtpVerifyError:
                # The host does what the device does not, and says whose rows or draft are wrong.
                _fetch(alive)
        return super().verify(alive)

    def _decide(self, alive: list[Sequence]) -> list[tuple[Sequence, Verdict]]:
        drafts = joined([sequence.sketch or sequence.draft for sequence in alive])
        logits = alive[0].output.batch
        if logits is None or len(logits) != len(alive):
            logits = torch.cat([sequence.output.logits for sequence in alive])
        verdicts = self._step.decide(
            drafts,
            logits,
            [sequence.request.params for sequence in alive],
            rule=[sequence.options.rule for sequence in alive],
            seeds=[sequence.request.seed for sequence in alive],
            positions=[sequence.request.position for sequence in alive],
            masks=[sequence.masks for sequence in alive],
        )
        for sequence, parents in zip(alive, self._step.trees, strict=True):
            if sequence.sketch is not None:
                _warn(sequence, parents)
                sequence.settle(blank(TokenTree(parents[parents > NO_NODE])))
        return [(sequence, verdicts[place]) for place, sequence in enumerate(alive)]


def _needs_rows(sequence: Sequence) -> bool:
    """Return whether a sequence's rows are read on the host, or edited there."""
    options = sequence.options
    # A constraint sees what a device has drafted when that has been run, and then masks rows.
    is_late = sequence.sketch is not None and sequence.request.matcher is not None
    return bool(
        is_late
        or options.processors
        or options.top_logprobs
        or options.output_logits
        or options.lossy is not None
        or sequence.history is not None
        or (options.drafter is not None and options.drafter.reads_rows)
    )


def _fetch(sequences: list[Sequence]) -> None:
    """Bring the rows to the host, and drafts whose tokens are on the device."""
    wanted: list[torch.Tensor] = []
    for sequence in sequences:
        wanted.append(sequence.output.logits)
        if (sketch := sequence.sketch) is not None:
            wanted += [sketch.table, *([] if sketch.logits is None else [sketch.logits])]
    found = iter(_copied(wanted))
    for sequence in sequences:
        sequence.output = sequence.output._replace(logits=next(found))
        if (sketch := sequence.sketch) is not None:
            table = next(found).numpy()
            _warn(sequence, table[0])
            rows = None if sketch.logits is None else next(found)
            sequence.settle(sketch.draft(sequence.request.tokens[-1], table, rows))
            try:
                sequence.constrain(is_run=True)
            except Exception as error:  # noqa: BLE001 - a user's matcher may raise anything
                sequence.fail(error)


def _warn(sequence: Sequence, parents: NDArray[Any]) -> None:
    """Say it where a drafter's draft ended at a row that is no distribution."""
    drafter = sequence.options.drafter
    if drafter is not None and (parents == BAD_ROW).any():
        warn_once(drafter, "found a row that is no distribution")


def _copied(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return tensors of a device on the host: one copy, and so one wait, for all."""
    # In an order in which each begins at a multiple of its items' size.
    order = sorted(range(len(tensors)), key=lambda place: -tensors[place].itemsize)
    parts = [tensors[place].contiguous().flatten().view(torch.uint8) for place in order]
    shares = torch.split(to_host(torch.cat(parts)), [len(part) for part in parts])
    found = {
        place: share.view(tensors[place].dtype).view(tensors[place].shape)
        for place, share in zip(order, shares, strict=True)
    }
    return [found[place] for place in range(len(tensors))]
