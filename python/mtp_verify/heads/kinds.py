"""`build`: the head that a spec describes, whatever its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtp_verify.heads.block_head import BlockHead
from mtp_verify.heads.causal import CausalHead
from mtp_verify.heads.families import block_of
from mtp_verify.heads.parallel import ParallelHead
from mtp_verify.heads.recurrent import RecurrentHead

if TYPE_CHECKING:
    from mtp_verify.heads.base import Head
    from mtp_verify.heads.spec import HeadSpec

__all__ = ["build"]

_KINDS = {"parallel": ParallelHead, "recurrent": RecurrentHead, "block": BlockHead}


def build(spec: HeadSpec, target: Any | None = None) -> Head:
    """Return a head with new weights, not attached.

    `target`, a transformers model, is needed where blocks are of its own kind. ParamsError: `spec`
    is not that of a head; UnsupportedModelError says why a family cannot be run.
    """
    if spec.kind in _KINDS:
        return _KINDS[spec.kind](spec)
    return CausalHead(spec, target if block_of(spec).needs_target else None)
