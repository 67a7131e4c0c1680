"""The kernel of the host: the compiled core. Rows that live elsewhere are copied."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtp_verify import _core
from mtp_verify._core import CoreParams, Draft, DraftBatch, Grower, Lossy, Verdict, VerdictBatch
from mtp_verify.errors import DraftError
from mtp_verify.verifier.kernels.edits import Edits

__all__ = ["Host", "is_host", "is_on_host", "to_host"]


def to_host(tensor: Any, name: str = "logits") -> Any:
    """Return a tensor itself, or its copy on the host where it lives on a device; detached.

    Raises:
        DraftError: A tensor of shapes alone; names it.
    """
    if type(tensor) is np.ndarray:  # Most calls: looking for a tensor's attributes takes longer.
        return tensor
    if getattr(tensor, "is_meta", False) is True:
        message = f"{name}: found a tensor on device meta, wanted one that has values"
        raise DraftError(message, slug="bad_tensor")
    if getattr(tensor, "requires_grad", False):
        tensor = tensor.detach()
    return tensor if is_on_host(tensor) else tensor.cpu()


def is_on_host(tensor: Any) -> bool:
    """Return whether a tensor lives on the host, where NumPy's arrays do."""
    return bool(getattr(tensor, "is_cpu", True))


def is_host(device: Any) -> bool:
    """Return whether a device is the host; what is there needs no copy to be read."""
    return bool(device.type == "cpu")


class Host:
    """The compiled core, and the base of other kernels.

    Every call with rows of a model goes through one of these methods, with arguments that are
    checked; the rows may live anywhere.
    """

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
        """Return the verdict on one draft, as `mtp_verify.verify`."""
        return _core.verify(
            draft, to_host(logits), params, rule, seed=seed, position=position, lossy=lossy,
            edits=edits, top_logprobs=top_logprobs,
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
        """Return the verdicts on many drafts, as `mtp_verify.verify_batch`."""
        is_listed = isinstance(logits, list | tuple)
        rows = [to_host(own) for own in logits] if is_listed else to_host(logits)
        return _core.verify_batch(
            drafts, rows, params, rule, seeds=seeds, positions=positions, lossy=lossy,
            edits=edits, top_logprobs=top_logprobs,
        )  # fmt: skip

    def expected_accepted(
        self, draft: Draft, logits: Any, params: CoreParams, rule: str, *, edits: Edits | None
    ) -> float:
        """Return the mean number of accepted tokens, as `mtp_verify.expected_accepted`."""
        return _core.expected_accepted(draft, to_host(logits), params, rule, edits=edits)

    def draw(self, logits: Any, params: Any, seed: int, position: int, node: int) -> int:
        """Return a token of one row (1, V), drawn with the drafter's noise of a node."""
        return _core.draw(to_host(logits), params, seed, position, node)

    def extend(self, grower: Grower, logits: Any) -> Any | None:
        """Grow a draft by the rows of its frontier; return the rows that a draft must keep."""
        rows = to_host(logits)
        return rows if grower.extend(rows) else None
