"""`ParallelHead`: every level is predicted from one hidden state of the target.

Medusa (residual blocks), KOALA's deeper form of it (several of them), Meta's heads (one transformer
block each, over a shared trunk), and Hydra, whose blocks also read the tokens drafted so far.

References:
    Medusa, arXiv 2401.10774; KOALA, arXiv 2408.08146; Meta, arXiv 2404.19737; Hydra,
    arXiv 2402.05109.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from mtp_verify.caches.dynamic import GrowingLayer
from mtp_verify.errors import DraftError, ParamsError
from mtp_verify.heads.base import (
    ContextTokens,
    Head,
    check_parents,
    checked_pairs,
    make_output,
)  # fmt: skip
from mtp_verify.heads.blocks.base import BlockInputs, Segment, causal_mask
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
    features: torch.Tensor | None = None  # (J or 1, d) of the last pair
    rows: dict[int, torch.Tensor] = field(default_factory=dict)  # of levels whose nodes share one
    paths: list[torch.Tensor] = field(default_factory=list)  # (k,) tokens from the root down
    latest: int = 0  # the first node of the last call

    @property
    def num_nodes(self) -> int:
        """Nodes run since the last `read`, the root included."""
        return len(self.paths)

    def rollback(self) -> None:
        """Drop everything that was drafted; true pairs stay."""
        del self.paths[1:]
        self.latest = 0

    def named(self, parents: Sequence[int] | torch.Tensor) -> Sequence[int]:
        """Return nodes that parents are among, or the parents where the host knows them."""
        is_away = isinstance(parents, torch.Tensor)
        return range(self.latest, self.num_nodes) if is_away else cast("Sequence[int]", parents)

    def append(self, parents: Sequence[int] | torch.Tensor, tokens: torch.Tensor) -> Sequence[int]:
        """Give nodes with tokens (n,) below parents, as `Head.step` takes them, their numbers."""
        first = self.num_nodes
        above: Any = [self.paths[parent] for parent in self.named(parents)]
        if isinstance(parents, torch.Tensor):
            above = torch.stack(above)[parents]
        words = zip(above, torch.split(tokens, 1), strict=True)
        self.latest = first
        self.paths += [torch.cat(pair) for pair in words]
        return range(first, self.num_nodes)

    def level_features(self, level: int) -> torch.Tensor:
        """Return (1, d), what a level makes its row of."""
        features = self.features
        if features is None:
            message = "nothing was read yet; call head.read(state, hidden, tokens) first"
            raise DraftError(message, slug="nothing_read")
        return features if len(features) == 1 else features[level : level + 1]


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
        mask: torch.Tensor | None = None,
        segments: Sequence[Segment] = (),
    ) -> torch.Tensor:
        """Return hidden states (B, n, d) as the levels read them, in training and drafting alike.

        The other arguments are those of a block; without a block before the levels, `hidden`.
        """
        if self.prefix is None or self.rotary is None:
            return hidden
        rotation = self.rotary(positions, hidden.dtype)
        mixed: torch.Tensor = self.prefix(hidden, BlockInputs(positions, rotation, mask, segments))
        normed: torch.Tensor = self.prefix_norm(mixed)
        return normed

    def features(
        self,
        hidden: torch.Tensor,
        level: int,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        embeds: Sequence[torch.Tensor] = (),
        segments: Sequence[Segment] = (),
    ) -> torch.Tensor:
        """Return what the output head of a level reads, in training and drafting alike.

        Args:
            hidden: (B, n, d), of `prefixed`.
            level: from 0; its row at position i predicts the token at i + 2 + level.
            positions: (B, n), for transformer blocks.
            mask: broadcastable to (B, heads, n, keys), for transformer blocks.
            embeds: for Hydra the embeddings (B, n, d) of the tokens at i + 1 ... i + 1 + level.
            segments: whose the rows are, and what they see, in place of the mask, where keys and
                values are kept; B is 1 where there are several.

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
        for index, block in enumerate(module.layers):
            x = block(x, BlockInputs(positions, rotation, mask, segments, index))
        return x

    def output_input(self, features: torch.Tensor) -> torch.Tensor:
        """See `Head.output_input`: Meta's heads end before the target's final norm."""
        if self.attends and self.shared.norm is not None:
            features = self.shared.norm(features)
        return features

    def new_state(self) -> ParallelState:
        """See `Head.new_state`."""
        count = self.spec.num_layers if self.attends else 0
        return ParallelState([[GrowingLayer() for _ in range(count)] for _ in self.levels])

    def read_batch(
        self,
        states: Sequence[ParallelState],
        hidden: Sequence[Sequence[torch.Tensor]],
        tokens: Sequence[torch.Tensor | Sequence[int]],
    ) -> list[torch.Tensor]:
        """See `Head.read_batch`."""
        ids, counts = checked_pairs(self.spec, hidden, tokens)
        for state, own in zip(states, tokens, strict=True):
            state.rollback()
            self.observe_tokens(state.context_tokens, own)
            state.rows.clear()
        if self.rotary is None:
            for state, rows in zip(states, hidden, strict=True):
                state.features = rows[0][-1:]
        else:
            self._read_blocks(states, torch.cat([rows[0] for rows in hidden])[None], counts)
        for state, count, own in zip(states, counts, ids, strict=True):
            state.num_true += count
            state.paths = [own[-1:]]
        return self._rows_of(states, [[0] for _ in states])

    def _read_blocks(
        self, states: Sequence[ParallelState], stream: torch.Tensor, counts: Sequence[int]
    ) -> None:
        """Run the block before all levels, and theirs, over true pairs (1, n, d) of sequences."""
        device, window = stream.device, self.spec.known_sizes.window
        pairs = list(zip(states, counts, strict=True))
        starts = [state.num_true + state.first for state in states]
        places = [
            torch.arange(start, start + count, device=device)
            for start, count in zip(starts, counts, strict=True)
        ]
        positions = torch.cat(places)[None]
        masks = [causal_mask(state.num_true, count, window, device) for state, count in pairs]

        def segments(layers: Sequence[Sequence[GrowingLayer]]) -> list[Segment]:
            return [Segment(*own) for own in zip(counts, masks, layers, strict=True)]

        stream = self.prefixed(stream, positions, segments=segments([[s.prefix] for s in states]))
        levels = [stream] * (not self.attends)
        for level in range(len(self.levels) * self.attends):
            own = segments([state.layers[level] for state in states])
            levels.append(self.features(stream, level, positions, segments=own))
        rows = [torch.split(found[0], [*counts]) for found in levels]
        for state, *last in zip(states, *rows, strict=True):
            state.features = torch.cat([own[-1:] for own in last])

    def step_batch(
        self,
        states: Sequence[ParallelState],
        parents: Sequence[Sequence[int] | torch.Tensor],
        tokens: Sequence[torch.Tensor],
    ) -> list[torch.Tensor]:
        """See `Head.step_batch`."""
        for state, above in zip(states, parents, strict=True):
            self._check_step(state, above)
        nodes = [
            state.append(above, words)
            for state, above, words in zip(states, parents, tokens, strict=True)
        ]
        return self._rows_of(states, nodes)

    def _check_step(self, state: ParallelState, parents: Sequence[int] | torch.Tensor) -> None:
        check_parents(parents, state.num_nodes)
        for parent in state.named(parents):
            if len(state.paths[parent]) >= len(self.levels):
                message = f"node {parent} has no level below it: the head has {len(self.levels)}"
                raise DraftError(message, slug="draft_too_deep", node=parent)

    def _rows_of(
        self, states: Sequence[ParallelState], nodes: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        """Return logits after nodes; a row that all of a level share is computed once."""
        is_shared = self.spec.fusion == "none"
        # What is computed: of each level the paths, or one of them where they share their row.
        wanted: dict[int, list[tuple[ParallelState, torch.Tensor]]] = {}
        for state, own in zip(states, nodes, strict=True):
            seen: set[int] = set(state.rows)
            for path in (state.paths[node] for node in own):
                level = len(path) - 1
                if not (is_shared and level in seen):
                    seen.add(level)
                    wanted.setdefault(level, []).append((state, path))
        found = {level: iter(self._rows(level, paths)) for level, paths in wanted.items()}
        rows = []
        for state, own in zip(states, nodes, strict=True):
            mine = []
            for level in (len(state.paths[node]) - 1 for node in own):
                row = state.rows.get(level)
                if row is None:
                    row = next(found[level])
                    if is_shared:
                        state.rows[level] = row
                mine.append(row)
            rows.append(torch.cat(mine))
        return rows

    def _rows(
        self, level: int, paths: Sequence[tuple[ParallelState, torch.Tensor]]
    ) -> list[torch.Tensor]:
        """Return the logits (1, D + E) of a level after each path."""
        features = [state.level_features(level) for state, _ in paths]
        contexts = [state.context_tokens for state, _ in paths]
        if not self.attends:
            embeds: list[torch.Tensor] = []
            if self.spec.fusion != "none":
                words = torch.stack([path for _, path in paths])
                embeds = list(self.shared.embed(words)[None].unbind(2))
            mixed = self.features(torch.cat(features)[None], level, embeds=embeds)
            features = list(torch.split(mixed[0], 1))
        return self.logits_batch(features, level, contexts)
