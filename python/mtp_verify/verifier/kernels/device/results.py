"""What a step brings back to the host: outcomes, trees, errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtp_verify.errors import DraftError, NumericsError
from mtp_verify.verifier.kernels.device import layout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mtp_verify.errors import MtpVerifyError
    from mtp_verify.verifier.kernels.device.arena import Field

__all__ = ["error_of", "outcomes_of", "result_fields"]


def outcomes_of(fields: Mapping[str, Any]) -> layout.Outcomes:
    """Return the outcomes among the tensors, or arrays, of `result_fields`."""
    return layout.Outcomes(*(fields[name] for name in layout.Outcomes._fields))


def result_fields(capacity: layout.Capacity) -> dict[str, Field]:
    """Return what one copy brings to the host: outcomes, and the parents of trees with a table."""
    requests, depth = capacity.requests, capacity.depth
    i32, i64, f32, f64 = torch.int32, torch.int64, torch.float32, torch.float64
    return {
        "tokens": ((requests, depth + 1), i32),
        "path": ((requests, depth), i32),
        "num_accepted": ((requests,), i32),
        "logprobs": ((requests, depth + 1), f32),
        "moves": ((requests, depth, 2), i64),
        "length": ((requests,), i64),
        "state_select": ((requests,), i32),
        "status": ((requests,), i32),
        "fault": ((requests,), i32),
        "margin": ((requests,), f64),
        "parents": ((capacity.rows,), i32),
    }


def error_of(status: int, node: int) -> MtpVerifyError | None:
    """Return the error that status bits stand for."""
    row = f"row {node}"
    if status & layout.NOT_FINITE:
        message = f"{row}: found NaN or an infinite value, wanted logits that are finite or -inf"
        return NumericsError(message, slug="row_not_finite", row=node)
    if status & layout.EMPTY:
        message = f"{row}: nothing is left to draw from, or the largest logit overflows"
        return NumericsError(message, slug="row_empty", row=node)
    if status & layout.NOT_NORMALISED:
        message = f"drafter's row after node {node}: found no distribution, wanted a sum of about 1"
        return NumericsError(message, slug="row_not_normalised", row=node)
    if status & layout.ZERO_DRAFT:
        message = f"node {node}: its token was sampled, and has the probability 0 in its row"
        return DraftError(message, slug="zero_draft_probability", node=node)
    return None
