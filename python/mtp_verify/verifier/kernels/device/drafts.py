"""Describe drafts whose rows, and maybe tokens, live on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike
    from torch import Tensor

    from mtp_verify.verifier.params import SamplingParams
    from mtp_verify.verifier.words import Law

__all__ = ["DeviceDrafts"]


@dataclass(frozen=True, eq=False)
class DeviceDrafts:
    """The drafts of a batch in packed arrays, for `DeviceVerifier`.

    The same as `mtp_verify.DraftBatch`, but rows and tokens may be on a device, where nothing is
    read before the step runs: that siblings differ and that a drawn token has a probability is
    seen there, if at all. A promise about the law is as binding as for `mtp_verify.Draft`.

    Attributes:
        offsets: int (B+1,), on the host; request b has nodes ``offsets[b]`` to ``offsets[b + 1]``.
        parents: int (R,), on the host; -1 for each root, then the parent's number in its own tree.
        tokens: int (R,), on the host or int32 or int64 on the device, tokens of the vocabulary; a
            root's is not read. None where there is a table.
        law: How the tokens were chosen: one name for all, or a list of one for each request.
        probs: (Q, V) float32, float16 or bfloat16 on the device, the drafter's rows; borrowed.
        logits: The same in place of `probs`, shaped with `params`.
        params: The drafter's `SamplingParams`; None means ``SamplingParams()``.
        rows: int (R,), on the host: which of these rows follows each node, -1 for none; None means
            row i follows the i-th node of the batch, as far as there are rows.
        vocab: int (columns,), on the host, when the rows are over a sub-vocabulary: column j is
            token ``vocab[j]``.
        sampled: bool (R,), on the host, for laws "mixed" and "top_plus_one".
        table: int64 (4, R) on the device, where it alone knows the trees: of each node its parent
            (-1 for a root, -2 for places that hold no node, which are a tree's last), its token, 1
            if it was sampled, and the drafter's row that follows it, or -1. All that is said of
            nodes above then holds places: trees that are as large, and whose siblings wait for one
            another as long, as these can get.
        bounds: how deep such trees get at most, and how many children a node has.
        places: int (R,) on the device, with a table: the row of the logits that follows each node,
            where the rows are in another order than the nodes; None for the same.
    """

    offsets: ArrayLike
    parents: ArrayLike
    tokens: ArrayLike | Tensor | None
    law: Law | Sequence[Law]
    probs: Tensor | None = None
    logits: Tensor | None = None
    params: SamplingParams | None = None
    rows: ArrayLike | None = None
    vocab: ArrayLike | None = None
    sampled: ArrayLike | None = None
    table: Tensor | None = None
    bounds: tuple[int, int] = (0, 0)
    places: Tensor | None = None
