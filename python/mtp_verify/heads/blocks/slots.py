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
    from mtp_verify.heads.blocks.llama import Rotary
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

    def over_text(
        self, x: torch.Tensor, context: torch.Tensor, first: int, rotary: Rotary, *, is_causal: bool
    ) -> torch.Tensor:
        """Run the blocks behind every position of texts at once: for training.

        Args:
            x: (B, n, S, d), the slots behind each of n positions; they see the hidden states up to
                it and each other.
            context: (B, n, d), the hidden states.
            first: position of the first.
            rotary: of the head.
            is_causal: a slot does not see those behind it.

        Returns:
            (B, n, S, d).
        """
        batch, count, size, _ = x.shape
        attention = self.self_attn
        places = torch.arange(count, device=x.device)
        known = attention.entries(context, rotary((first + places)[None], x.dtype))
        # Slots of one position after the other: slot k stands k + 1 behind its hidden state.
        slots = first + places[:, None] + torch.arange(1, size + 1, device=x.device)
        rotation = rotary(slots.reshape(1, -1), x.dtype)
        normed = self.input_layernorm(x).reshape(batch, count * size, -1)
        shape = batch, -1, count, size, attention.head_dim
        queries = attention.queries(normed, rotation).reshape(shape)
        own = [part.reshape(shape) for part in attention.entries(normed, rotation)]
        keys, values, own_keys, own_values = (
            part.repeat_interleave(attention.group, dim=1) for part in (*known, *own)
        )
        scale = attention.head_dim**-0.5
        before = torch.einsum("bhnsw,bhmw->bhnsm", queries, keys) * scale
        late = places[None] > places[:, None]
        before = before.masked_fill(late[:, None], -torch.inf)
        beside = queries @ own_keys.transpose(-1, -2) * scale
        if is_causal:
            hidden = torch.ones(size, size, dtype=torch.bool, device=x.device).triu(1)
            beside = beside.masked_fill(hidden, -torch.inf)
        shares = torch.cat((before, beside), dim=-1).float().softmax(-1).to(x.dtype)
        mixed = torch.einsum("bhnsm,bhmw->bhnsw", shares[..., :count], values)
        mixed = mixed + shares[..., count:] @ own_values
        joined = mixed.permute(0, 2, 3, 1, 4).reshape(batch, count, size, -1)
        stream = x + attention.o_proj(joined)
        output: torch.Tensor = stream + self.mlp(self.post_attention_layernorm(stream))
        return output

    def remember(self, context: torch.Tensor, inputs: BlockInputs) -> None:
        """Append the keys and values of hidden states (1, n, d) to those of the segments."""
        counts = [own.num_rows for own in inputs.segments]
        entries = self.self_attn.entries(context, cast("Rotation", inputs.rotation))
        parts = (torch.split(tensor, counts, dim=2) for tensor in entries)
        for segment, keys, values in zip(inputs.segments, *parts, strict=True):
            segment.layers[inputs.block].update(keys, values)
