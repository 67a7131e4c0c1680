"""`CausalHead`: DeepSeek's MTP modules, EAGLE and EAGLE-3, which differ in fields of `HeadSpec`.

A module fuses a hidden state with the embedding of the token that follows it, runs one or more
transformer blocks over such pairs, and predicts the token after that. Its output takes the place of
the target's next hidden state, so that a level can be drafted below it.

References:
    DeepSeek-V3, arXiv 2412.19437, section 2.2; EAGLE, arXiv 2401.15077; EAGLE-3, arXiv 2503.01840;
    KOALA (several blocks), arXiv 2408.08146.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mtp_verify.errors import DraftError, ParamsError
from mtp_verify.heads.base import check_parents, checked_pairs, make_output
from mtp_verify.heads.blocks.base import BlockInputs, Segment, causal_mask
from mtp_verify.heads.blocks.llama import RMSNorm, Rotary
from mtp_verify.heads.causal_state import CausalState, Node, Run
from mtp_verify.heads.families import block_of
from mtp_verify.heads.features import FeatureHead
from mtp_verify.heads.fused import FusedModule
from mtp_verify.models.cpu.fused import fused_part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.heads.spec import HeadSpec

__all__ = ["CausalHead", "CausalModule"]


class CausalModule(nn.Module):
    """One module: pairs of a hidden state and an embedding in, a hidden state out."""

    def __init__(self, spec: HeadSpec, model: Any | None = None) -> None:
        super().__init__()
        self.spec = spec
        width, eps = spec.known_sizes.hidden_size, spec.known_sizes.norm_eps
        plus_one = spec.norm_kind == "rms1p"

        def norm(*, wanted: bool) -> nn.Module:
            return RMSNorm(width, eps, plus_one=plus_one) if wanted else nn.Identity()

        self.embed_norm = norm(wanted=spec.embed_norm)
        self.hidden_norm = norm(wanted=spec.hidden_norm)
        self.fusion: nn.Module = nn.Identity()
        if spec.fusion in ("eh", "he"):
            self.fusion = nn.Linear(2 * width, width, bias=spec.fusion_bias)
        block = block_of(spec)
        self.layers = nn.ModuleList(block(spec, index, model) for index in range(spec.num_layers))
        self.norm = norm(wanted=spec.output_norm)
        self.output = make_output(spec)

    def forward(
        self, hidden: torch.Tensor, embeds: torch.Tensor, inputs: BlockInputs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the output head reads, and the next level's hidden state, both (B, n, d).

        `hidden` and `embeds`, those of the tokens after, are (B, n, d).
        """
        fused: FusedModule | None = fused_part(self)
        if fused is not None and fused.takes(hidden, embeds, inputs):
            return fused(hidden, embeds, inputs)
        spec = self.spec
        embeds, normed = self.embed_norm(embeds), self.hidden_norm(hidden)
        residual = None
        if spec.fusion == "attention":
            x = torch.cat((embeds, normed), dim=-1)
            residual = normed if spec.norm_before_residual else hidden
        else:
            parts = (embeds, normed) if spec.fusion == "eh" else (normed, embeds)
            x = self.fusion(torch.cat(parts, dim=-1))
        for index, block in enumerate(self.layers):
            x = block(x, inputs._replace(block=index, residual=residual))
            residual = None
        normed = self.norm(x)
        return normed, normed if spec.recycle == "post" else x

    def make_fused(self) -> FusedModule | None:
        """Return what `models.cpu.fused.fuse` runs few rows with, or None."""
        return FusedModule(self) if FusedModule.knows(self) else None


