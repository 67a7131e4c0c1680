"""`BlockHead`: one forward over a block of slots gives the rows of all levels.

The first slot holds the root's token, the others a mask (or each a row of its own); they see what
the target's hidden states say of the text before the root. A row then depends on its depth alone,
or is corrected by the tokens drafted above it: each path below the root has its own then.

References:
    DFlash, arXiv 2602.06036; DSpark, arXiv 2607.05147; Domino, arXiv 2605.29707; JetSpec,
    arXiv 2606.18394; P-EAGLE, arXiv 2602.01469.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mtp_verify.errors import DraftError, ParamsError
from mtp_verify.heads.base import ContextTokens, check_parents, checked_pairs
from mtp_verify.heads.blocks.base import BlockInputs, Segment
from mtp_verify.heads.blocks.llama import Rotary
from mtp_verify.heads.blocks.slots import SlotBlock
from mtp_verify.heads.causal import CausalModule
from mtp_verify.heads.correction import FeatureCorrection, make_correction
from mtp_verify.heads.families import block_of
from mtp_verify.heads.features import FeatureHead

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.caches.dynamic import GrowingLayer
    from mtp_verify.heads.spec import HeadSpec

__all__ = ["BlockHead", "BlockState"]


@dataclass
class BlockState:
    """State of a sequence in a block head."""

    layers: list[GrowingLayer]  # keys and values by block
    num_true: int = 0  # pairs read
    first: int = 0  # position of the first pair's hidden state
    context_tokens: ContextTokens = field(default_factory=ContextTokens)
    # Of the slots that predict something: what their rows are made of, and their rows before they
    # are corrected, (R, d) and (R, D + E).
    features: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    depths: list[int] = field(default_factory=list)  # of the nodes
    kept: list[torch.Tensor] = field(default_factory=list)  # (1, state_size) behind each
    latest: int = 0  # the first node of the last call

    @property
    def num_nodes(self) -> int:
        """Nodes run since the last `read`, the root included."""
        return len(self.depths)


class BlockHead(FeatureHead):
    """A head that drafts a block at once.

    Where hidden states and embeddings are fused (P-EAGLE), pairs that are true pass through the
    layers as in EAGLE-3, and the slots behind the first hold a learned hidden state beside the
    mask; else the layers see keys and values of the hidden states (DFlash).

    Training takes `context`, `slot_inputs` and the layers' `over_text`, as drafting does.

    `spec` has sizes; one that is not that of a block head raises a ParamsError.
    """

    def __init__(self, spec: HeadSpec) -> None:
        _check(spec)
        super().__init__(spec)
        sizes = spec.known_sizes
        self.has_pairs = spec.fusion == "attention"
        self.levels = nn.ModuleList([CausalModule(spec)])
        self.correction = make_correction(spec)
        self.rotary = Rotary(sizes)
        self.slots: nn.Embedding | None = None
        if spec.mask_token is None:
            self.slots = nn.Embedding(spec.block_size, sizes.hidden_size)
        # Of the output head times the correction, and the weights that it was computed from.
        self._corrections: tuple[object, torch.Tensor] | None = None
        self.mask_hidden: nn.Parameter | None = None
        if self.has_pairs:
            width = len(spec.aux_layers) * sizes.hidden_size
            self.mask_hidden = nn.Parameter(torch.zeros(1, 1, width))

    @property
    def num_rows(self) -> int:
        """Slots that predict a token."""
        return self.spec.block_size - (self.spec.offset == "place")

    @property
    def max_depth(self) -> int:
        """See `Head.max_depth`."""
        return self.num_rows

    def new_state(self) -> BlockState:
        """See `Head.new_state`."""
        module: Any = self.levels[0]
        return BlockState([block.new_layer() for block in module.layers])

    def read_batch(
        self,
        states: Sequence[BlockState],
        hidden: Sequence[Sequence[torch.Tensor]],
        tokens: Sequence[torch.Tensor | Sequence[int]],
    ) -> list[torch.Tensor]:
        """See `Head.read_batch`; the block of each sequence is run too."""
        ids, counts = checked_pairs(self.spec, hidden, tokens)
        for state, own in zip(states, tokens, strict=True):
            self.observe_tokens(state.context_tokens, own)
        joined = [torch.cat(layer)[None] for layer in zip(*hidden, strict=True)]
        if self.has_pairs:
            slots = self._run_pairs(states, joined, ids, counts)
        else:
            context = self._remember(states, joined, counts)
            last = torch.cat([own[-1:] for own in torch.split(context[0], counts)])
            slots = self._run_slots(states, last, torch.cat([own[-1:] for own in ids]))
        contexts = [state.context_tokens for state in states]
        skipped = self.spec.block_size - self.num_rows
        read = [own[skipped:] for own in slots]
        rows = self.logits_batch(read, 0, contexts)
        for state, features, own in zip(states, read, rows, strict=True):
            state.features, state.rows = features, own
            state.depths, state.kept, state.latest = [], [], 0
        anchors = torch.cat([own[-1:] for own in ids])
        before = self._first_states(anchors, slots)
        return self._corrected(states, [[0] for _ in states], anchors, before)

    def context(self, hidden: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return what the layers see of hidden states (..., d) of `hidden_layers`."""
        module: Any = self.levels[0]
        found: torch.Tensor = module.hidden_norm(self.fuse_features(hidden))
        return found

    def slot_inputs(self, last: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
        """Return the inputs (..., S, d) of the blocks behind roots (...) int64.

        `last` (..., d) is of `context`, at the position before each root.
        """
        module: Any = self.levels[0]
        embeds = module.embed_norm(self.embed(anchors))
        if self.slots is None:
            mask = self.embed(anchors.new_full((1,), self.spec.mask_token or 0))
            masks = mask.expand(*embeds.shape[:-1], self.spec.block_size - 1, -1)
            return torch.cat((embeds[..., None, :], masks), dim=-2)
        parts = (embeds, last) if self.spec.fusion == "eh" else (last, embeds)
        joined: torch.Tensor = module.fusion(torch.cat(parts, dim=-1))
        return joined[..., None, :] + self.slots.weight

    def _remember(
        self, states: Sequence[BlockState], hidden: Sequence[torch.Tensor], counts: Sequence[int]
    ) -> torch.Tensor:
        """Let all layers see hidden states of true pairs, one after the other in (1, n, d).

        Returns what they see.
        """
        module: Any = self.levels[0]
        context = self.context(hidden)
        starts = [state.num_true + state.first for state in states]
        inputs = self._inputs(starts, counts, context)
        segments = [
            Segment(count, None, state.layers) for count, state in zip(counts, states, strict=True)
        ]
        for index, block in enumerate(module.layers):
            block.remember(context, inputs._replace(segments=segments, block=index))
        for state, count in zip(states, counts, strict=True):
            state.num_true += count
        return context

    def _run_slots(
        self, states: Sequence[BlockState], last: torch.Tensor, anchors: torch.Tensor
    ) -> list[torch.Tensor]:
        """Return the features (S, d) of each sequence's slots; see `slot_inputs`."""
        module: Any = self.levels[0]
        x = self.slot_inputs(last, anchors).flatten(0, 1)[None]
        # The root stands behind the last hidden state that is known.
        starts = [state.num_true + state.first for state in states]
        counts = [self.spec.block_size] * len(states)
        inputs = self._inputs(starts, counts, x)
        for index, block in enumerate(module.layers):
            segments = [self._segment(state, counts[0], index, x.device) for state in states]
            x = block(x, inputs._replace(segments=segments, block=index))
        self._drop(states)
        return list(torch.split(module.norm(x)[0], counts))

    def _run_pairs(
        self,
        states: Sequence[BlockState],
        hidden: Sequence[torch.Tensor],
        ids: Sequence[torch.Tensor],
        counts: Sequence[int],
    ) -> list[torch.Tensor]:
        """Return the features (S, d) of each sequence's slots, the first one its last true pair."""
        module: Any = self.levels[0]
        behind = self.spec.block_size - 1
        mask: Any = self.mask_hidden
        masked = mask.expand(1, behind, -1).chunk(len(hidden), dim=-1)
        wide = [torch.split(rows, [*counts], dim=1) for rows in hidden]
        mixed = [
            torch.cat([part for own in rows for part in (own, slot)], dim=1)
            for rows, slot in zip(wide, masked, strict=True)
        ]
        fused, embeds = self.fuse_features(mixed), self.embed(self._with_masks(ids))[None]
        starts = [state.num_true + state.first for state in states]
        lengths = [count + behind for count in counts]
        inputs = self._inputs(starts, lengths, fused)
        segments = [
            self._segment(state, length, 0, fused.device)
            for state, length in zip(states, lengths, strict=True)
        ]
        output, _ = module(fused, embeds, inputs._replace(segments=segments))
        for state, count in zip(states, counts, strict=True):
            state.num_true += count
        self._drop(states)
        return [
            own[count - 1 :]
            for own, count in zip(torch.split(output[0], lengths), counts, strict=True)
        ]

    def _with_masks(self, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the tokens of each sequence with the masks of its block behind them."""
        mask: Any = self.spec.mask_token
        masks = tokens[0].new_full((self.spec.block_size - 1,), mask)
        return torch.cat([part for own in tokens for part in (own, masks)])

    def _inputs(
        self, starts: Sequence[int], counts: Sequence[int], like: torch.Tensor
    ) -> BlockInputs:
        """Return a block's inputs for rows of sequences from these positions on."""
        places = [
            torch.arange(start, start + count, device=like.device)
            for start, count in zip(starts, counts, strict=True)
        ]
        positions = torch.cat(places)[None]
        return BlockInputs(positions, self.rotary(positions, like.dtype))

    def _segment(self, state: BlockState, count: int, layer: int, device: torch.device) -> Segment:
        """Return what the next `count` rows of a sequence see in a layer.

        That are the entries before them, and each other as the spec says.
        """
        spec = self.spec
        window = spec.windows[layer] if spec.windows else spec.known_sizes.window or 0
        is_sliding = spec.in_block == "sliding" and window > 0
        is_causal = self.has_pairs or spec.in_block == "causal" or is_sliding
        past = state.layers[layer].get_seq_length()
        if not is_causal and not window:
            return Segment(count, None, state.layers)
        rows = torch.arange(past, past + count, device=device)[:, None]
        keys = torch.arange(past + count, device=device)[None]
        visible = keys <= rows if is_causal else torch.ones_like(keys <= rows)
        if window:
            visible &= keys > rows - window
        return Segment(count, visible[None, None], state.layers)

    def _drop(self, states: Sequence[BlockState]) -> None:
        """Drop what the layers keep of slots; true pairs stay."""
        for state in states:
            for layer in state.layers:
                if (surplus := layer.get_seq_length() - state.num_true) > 0:
                    layer.crop(-surplus)

    def _first_states(self, anchors: torch.Tensor, slots: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the correction's state (n, state_size) before the first row of each sequence."""
        correction, size = self.correction, 0
        if correction is not None:
            size = correction.state_size
        state = slots[0].new_zeros(len(slots), size)
        if self.spec.correction == "rnn" and self.spec.offset == "place":
            # The slot that predicts nothing was run in training too.
            first = torch.stack([own[0] for own in slots])
            _, state = self._correct(anchors, first, state)
        return state

    def _correct(
        self, tokens: torch.Tensor, features: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        correction: Any = self.correction
        words = self.shared.embed(tokens) if correction.reads_embeddings else tokens
        found: tuple[torch.Tensor, torch.Tensor] = correction(words, features, state)
        return found

    def step_batch(
        self,
        states: Sequence[BlockState],
        parents: Sequence[Sequence[int] | torch.Tensor],
        tokens: Sequence[torch.Tensor],
    ) -> list[torch.Tensor]:
        """See `Head.step_batch`; nodes of several levels may come together."""
        depths: list[list[int]] = []
        before: list[torch.Tensor] = []
        for state, above in zip(states, parents, strict=True):
            check_parents(above, state.num_nodes)
            if isinstance(above, torch.Tensor):
                _known(state.rows)
                own = [state.depths[-1] + 1] * len(above)
                before.append(torch.cat(state.kept[state.latest :])[above])
            else:
                own = [state.depths[parent] + 1 for parent in above]
                before.append(torch.cat([state.kept[parent] for parent in above]))
            for place, depth in enumerate(own):
                if depth >= self.num_rows:
                    node = state.num_nodes + place
                    message = f"node {node} has no level: the head has {self.num_rows}"
                    raise DraftError(message, slug="draft_too_deep", node=node)
            depths.append(own)
        return self._corrected(states, depths, torch.cat([*tokens]), torch.cat(before))

    def _corrected(
        self,
        states: Sequence[BlockState],
        depths: Sequence[Sequence[int]],
        tokens: torch.Tensor,
        before: torch.Tensor,
    ) -> list[torch.Tensor]:
        """Add nodes of these depths to the sequences and return the rows behind them.

        `tokens` (n,) are those of all nodes, `before` (n, state_size) what their parents keep.
        """
        counts = [len(own) for own in depths]
        places = [torch.tensor(own, device=tokens.device) for own in depths]
        pairs = list(zip(states, places, strict=True))
        rows = [_known(state.rows)[own] for state, own in pairs]
        after = before
        if self.correction is not None:
            features = torch.cat([_known(state.features)[own] for state, own in pairs])
            is_plain = torch.cat(places) < self.spec.num_plain if self.spec.num_plain else None
            rows, after = self._correct_rows(states, rows, features, tokens, before, is_plain)
        for state, own, kept in zip(states, depths, torch.split(after, counts), strict=True):
            state.latest = state.num_nodes
            state.depths += own
            state.kept += torch.split(kept, 1)
        return rows

    def _correct_rows(
        self,
        states: Sequence[BlockState],
        rows: Sequence[torch.Tensor],
        features: torch.Tensor,
        tokens: torch.Tensor,
        before: torch.Tensor,
        is_plain: torch.Tensor | None,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return the rows (n, D + E) of sequences with their corrections, and what nodes keep.

        Rows that `is_plain` (n,) names stay as they are.
        """
        correction, after, changes = self.correction, before, None
        counts = [len(own) for own in rows]
        if isinstance(correction, FeatureCorrection):
            latent = correction.latent(self.shared.embed(tokens), features)
            added = nn.functional.linear(latent, self._correction_rows(correction))
            changes = torch.split(correction.output(latent), counts)
        else:
            added, after = self._correct(tokens, features, before)
        if is_plain is not None:
            added = added.masked_fill(is_plain[:, None], 0.0)
        found = []
        for place, (own, more) in enumerate(zip(rows, torch.split(added, counts), strict=True)):
            parts = [own[:, : more.shape[1]] + more]
            if own.shape[1] > more.shape[1]:
                extra, context = own[:, more.shape[1] :], states[place].context_tokens.rows
                if changes is not None and context is not None:
                    extra = extra + nn.functional.linear(changes[place], context)
                parts.append(extra)
            found.append(torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0])
        return found, after

    def _correction_rows(self, correction: FeatureCorrection) -> torch.Tensor:
        """Return the output head's rows times the correction's last matrix, (D, rank)."""
        weight = correction.output.weight
        version = 0 if weight.is_inference() else weight._version
        key = id(weight), version, weight.dtype, weight.device, id(self.vocab), id(self.shared)
        if self._corrections is None or self._corrections[0] != key:
            tokens = slice(None) if self.vocab is None else self.vocab
            rows = self.shared.output_weight.detach()[tokens] @ weight.detach()
            self._corrections = key, rows
        return self._corrections[1]


def _check(spec: HeadSpec) -> None:
    """Refuse what is not the spec of a block head: ParamsError names the field."""
    block, vocab_size = block_of(spec), spec.known_sizes.vocab_size
    has_rows = spec.mask_token is None  # of its own for each slot
    is_known = spec.kind == "block" and spec.feed == "aux" and bool(spec.aux_layers)
    message = None
    if not is_known or not block.uses_rotary or has_rows != (spec.fusion in ("eh", "he")):
        message = f"{spec.family} is not a block head with aux_layers and a mask_token"
    elif spec.fusion != "attention" and not issubclass(block, SlotBlock):
        message = f"block: found {spec.block!r}, wanted {SlotBlock.kind!r}"
    elif spec.mask_token is not None and spec.mask_token >= vocab_size:
        message = f"mask_token: found {spec.mask_token}, wanted a token below {vocab_size}"
    elif len(spec.windows) not in (0, spec.num_layers) or min(spec.windows, default=0) < 0:
        wanted = f"a width >= 0 for each of {spec.num_layers} layers"
        message = f"windows: found {spec.windows}, wanted {wanted}"
    elif spec.block_size - (spec.offset == "place") < 1:
        message = f"block_size: found {spec.block_size}, wanted more: no slot predicts a token"
    if message is not None:
        raise ParamsError(message, slug="bad_head_spec")


def _known(tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        message = "nothing was read yet; call head.read(state, hidden, tokens) first"
        raise DraftError(message, slug="nothing_read")
    return tensor
