"""`HeadBlock`: what a head, and the code that reads its checkpoint, need to know of a block."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import nn

from mtp_verify.caches.dynamic import GrowingLayer
from mtp_verify.models.cpu.attention import GroupedMask, attend

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mtp_verify.heads.io.recognise import Source
    from mtp_verify.heads.spec import HeadSpec, Sizes

__all__ = ["BlockInputs", "Converted", "HeadBlock", "Rotation", "Segment", "causal_mask"]

Rotation = tuple[torch.Tensor, torch.Tensor]  # cosines and sines of rotary positions


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of a forward that are one sequence's, and what they see.

    Drafts of several sequences share a forward: their rows stand side by side in one row of a
    batch, as each sequence has as many entries, and as many rows, as it has.
    """

    num_rows: int
    # The mask, or what makes it, where the core may run without one.
    shown: torch.Tensor | Callable[[], torch.Tensor | None] | None
    layers: Sequence[GrowingLayer]  # by block: keys and values; those of these rows are appended
    # The same as the mask says, where the host knows it: each row sees the first `num_true` entries
    # and, of the `num_held` and these rows' behind them, those of its path, its own last.
    num_true: int = 0
    num_held: int = 0
    paths: Sequence[Sequence[int]] | None = None

    @cached_property
    def mask(self) -> torch.Tensor | None:
        """(1, 1, num_rows, keys), True where visible; None shows all."""
        return self.shown() if callable(self.shown) else self.shown


class BlockInputs(NamedTuple):
    """What a block takes beside its input x."""

    positions: torch.Tensor | None  # (B, n)
    rotation: Rotation | None  # of these positions, where `uses_rotary`
    # Broadcastable to (B, heads, n, keys), True (or 0) where visible; None shows all. Without
    # segments, the rows see each other alone.
    mask: torch.Tensor | None = None
    segments: Sequence[Segment] = ()  # their rows are the n; B is 1 where there are several
    block: int = 0  # the block's number in its module
    residual: torch.Tensor | None = None  # (B, n, d), the stream that is added to; None: x

    def mix(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Append keys and values (B, heads, n, head_dim) to each segment's, and attend to them.

        Returns:
            (B, n, heads * head_dim), as `attend`.
        """
        counts, group = [own.num_rows for own in self.segments], queries.shape[1] // keys.shape[1]
        parts = (torch.split(tensor, counts, dim=2) for tensor in (queries, keys, values))
        mixed = []
        for segment, own, *fresh in zip(self.segments, *parts, strict=True):
            mask = None if segment.mask is None else GroupedMask(segment.mask, group)
            all_keys, all_values = segment.layers[self.block].update(*fresh)
            mixed.append(attend(own, all_keys, all_values, mask))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=1)


class Converted(NamedTuple):
    """A block's tensors by the names of its parameters, and what did not fit into it."""

    tensors: Mapping[str, torch.Tensor]
    unknown: tuple[str, ...]  # names, in the checkpoint, that no parameter takes
    wrong: tuple[str, ...]  # names of tensors with another shape, with both shapes


def causal_mask(past: int, count: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return which of `past + count` keys each of the last `count` sees, (1, 1, count, keys)."""
    queries = torch.arange(past, past + count, device=device)[:, None]
    keys = torch.arange(past + count, device=device)[None]
    visible = keys <= queries
    if window is not None:
        visible &= keys > queries - window
    return visible[None, None]


class HeadBlock(nn.Module):
    """Block number `index` of a module of a head; a kind of block is a subclass.

    `target` is the transformers model, where `needs_target`.
    """

    kind: ClassVar[str]  # its name in `HeadSpec.block`
    attends: ClassVar[bool] = True  # it sees other positions: the head keeps keys and values for it
    uses_rotary: ClassVar[bool] = True  # it takes rotary cosines and sines from the head
    needs_target: ClassVar[bool] = False  # it is made from the target, and converts its tensors
    wrapper: ClassVar[str] = ""  # what names of its parameters start with, in no checkpoint
    # A tensor that every such block has in a checkpoint; blocks are counted by it.
    sign: ClassVar[str] = "self_attn.q_proj.weight"
    has_optional_biases: ClassVar[bool] = False  # biases that a checkpoint lacks are zero

    def __init__(self, spec: HeadSpec, index: int = 0, target: Any | None = None) -> None:
        del spec, index, target
        super().__init__()

    @classmethod
    def read_sizes(cls, source: Source) -> Sizes:
        """Return the sizes of a head of such blocks in a checkpoint."""
        raise NotImplementedError

    @classmethod
    def find_copies(cls, source: Source) -> set[str]:
        """Return labels of stored tensors that equal others, where levels share their weights."""
        del source
        return set()

    @classmethod
    def from_checkpoint(
        cls, spec: HeadSpec, target: Any, tensors: Mapping[str, torch.Tensor]
    ) -> Converted:
        """Convert a block's tensors to parameters, where `needs_target`."""
        raise NotImplementedError

    @classmethod
    def to_checkpoint(
        cls, spec: HeadSpec, target: Any, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Convert parameters to a block's tensors, by their names in a checkpoint."""
        raise NotImplementedError

    def new_layer(self) -> GrowingLayer:
        """Return what keeps the keys and values of a new sequence."""
        return GrowingLayer()

    def forward(self, x: torch.Tensor, inputs: BlockInputs) -> torch.Tensor:
        """Run the block on x (B, n, width); return (B, n, d)."""
        raise NotImplementedError