class CausalHead(FeatureHead):
    """A head whose levels see the tokens drafted before them.

    Level k + 1 of a draft uses module min(k, D - 1) of D modules. A module that is used again
    takes its own output for the next hidden state, at the next position.

    Args:
        spec: with sizes.
        model: the target, needed where `spec.block` is "target".

    Raises:
        UnsupportedModelError: a family that cannot be run; says why.
        ParamsError: a spec that is not one of a causal head.

    Example:
        >>> from mtp_verify.heads import Sizes, family
        >>> sizes = Sizes(hidden_size=8, vocab_size=16, intermediate_size=16, head_dim=8)
        >>> head = CausalHead(family("eagle").replace(sizes=sizes))
        >>> sum(p.numel() for p in head.parameters())
        776
    """

    def __init__(self, spec: HeadSpec, model: Any | None = None) -> None:
        block = block_of(spec)
        super().__init__(spec)
        is_known = spec.kind == "causal" and spec.fusion in ("eh", "he", "attention")
        if not is_known or not block.attends:
            message = f"{spec.family} is not a causal head with a supported fusion and attention"
            raise ParamsError(message, slug="bad_head_spec")
        if block.needs_target and model is None:
            what = "is made of the target's own kind of layer; give the target"
            message = f"a {spec.family} head {what}: CausalHead(spec, model)"
            raise ParamsError(message, slug="head_needs_target")
        if spec.feed == "aux" and not spec.aux_layers:
            message = 'feed "aux" needs aux_layers; those of EAGLE-3 are (2, L // 2, L - 3)'
            raise ParamsError(message, slug="bad_head_spec")
        sizes = spec.known_sizes
        self.levels = nn.ModuleList(CausalModule(spec, model) for _ in range(spec.num_modules))
        if block.needs_target:
            made: Any = self.levels[0]
            self.choose(sizes=dataclasses.replace(sizes, window=made.layers[0].window))
        self.rotary: Rotary | None = Rotary(sizes) if block.uses_rotary else None
        if model is not None:
            self.attach(model)

    def forward(
        self,
        hidden: torch.Tensor,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None = None,
        level: int = 0,
        segments: Sequence[Segment] = (),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one level over pairs, in training and drafting alike.

        Args:
            hidden: (B, n, d), for level 0 from `fuse_features`, else from the level before.
            tokens: (B, n) int64, the token after each hidden state.
            positions: (B, n), of the hidden states in level 0 and one more for each further level.
            mask: broadcastable to (B, heads, n, keys), True where visible; None shows all.
            level: of the draft; from the last module on it is used again.
            segments: whose the rows are, and what they see, in place of the mask, where keys and
                values are kept; B is 1 where there are several.

        Returns:
            (B, n, d) output, for `logits`, and (B, n, d) hidden state for the next level.
        """
        spec = self.spec
        module: nn.Module = self.levels[min(level, len(self.levels) - 1)]
        embeds = self.embed(tokens)
        if spec.zero_first and level == 0:
            embeds = embeds.masked_fill((positions == 0)[..., None], 0.0)
        if spec.pair_position == "token":
            positions = positions + 1
        rotation = None if self.rotary is None else self.rotary(positions, hidden.dtype)
        inputs = BlockInputs(positions, rotation, mask, segments)
        output: tuple[torch.Tensor, torch.Tensor] = module(hidden, embeds, inputs)
        return output

    def new_state(self) -> CausalState:
        """See `Head.new_state`."""
        levels: Any = self.levels
        layers = [[block.new_layer() for block in level.layers] for level in levels]
        count = self.spec.num_modules
        return CausalState(layers, [0] * count, carry=[None] * count)

    def read_batch(
        self,
        states: Sequence[CausalState],
        hidden: Sequence[Sequence[torch.Tensor]],
        tokens: Sequence[torch.Tensor | Sequence[int]],
    ) -> list[torch.Tensor]:
        """See `Head.read_batch`.

        Module m lags module m - 1 by one token: its last pair takes the root's token too, with
        the hidden state that module m - 1 gave at the position before.
        """
        ids, counts = checked_pairs(self.spec, hidden, tokens)
        for state, own in zip(states, tokens, strict=True):
            state.rollback()
            self.observe_tokens(state.context_tokens, own)
        fused = self.fuse_features([torch.cat(layer) for layer in zip(*hidden, strict=True)])
        passed = list(torch.split(fused[None], counts, dim=1))
        logits: list[torch.Tensor] = []
        for module in range(self.spec.num_modules):
            reading = [index for index, rows in enumerate(passed) if rows.shape[1]]
            if not reading:
                break
            mine = [states[index] for index in reading]
            rows = [passed[index] for index in reading]
            read = [ids[index][len(ids[index]) - passed[index].shape[1] :] for index in reading]
            places, segments = zip(
                *map(self._true_pairs, mine, rows, [module] * len(rows)), strict=True
            )
            outputs, found = self._run(module, rows, read, places, segments)
            if module == 0:
                contexts = [state.context_tokens for state in states]
                logits = self.logits_batch([output[0, -1:] for output in outputs], 0, contexts)
            for index, state, own, recycled in zip(reading, mine, read, found, strict=True):
                state.num_true[module] += len(own)
                if module == 0:
                    root = Node(0, own[:0], [], recycled[:, :0], recycled[:, -1:])
                    state.nodes = [root]
                carry = state.carry[module]
                state.carry[module] = recycled[:, -1:]
                joined = recycled if carry is None else torch.cat((carry, recycled), dim=1)
                passed[index] = joined[:, :-1]
        return logits

    def _true_pairs(
        self, state: CausalState, rows: torch.Tensor, module: int
    ) -> tuple[torch.Tensor, Segment]:
        """Return the positions of true pairs in a module, and what they see."""
        past, count, window = state.num_true[module], rows.shape[1], self.spec.known_sizes.window
        start = past + state.first + module
        positions = torch.arange(start, start + count, device=rows.device)
        see_all = count == 1 and window is None
        mask = None if see_all else partial(causal_mask, past, count, window, rows.device)
        paths = None if window is not None else [range(row + 1) for row in range(count)]
        return positions, Segment(count, mask, state.layers[module], num_true=past, paths=paths)

    def step_batch(
        self,
        states: Sequence[CausalState],
        parents: Sequence[Sequence[int] | torch.Tensor],
        tokens: Sequence[torch.Tensor],
    ) -> list[torch.Tensor]:
        """See `Head.step_batch`; nodes of several levels may come together."""
        for state, above in zip(states, parents, strict=True):
            check_parents(above, state.num_nodes)
            if not len(above):
                message = "tokens: found none, wanted at least one to run"
                raise DraftError(message, slug="shape_mismatch")
        followed = [state.followed(above) for state, above in zip(states, parents, strict=True)]
        last = self.spec.num_modules - 1
        modules = [[min(node.depth + 1, last) for node in nodes] for nodes in followed]
        # Of each sequence: which of its tokens a module ran, their nodes and their rows.
        made: list[list[tuple[list[int], list[Node], torch.Tensor]]] = [[] for _ in states]
        for module in sorted({module for own in modules for module in own}):
            runs: dict[int, Run] = {}
            mine = [[i for i, own in enumerate(taken) if own == module] for taken in modules]
            for index, places in enumerate(mine):
                if places:
                    nodes = [followed[index][place] for place in places]
                    words = [tokens[index][place : place + 1] for place in places]
                    runs[index] = Run(states[index], module, nodes, words)
            rows, recycled = self._run_nodes(module, list(runs.values()))
            for (index, run), own, handed in zip(runs.items(), rows, recycled, strict=True):
                made[index].append((mine[index], run.nodes(handed), own))
        return [_append(state, parts) for state, parts in zip(states, made, strict=True)]

    def _run_nodes(
        self, module: int, runs: Sequence[Run]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the logits of each run's nodes, and what their rows hand on."""
        device, window = runs[0].hidden.device, self.spec.known_sizes.window
        outputs, recycled = self._run(
            module,
            [run.hidden for run in runs],
            [run.tokens for run in runs],
            [torch.tensor([place for run in runs for place in run.places], device=device)],
            [run.segment(window) for run in runs],
        )
        last = [
            output[0]
            if len(run.ends) == output.shape[1]
            else output[0, [end - 1 for end in run.ends]]
            for output, run in zip(outputs, runs, strict=True)
        ]
        return self.logits_batch(last, module, [run.context for run in runs]), recycled

    def _run(
        self,
        module: int,
        hidden: Sequence[torch.Tensor],
        tokens: Sequence[torch.Tensor],
        positions: Sequence[torch.Tensor],
        segments: Sequence[Segment],
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Run rows of several sequences in one forward; return what `forward` does for each."""
        output, recycled = self(
            torch.cat([*hidden], dim=1),
            torch.cat([*tokens])[None],
            torch.cat([*positions])[None],
            level=module,
            segments=segments,
        )
        counts = [segment.num_rows for segment in segments]
        return list(torch.split(output, counts, dim=1)), list(torch.split(recycled, counts, dim=1))


def _append(
    state: CausalState, parts: Sequence[tuple[Sequence[int], Sequence[Node], torch.Tensor]]
) -> torch.Tensor:
    """Give the nodes that modules have run the next numbers, in their order; return their rows."""
    order = [place for places, _, _ in parts for place in places]
    back = sorted(range(len(order)), key=order.__getitem__)
    fresh = [node for _, nodes, _ in parts for node in nodes]
    state.latest = state.num_nodes
    state.nodes += [fresh[place] for place in back]
    rows = [own for _, _, own in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows)[back]
