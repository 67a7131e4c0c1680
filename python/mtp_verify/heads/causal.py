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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

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
from mtp_verify.heads.blocks.llama import RMSNorm, Rotary
from mtp_verify.heads.families import block_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.caches.dynamic import GrowingLayer
    from mtp_verify.heads.spec import HeadSpec

__all__ = ["CausalHead", "CausalModule", "CausalState"]


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
        self,
        hidden: torch.Tensor,
        embeds: torch.Tensor,
        inputs: BlockInputs,
        layers: Sequence[GrowingLayer | None],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the output head reads, and the next level's hidden state, both (B, n, d).

        `hidden` and `embeds`, those of the tokens after, are (B, n, d).
        """
        spec = self.spec
        embeds, normed = self.embed_norm(embeds), self.hidden_norm(hidden)
        residual = None
        if spec.fusion == "attention":
            x = torch.cat((embeds, normed), dim=-1)
            residual = normed if spec.norm_before_residual else hidden
        else:
            parts = (embeds, normed) if spec.fusion == "eh" else (normed, embeds)
            x = self.fusion(torch.cat(parts, dim=-1))
        for block, layer in zip(self.layers, layers, strict=True):
            x = block(x, inputs._replace(layer=layer, residual=residual))
            residual = None
        normed = self.norm(x)
        return normed, normed if spec.recycle == "post" else x


@dataclass
class _Node:
    """A node that was run.

    While levels move from module to module, a pair's token is further ahead than its hidden state:
    module m first reads the path's token at depth 1 in the row m positions before its newest. A
    node at depth d therefore runs the d newest rows of module d; a module that is used again runs
    one row a node.
    """

    depth: int
    # (k,) tokens of its path, its own last: as many as a module may read, at least that one.
    path: torch.Tensor
    # Drafted entries of its module that are on its path, its own included: (k,) int64 where only
    # the device knows whom it follows.
    entries: list[int] | torch.Tensor
    rows: torch.Tensor  # (1, k, d), what its own rows hand to the next module
    last: torch.Tensor  # (1, 1, d), the newest of them


@dataclass
class CausalState:
    """State of a sequence in a causal head."""

    layers: list[list[GrowingLayer]]  # keys and values by module and block
    num_true: list[int]  # by module: entries that come from true pairs
    first: int = 0  # position of the first pair's hidden state
    context_tokens: ContextTokens = field(default_factory=ContextTokens)
    _carry: list[torch.Tensor | None] = field(default_factory=list)
    _nodes: list[_Node] = field(default_factory=list)
    _latest: int = 0  # the first node of the last call

    @property
    def num_nodes(self) -> int:
        """Nodes run since the last `read`, the root included."""
        return len(self._nodes)

    @property
    def num_entries(self) -> list[int]:
        """Entries of each module, drafted ones included."""
        return [layers[0].get_seq_length() for layers in self.layers]

    def rollback(self) -> None:
        """Drop everything that was drafted; true pairs stay."""
        del self._nodes[1:]
        self._latest = 0
        for layers, num_true in zip(self.layers, self.num_true, strict=True):
            for layer in layers:
                if (surplus := layer.get_seq_length() - num_true) > 0:
                    layer.crop(-surplus)


class CausalHead(Head):
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
        super().__init__(spec)
        block = block_of(spec)
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
        width, eps = sizes.hidden_size, sizes.norm_eps
        self.embedding = nn.Embedding(sizes.vocab_size, width) if spec.own_embedding else None
        layers = len(spec.aux_layers) if spec.feed == "aux" else 0
        self.features = nn.Linear(layers * width, width, bias=False) if layers else None
        widths = {"all": [layers * width], "each": [width] * layers, "none": []}
        self.feature_norms = nn.ModuleList(
            RMSNorm(wide, eps) for wide in widths[spec.feature_norm if layers else "none"]
        )
        self.levels = nn.ModuleList(CausalModule(spec, model) for _ in range(spec.num_modules))
        if block.needs_target:
            made: Any = self.levels[0]
            self.choose(sizes=dataclasses.replace(sizes, window=made.layers[0].window))
        self.rotary: Rotary | None = Rotary(sizes) if block.uses_rotary else None
        if model is not None:
            self.attach(model)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return embeddings of tokens, the head's own or the target's."""
        return (self.shared.embed if self.embedding is None else self.embedding)(tokens)

    def fuse_features(self, hidden: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return one hidden state (..., d) made of those of `hidden_layers`."""
        if self.features is None:
            return hidden[0]
        if self.spec.feature_norm == "each":
            hidden = [norm(h) for norm, h in zip(self.feature_norms, hidden, strict=True)]
        joined = torch.cat(tuple(hidden), dim=-1)
        if self.spec.feature_norm == "all":
            joined = self.feature_norms[0](joined)
        fused: torch.Tensor = self.features(joined)
        return fused

    def forward(
        self,
        hidden: torch.Tensor,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        level: int = 0,
        layers: Sequence[GrowingLayer | None] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one level over pairs, in training and drafting alike.

        Args:
            hidden: (B, n, d), for level 0 from `fuse_features`, else from the level before.
            tokens: (B, n) int64, the token after each hidden state.
            positions: (B, n), of the hidden states in level 0 and one more for each further level.
            mask: broadcastable to (B, heads, n, keys), True where visible; None shows all.
            level: of the draft; from the last module on it is used again.
            layers: keys and values of each block that are extended, or None.

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
        inputs, layers = BlockInputs(positions, rotation, mask), layers or [None] * spec.num_layers
        output: tuple[torch.Tensor, torch.Tensor] = module(hidden, embeds, inputs, layers)
        return output

    def new_state(self) -> CausalState:
        """See `Head.new_state`."""
        levels: Any = self.levels
        layers = [[block.new_layer() for block in level.layers] for level in levels]
        count = self.spec.num_modules
        return CausalState(layers, [0] * count, _carry=[None] * count)

    def read(
        self,
        state: CausalState,
        hidden: Sequence[torch.Tensor],
        tokens: torch.Tensor | Sequence[int],
    ) -> torch.Tensor:
        """See `Head.read`.

        Module m lags module m - 1 by one token: its last pair takes the root's token too, with
        the hidden state that module m - 1 gave at the position before.
        """
        words, tokens = tokens, as_tokens(tokens, hidden)
        check_pairs(self.spec, hidden, tokens)
        state.rollback()
        self.observe_tokens(state.context_tokens, words)
        passed, window = self.fuse_features(hidden)[None], self.spec.known_sizes.window
        for module in range(self.spec.num_modules):
            if not (count := passed.shape[1]):
                break
            past = state.num_true[module]
            positions = torch.arange(past, past + count, device=passed.device) + state.first
            see_all = count == 1 and window is None
            mask = None if see_all else causal_mask(past, count, window, passed.device)
            read = tokens[None, tokens.shape[0] - count :]
            places = (positions + module)[None]
            output, recycled = self(passed, read, places, mask, module, state.layers[module])
            state.num_true[module] = past + count
            if module == 0:
                logits = self.logits(output[:, -1:], 0, state.context_tokens.rows)[0]
                state._nodes = [_Node(0, tokens[:0], [], recycled[:, :0], recycled[:, -1:])]
            carry = state._carry[module]
            state._carry[module] = recycled[:, -1:]
            if module + 1 < self.spec.num_modules:
                passed = recycled if carry is None else torch.cat((carry, recycled), dim=1)
                passed = passed[:, :-1]
        return logits

    def step(
        self, state: CausalState, parents: Sequence[int] | torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        """See `Head.step`; nodes of several levels may come together."""
        nodes = state._nodes
        check_parents(parents, len(nodes))
        if isinstance(parents, torch.Tensor):
            followed = _gather(nodes[state._latest :], parents)
        else:
            followed = [nodes[parent] for parent in parents]
        last = self.spec.num_modules - 1
        modules = [min(node.depth + 1, last) for node in followed]
        if not followed:
            message = "tokens: found none, wanted at least one to run"
            raise DraftError(message, slug="shape_mismatch")
        order: list[int] = []
        fresh: list[_Node] = []
        found: list[torch.Tensor] = []
        for module in sorted(set(modules)):
            mine = [index for index, other in enumerate(modules) if other == module]
            above = [followed[index] for index in mine]
            words = [tokens[index : index + 1] for index in mine]
            rows, run = self._run(state, module, above, words)
            order += mine
            fresh += run
            found.append(rows)
        back = sorted(range(len(order)), key=order.__getitem__)
        state._latest = len(nodes)
        nodes.extend(fresh[place] for place in back)
        return found[0] if len(found) == 1 else torch.cat(found)[back]

    def _run(
        self, state: CausalState, module: int, above: Sequence[_Node], words: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, list[_Node]]:
        """Run tokens (1,) below nodes of one module; return their logits, and the new nodes."""
        true = state.num_true[module]
        past = state.layers[module][0].get_seq_length()
        hidden: list[torch.Tensor] = []
        tokens: list[torch.Tensor] = []
        paths: list[torch.Tensor] = []
        places: list[int] = []
        seen: list[Any] = []
        ends: list[int] = []
        for node, word in zip(above, words, strict=True):
            rows, entries, depth = node.last, node.entries, node.depth + 1
            # Modules that are used again read one token; those before them the whole path.
            paths.append(word if depth >= self.spec.num_modules else torch.cat((node.path, word)))
            if depth == module:
                carry, entries = state._carry[module - 1], []
                rows = node.rows if carry is None else torch.cat((carry, node.rows), dim=1)
            count = rows.shape[1]
            hidden.append(rows)
            tokens.append(paths[-1][-count:])
            # The root's pair is at the last true position of module 0.
            newest = state.first + state.num_true[0] - 1 + depth
            places += range(newest - count + 1, newest + 1)
            for _ in range(count):
                own = past - true + len(seen)
                if isinstance(entries, torch.Tensor):
                    entries = torch.cat((entries, entries.new_full((1,), own)))
                else:
                    entries = [*entries, own]
                seen.append(entries)
            ends.append(len(seen))
        device, mask = hidden[0].device, self._tree_mask(state, module, seen, places)
        mask = None if mask is None else mask.to(device)
        ids, positions = torch.cat(tokens)[None], torch.tensor([places], device=device)
        output, recycled = self(
            torch.cat(hidden, dim=1), ids, positions, mask, module, state.layers[module]
        )
        fresh: list[_Node] = []
        for node, path, rows, end in zip(above, paths, hidden, ends, strict=True):
            own = recycled[:, end - rows.shape[1] : end]
            fresh.append(_Node(node.depth + 1, path, seen[end - 1], own, own[:, -1:]))
        last = output if len(ends) == len(seen) else output[:, [end - 1 for end in ends]]
        return self.logits(last, module, state.context_tokens.rows)[0], fresh

    def _tree_mask(
        self, state: CausalState, module: int, seen: list[Any], places: list[int]
    ) -> torch.Tensor | None:
        past, count = state.layers[module][0].get_seq_length(), len(seen)
        true, window = state.num_true[module], self.spec.known_sizes.window
        if window is None and all(len(entries) == past + count - true for entries in seen):
            return None
        # On the host: a few rows are filled there before an operator of a device has started.
        visible = np.zeros((count, past + count), bool)
        visible[:, :true] = True
        if window is not None:
            keys = np.arange(true) + (state.first + module)
            visible[:, :true] = keys > np.array(places)[:, None] - window
        inside = seen if window is None else [entries[-window:] for entries in seen]
        if isinstance(seen[0], torch.Tensor):
            columns = true + torch.stack(inside)
            mask = torch.from_numpy(visible).to(columns.device)
            return mask.scatter_(1, columns, torch.ones_like(columns, dtype=torch.bool))[None, None]
        for row, entries in enumerate(inside):
            visible[row, [true + entry for entry in entries]] = True
        return torch.from_numpy(visible[None, None])


def _gather(nodes: Sequence[_Node], index: torch.Tensor) -> list[_Node]:
    """Return for each of (n,) numbers, which the host does not read, a node like that one."""
    entries = [
        torch.as_tensor(node.entries, dtype=torch.int64, device=index.device) for node in nodes
    ]
    fields = [
        [node.path for node in nodes],
        entries,
        [node.rows for node in nodes],
        [node.last for node in nodes],
    ]
    parts = [torch.stack(values)[index].unbind() for values in fields]
    return [_Node(nodes[0].depth, *own) for own in zip(*parts, strict=True)]
