"""What steps on a device have in common: verifiers, and tokens whatever the rows were."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from mtp_verify.errors import RuleError
from mtp_verify.integrations.vllm.seams import warn_once
from mtp_verify.verifier.kernels import has_graphs, is_on_host
from mtp_verify.verifier.kernels.device import layout
from mtp_verify.verifier.kernels.device.chains import ChainVerifier, core_of
from mtp_verify.verifier.kernels.device.verifier import DTYPES

if TYPE_CHECKING:
    from torch import Tensor

    from mtp_verify.verifier.kernels.device.layout import Outcomes
    from mtp_verify.verifier.words import Rule

__all__ = ["emitted", "objection", "verifier_of"]


@lru_cache(maxsize=8)
def verifier_of(vocab: int, depth: int, device: torch.device) -> ChainVerifier:
    """Return the verifier of chains of up to `depth` drafts, which keeps its memory."""
    return ChainVerifier(vocab, depth, device)


def objection(rule: Rule, dtype: torch.dtype | None = None) -> str | None:
    """Return why steps with a rule, or rows of a dtype, do not run on a device; None if they do."""
    if dtype is not None and dtype not in DTYPES:
        return f"logits of {dtype} are not read on a device"
    try:
        core_of(rule, "chain")
    except RuleError as error:
        return str(error)
    return None


def emitted(outcomes: Outcomes) -> tuple[Tensor, Tensor]:
    """Return the tokens (B, D+1) of a step, then -1, and how many, (B,) int32; both are copies.

    A row that is no distribution ends its request's step with token 0: an exception would end the
    engine, and to see it the host had to wait.
    """
    _faults.note((outcomes.status & ~layout.FALLBACK) != 0)
    last = outcomes.num_accepted[:, None]
    places = torch.arange(outcomes.tokens.shape[1], device=last.device)
    is_missing = (places == last) & (outcomes.tokens < 0)
    return torch.where(is_missing, 0, outcomes.tokens), outcomes.num_accepted + 1


class _Faults:
    """Whether a row was no distribution, which the host hears of some steps later."""

    def __init__(self) -> None:
        self._seen: dict[torch.device, Tensor] = {}
        self._copy: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def note(self, is_wrong: Tensor) -> None:
        """Take in a step, and warn once of those that have been copied to the host."""
        device = is_wrong.device
        seen = is_wrong.any()
        if is_on_host(seen):
            self._tell(seen)
        elif has_graphs(device):
            seen = seen | self._seen.get(device, seen)
            self._seen[device] = seen
            if self._copied is None or self._copied.query():  # type: ignore[no-untyped-call]
                if self._copy is not None:
                    self._tell(self._copy)
                self._copy = torch.empty((), dtype=torch.bool, pin_memory=True)
                self._copy.copy_(seen, non_blocking=True)
                self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._copied.record()

    def _tell(self, seen: Tensor) -> None:
        if seen:
            warn_once(
                "a row of logits held NaN or infinities, or nothing to draw from: its request went "
                "on with token 0 (VLLM_COMPUTE_NANS_IN_LOGITS=1 counts such rows)"
            )


_faults = _Faults()
