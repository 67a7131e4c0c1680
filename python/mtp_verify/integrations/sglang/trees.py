"""Verify trees on the tensors of the engine's own kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mtp_verify.errors import DraftError
from mtp_verify.integrations.sglang.device import verify_on_device
from mtp_verify.integrations.sglang.host import verify_on_host
from mtp_verify.verifier.kernels import is_on_host

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mtp_verify.verifier.params import SamplingParams
    from mtp_verify.verifier.words import Rule

__all__ = ["Trees", "verify_trees"]


class Trees(NamedTuple):
    """The tensors of one call, as `verify_trees` describes them."""

    predicts: Tensor
    accept_index: Tensor
    accept_token_num: Tensor
    candidates: Tensor
    retrive_index: Tensor
    retrive_next_token: Tensor
    retrive_next_sibling: Tensor
    logits: Tensor
    draft_probs: Tensor | None

    def check(self) -> None:
        """Refuse tensors that do not fit together."""
        batch, width = self.candidates.shape
        vocab = self.logits.shape[1:2]
        shapes = {
            "predicts": (batch * width,),
            "accept_index": (batch, *self.accept_index.shape[1:2]),
            "accept_token_num": (batch,),
            "retrive_index": (batch, width),
            "retrive_next_token": (batch, width),
            "retrive_next_sibling": (batch, width),
            "logits": (batch * width, *vocab),
            "draft_probs": (batch, width - 1, *vocab),
        }
        for name, shape in shapes.items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                message = f"{name}: found shape {tuple(tensor.shape)}, wanted {shape}"
                raise DraftError(message, slug="shape_mismatch")


def verify_trees(
    *,
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    logits: Tensor,
    params: Sequence[SamplingParams],
    seeds: Any,
    positions: Any,
    draft_probs: Tensor | None = None,
    rule: Rule = "auto",
    is_chain: bool = False,
) -> None:
    """Verify one tree a request, on the tensors of the engine's own kernels (and their spelling).

    The emitted tokens of request b are `predicts[accept_index[b, : accept_token_num[b] + 1]]`.
    Where the logits are on a device, all tensors are, the work is done there, and nothing waits for
    it: a row that is no distribution then gives token 0 and, some calls later, a warning; of links
    that are no tree a tree is left. On the host these are errors, and nothing is written.

    Args:
        predicts: int32 (B * D,), out: the token emitted after a row; only rows of the accepted path
            are written.
        accept_index: int32 (B, W), out: the rows of the accepted path, the root's first, then -1.
            A path longer than W - 1 nodes is cut, which keeps the law.
        accept_token_num: int32 (B,), out: accepted drafts, the last token not counted.
        candidates: int64 (B, D): the tokens; column 0 is the last committed one.
        retrive_index: int64 (B, D): the row of each column.
        retrive_next_token: int64 (B, D): the first child, -1 for none.
        retrive_next_sibling: int64 (B, D): the next sibling, -1 for none.
        logits: (B * D, V) float32, float16 or bfloat16, the target's, penalised and masked but not
            shaped; borrowed, not modified.
        params: One for each request.
        seeds: One for each request: integers, or int64 (B,), their bits.
        positions: The absolute index of each root: integers, or int64 (B,).
        draft_probs: None: the drafts were chosen somehow, and are verified by a rule that ignores
            how. Else (B, D - 1, V): the trees are chains, node i + 1 was sampled from row i.
        rule: As `verify`. With "coupled" the tokens are a function of the seed and their positions,
            whatever was drafted.
        is_chain: Whether each tree is known to be the chain of its D columns, in their order; a
            device then does not look at the links. It is taken for granted with `draft_probs`.

    Raises:
        DraftError: Tensors that do not fit together, or links that are no tree; names the request.
        NumericsError: A row that was read is no distribution.
    """
    trees = Trees(
        predicts,
        accept_index,
        accept_token_num,
        candidates,
        retrive_index,
        retrive_next_token,
        retrive_next_sibling,
        logits,
        draft_probs,
    )
    trees.check()
    batch = len(candidates)
    for name, values in (("params", params), ("seeds", seeds), ("positions", positions)):
        if len(values) != batch:
            message = f"{name}: found {len(values)}, wanted {batch}, one for each request"
            raise DraftError(message, slug="shape_mismatch")
    if is_on_host(logits):
        verify_on_host(trees, params, seeds, positions, rule)
    else:
        verify_on_device(trees, params, seeds, positions, rule, is_chain=is_chain)
