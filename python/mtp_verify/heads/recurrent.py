"""`RecurrentHead`: a state that goes from token to token, without attention.

MLP speculators add the state, projected, and the token's embedding; Arctic's LSTM has gates made of
the same sum. The first state is the target's hidden state.

References:
    MLP speculators, arXiv 2404.19124; Arctic's speculators, snowflakedb/ArcticInference.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify.errors import DraftError, ParamsError
from mtp_verify.heads.base import ContextTokens, Head, check_parents, checked_pairs
from mtp_verify.heads.blocks.recurrent import RecurrentCell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.heads.spec import HeadSpec

__all__ = ["RecurrentHead", "RecurrentState"]


@dataclass
class RecurrentState:
    """State of a sequence in a recurrent head."""

    num_true: int = 0  # pairs read
    first: int = 0  # position of the first pair's hidden state
    context_tokens: ContextTokens = field(default_factory=ContextTokens)
    nodes: list[torch.Tensor] = field(default_factory=list)  # (1, width) after each
    depths: list[int] = field(default_factory=list)
    latest: int = 0  # the first node of the last call

    @property
    def num_nodes(self) -> int:
        """Nodes run since the last `read`, the root included."""
        return len(self.nodes)


class RecurrentHead(Head):
    """A head whose levels read the state of the level before and one token.

    `spec` has sizes; one that is not that of a recurrent head raises a ParamsError.
    """

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__(spec)
        if spec.kind != "recurrent" or spec.block != RecurrentCell.kind:
            message = f"{spec.family} is not a recurrent head"
            raise ParamsError(message, slug="bad_head_spec")
        # Levels that share all weights differ in the first projection alone.
        count = min(2, spec.num_modules) if spec.is_tied else spec.num_modules
        self.levels = torch.nn.ModuleList(RecurrentCell(spec, index) for index in range(count))

    def new_state(self) -> RecurrentState:
        """See `Head.new_state`."""
        return RecurrentState()

    def advance(
        self, state: torch.Tensor, tokens: torch.Tensor, level: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (..., V) and states (..., width) after tokens (...) of a level.

        `state` (..., width) is that of the level before, or for level 0 the target's hidden state.
        """
        cells: Sequence[Any] = [*self.levels]
        cell: RecurrentCell = cells[min(level, len(cells) - 1)]
        whole: RecurrentCell = cells[0] if self.spec.is_tied else cell
        after = whole.advance(state, tokens, cell.state, is_first=level == 0)
        return whole.logits(after), after

    def read_batch(
        self,
        states: Sequence[RecurrentState],
        hidden: Sequence[Sequence[torch.Tensor]],
        tokens: Sequence[torch.Tensor | Sequence[int]],
    ) -> list[torch.Tensor]:
        """See `Head.read_batch`."""
        ids, counts = checked_pairs(self.spec, hidden, tokens)
        last = torch.cat([rows[0][-1:] for rows in hidden])
        logits, after = self.advance(last, torch.cat([own[-1:] for own in ids]), 0)
        for place, (state, count) in enumerate(zip(states, counts, strict=True)):
            state.num_true += count
            state.nodes, state.depths, state.latest = [after[place : place + 1]], [0], 0
        return list(torch.split(logits, 1))

    def step_batch(
        self,
        states: Sequence[RecurrentState],
        parents: Sequence[Sequence[int] | torch.Tensor],
        tokens: Sequence[torch.Tensor],
    ) -> list[torch.Tensor]:
        """See `Head.step_batch`; nodes of several levels may come together."""
        depths: list[int] = []
        followed: list[torch.Tensor] = []
        for state, above in zip(states, parents, strict=True):
            first = state.num_nodes
            check_parents(above, first)
            if isinstance(above, torch.Tensor):
                followed.append(torch.cat(state.nodes[state.latest :])[above])
                own = [state.depths[-1] + 1] * len(above)
            else:
                followed.append(torch.cat([state.nodes[parent] for parent in above]))
                own = [state.depths[parent] + 1 for parent in above]
            if max(own) >= self.spec.num_modules:
                message = f"node {first} has no level: the head has {self.spec.num_modules}"
                raise DraftError(message, slug="draft_too_deep", node=first)
            depths += own
        before, words = torch.cat(followed), torch.cat([*tokens])
        rows: list[torch.Tensor] = [words] * len(depths)
        nodes: list[torch.Tensor] = [words] * len(depths)
        for depth in sorted(set(depths)):
            mine = [index for index, other in enumerate(depths) if other == depth]
            some = slice(None) if len(mine) == len(depths) else mine
            logits, after = self.advance(before[some], words[some], depth)
            for place, index in enumerate(mine):
                rows[index], nodes[index] = logits[place : place + 1], after[place : place + 1]
        found, start = [], 0
        for state, above in zip(states, parents, strict=True):
            end = start + len(above)
            state.latest = state.num_nodes
            state.nodes += nodes[start:end]
            state.depths += depths[start:end]
            found.append(torch.cat(rows[start:end]))
            start = end
        return found
