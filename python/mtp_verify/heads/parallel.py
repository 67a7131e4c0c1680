"""`ParallelHead`: every level is predicted from one hidden state of the target.

Medusa (residual blocks), KOALA's deeper form of it (several of them), Meta's heads (one transformer
block each, over a shared trunk), and Hydra, whose blocks also read the tokens drafted so far.

References:
    Medusa, arXiv 2401.10774; KOALA, arXiv 2408.08146; Meta, arXiv 2404.19737; Hydra,
    arXiv 2402.05109.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mtp_verify.caches.dynamic import GrowingLayer
from mtp_verify.errors import DraftError, ParamsError
from mtp_verify.heads.base import (
    ContextTokens,
    Head,
    as_tokens,
    check_pairs,
    check_parents,
    make_output,
)  # fmt: skip
from mtp_verify.heads.blocks.base import BlockInputs, causal_mask
from mtp_verify.heads.blocks.llama import LlamaBlock, RMSNorm, Rotary
from mtp_verify.heads.blocks.residual import Conditioned
from mtp_verify.heads.families import block_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.heads.spec import HeadSpec

__all__ = ["ParallelHead", "ParallelModule", "ParallelState"]


class ParallelModule(nn.Module):
    """The predictor of level `index`, from 0."""

    def __init__(self, spec: HeadSpec, index: int) -> None:
        super().__init__()
        width = spec.known_sizes.hidden_size
        # Hydra reads the root's embedding and those of the tokens drafted above.
        self.fusion: nn.Module | None = None
        is_residual = spec.fusion == "residual"
        if is_residual:
            self.fusion = Conditioned((2 + index) * width, width)
        elif spec.fusion != "none":
            self.fusion = nn.Linear((2 + index) * width, width, bias=spec.fusion_bias)
        block = block_of(spec)
        self.layers = nn.ModuleList(block(spec, n) for n in range(spec.num_layers - is_residual))
        self.output = make_output(spec)


@dataclass
class ParallelState:
    """State of a sequence in a parallel head."""

    layers: list[list[GrowingLayer]]  # keys and values by level and block
    prefix: GrowingLayer = field(default_factory=GrowingLayer)  # of the block before all levels
    num_true: int = 0  # pairs read
    first: int = 0  # position of the first pair's hidden state
    context_tokens: ContextTokens = field(default_factory=ContextTokens)
    _features: torch.Tensor | None = None  # (J or 1, d) of the last pair
    _rows: dict[int, torch.Tensor] = field(default_factory=dict)
    _paths: list[torch.Tensor] = field(default_factory=list)  # (k,) tokens from the root down
    _latest: int = 0  # the first node of the last call

    @property
    def num_nodes(self) -> int:
        """Nodes run since the last `read`, the root included."""
        return len(self._paths)

    def rollback(self) -> None:
        """Drop everything that was drafted; true pairs stay."""
        del self._paths[1:]
        self._latest = 0


class ParallelHead(Head):
    """A head whose levels do not see each other's tokens (Hydra's do, without attention).

    `spec` has sizes; one that is not that of a parallel head raises a ParamsError.
    """

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__(spec)
        block = block_of(spec)
        if spec.kind != "parallel" or block.needs_target:
            message = f"{spec.family} is not a parallel head of blocks of its own"
            raise ParamsError(message, slug="bad_head_spec")
        if spec.feed == "aux" and len(spec.aux_layers) != 1:
            what = "a parallel head reads one hidden state; give aux_layers its layer"
            message = f"{what} (for Meta's heads, which replace the target's last: (L - 1,))"
            raise ParamsError(message, slug="bad_head_spec")
        self.levels = nn.ModuleList(ParallelModule(spec, i) for i in range(spec.num_modules))
        self.attends = block.uses_rotary
        needs_rotary = block.uses_rotary or spec.prefix
        self.rotary: Rotary | None = Rotary(spec.known_sizes) if needs_rotary else None
        self.prefix: nn.Module | None = None
        if spec.prefix:
            sizes = spec.known_sizes
            self.prefix = LlamaBlock(spec.replace(fusion="none"))
            self.prefix_norm = RMSNorm(sizes.hidden_size, sizes.norm_eps)

    def prefixed(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        layer: GrowingLayer | None = None,
    ) -> torch.Tensor:
        """Return hidden states (B, n, d) as the levels read them, in training and drafting alike.

        The other arguments are those of a block; without a block before the levels, `hidden`.
        """
        if self.prefix is None or self.rotary is None:
            return hidden
        rotation = self.rotary(positions, hidden.dtype)
        mixed: torch.Tensor = self.prefix(hidden, BlockInputs(positions, rotation, mask, layer))
        normed: torch.Tensor = self.prefix_norm(mixed)
        return normed

    def features(
        self,
        hidden: torch.Tensor,
        level: int,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        embeds: Sequence[torch.Tensor] = (),
        layers: Sequence[GrowingLayer | None] | None = None,
    ) -> torch.Tensor:
        """Return what the output head of a level reads, in training and drafting alike.

        Args:
            hidden: (B, n, d), of `prefixed`.
            level: from 0; its row at position i predicts the token at i + 2 + level.
            positions: (B, n), for transformer blocks.
            mask: broadcastable to (B, heads, n, keys), for transformer blocks.
            embeds: for Hydra the embeddings (B, n, d) of the tokens at i + 1 ... i + 1 + level.
            layers: keys and values of each transformer block that are extended, or None.

        Returns:
            (B, n, d).
        """
        module: Any = self.levels[level]
        fusion, rotation = module.fusion, None
        x = hidden if fusion is None else fusion(torch.cat((hidden, *embeds), dim=-1))
        if self.attends and self.rotary is not None:
            if positions is None:
                message = "transformer blocks need the positions of the hidden states"
                raise DraftError(message, slug="missing_positions")
            rotation = self.rotary(positions, x.dtype)
        cached = layers or [None] * len(module.layers)
        for block, layer in zip(module.layers, cached, strict=True):
            x = block(x, BlockInputs(positions, rotation, mask, layer))
        return x

    def logits(
        self, features: torch.Tensor, level: int = 0, extra: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Head.logits`."""
        if self.attends and self.shared.norm is not None:
            # Meta's heads end where the target's last layer does: before its final norm.
            features = self.shared.norm(features)
        return super().logits(features, level, extra)

    def new_state(self) -> ParallelState:
        """See `Head.new_state`."""
        count = self.spec.num_layers if self.attends else 0
        return ParallelState([[GrowingLayer() for _ in range(count)] for _ in self.levels])

    def read(
        self,
        state: ParallelState,
        hidden: Sequence[torch.Tensor],
        tokens: torch.Tensor | Sequence[int],
    ) -> torch.Tensor:
        """See `Head.read`."""
        words, tokens = tokens, as_tokens(tokens, hidden)
        count = check_pairs(self.spec, hidden, tokens)
        state.rollback()
        self.observe_tokens(state.context_tokens, words)
        state._rows.clear()
        stream = hidden[0][None]
        past, state.num_true = state.num_true, state.num_true + count
        if self.rotary is None:
            state._features = stream[0, -1:]
        else:
            mask = causal_mask(past, count, self.spec.known_sizes.window, stream.device)
            positions = torch.arange(past, past + count, device=stream.device)[None] + state.first
            stream = self.prefixed(stream, positions, mask, state.prefix)
            state._features = stream[0, -1:]
        if self.attends:
            rows = [
                self.features(stream, level, positions, mask, layers=layers)[0, -1:]
                for level, layers in enumerate(state.layers)
            ]
            state._features = torch.cat(rows)
        state._paths = [tokens[-1:]]
        return self._rows(state, [0])

    def step(
        self, state: ParallelState, parents: Sequence[int] | torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        """See `Head.step`."""
        first, paths = len(state._paths), state._paths
        check_parents(parents, first)
        places = range(state._latest, first) if isinstance(parents, torch.Tensor) else parents
        for parent in places:
            if len(paths[parent]) >= len(self.levels):
                message = f"node {parent} has no level below it: the head has {len(self.levels)}"
                raise DraftError(message, slug="draft_too_deep", node=parent)
        above: Any = [paths[parent] for parent in places]
        if isinstance(parents, torch.Tensor):
            above = torch.stack(above)[parents]
        words = zip(above, torch.split(tokens, 1), strict=True)
        state._latest = first
        paths += [torch.cat(pair) for pair in words]
        return self._rows(state, range(first, len(paths)))

    def _rows(self, state: ParallelState, nodes: Sequence[int]) -> torch.Tensor:
        """Return logits after nodes; a row that all of a level share is computed once."""
        rows = []
        for path in (state._paths[node] for node in nodes):
            level = len(path) - 1
            if (row := state._rows.get(level)) is None:
                row = self._row(state, level, path)
                if self.spec.fusion == "none":
                    state._rows[level] = row
            rows.append(row)
        return torch.cat(rows)

    def _row(self, state: ParallelState, level: int, path: torch.Tensor) -> torch.Tensor:
        features = state._features
        if features is None:
            message = "nothing was read yet; call head.read(state, hidden, tokens) first"
            raise DraftError(message, slug="nothing_read")
        if self.attends:
            return self.logits(features[level : level + 1], level, state.context_tokens.rows)
        embeds: list[torch.Tensor] = []
        if self.spec.fusion != "none":
            embeds = list(self.shared.embed(path)[:, None, None])
        mixed = self.features(features[None], level, embeds=embeds)
        return self.logits(mixed[0], level, state.context_tokens.rows)
