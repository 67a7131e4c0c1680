"""`SlotBlock`: a Llama block whose attention also sees hidden states of the target.

Each layer makes keys and values of them itself, with the projections and norms that its own rows
take; the states do not pass the layer's input norm, and nothing is added to them.

References:
    DFlash, arXiv 2602.06036.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, cast

import torch

from mtp_verify.heads.blocks.llama import LlamaBlock

if TYPE_CHECKING:
    from mtp_verify.heads.blocks.base import BlockInputs, Rotation
    from mtp_verify.heads.io.recognise import Source
    from mtp_verify.heads.spec import Sizes

__all__ = ["SlotBlock"]

_WINDOWS = ("sliding_window", "layer_types")


class SlotBlock(LlamaBlock):
    """A block of a block head."""

    kind = "slots"

    @classmethod
    def read_sizes(cls, source: Source) -> Sizes:
        """See `HeadBlock.read_sizes`; windows are the head's, since its layers may differ."""
        config = {key: value for key, value in source.config.items() if key not in _WINDOWS}
        return super().read_sizes(dataclasses.replace(source, config=config))

    def remember(self, context: torch.Tensor, inputs: BlockInputs) -> None:
        """Append the keys and values of hidden states (1, n, d) to those of the segments."""
        counts = [own.num_rows for own in inputs.segments]
        entries = self.self_attn.entries(context, cast("Rotation", inputs.rotation))
        parts = (torch.split(tensor, counts, dim=2) for tensor in entries)
        for segment, keys, values in zip(inputs.segments, *parts, strict=True):
            segment.layers[inputs.block].update(keys, values)
