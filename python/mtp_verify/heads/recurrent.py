"""`RecurrentHead`: a state that goes from token to token, without attention.

MLP speculators add the state, projected, and the token's embedding; Arctic's LSTM has gates made of
the same sum. The first state is the target's hidden state.

References:
    MLP speculators, arXiv 2404.19124; Arctic's speculators, snowflakedb/ArcticInference.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from mtp_verify.errors import DraftError, ParamsError
from mtp_verify.heads.base import ContextTokens, Head, as_tokens, check_pairs, check_parents
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
    _nodes: list[torch.Tensor] = field(default_factory=list)  # (1, width) after each
    _depths: list[int] = field(default_factory=list)
    _latest: int = 0  # the first node of the last call

    @property
    def num_nodes(self) -> int:
        """Nodes run since the last `read`, the root included."""
        return len(self._nodes)


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
        cell: RecurrentCell = self.levels[min(level, len(self.levels) - 1)]  # type: ignore[assignment]
        whole: RecurrentCell = self.levels[0] if self.spec.is_tied else cell  # type: ignore[assignment]
        after = whole.advance(state, tokens, cell.state, is_first=level == 0)
        return whole.logits(after), after

    def read(
        self,
        state: RecurrentState,
        hidden: Sequence[torch.Tensor],
        tokens: torch.Tensor | Sequence[int],
    ) -> torch.Tensor:
        """See `Head.read`."""
        tokens = as_tokens(tokens, hidden)
        state.num_true += check_pairs(self.spec, hidden, tokens)
        logits, after = self.advance(hidden[0][-1:], tokens[-1:], 0)
        state._nodes, state._depths, state._latest = [after], [0], 0
        return logits

    def step(
        self, state: RecurrentState, parents: Sequence[int] | torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        """See `Head.step`; nodes of several levels may come together."""
        first = len(state._nodes)
        check_parents(parents, first)
        if isinstance(parents, torch.Tensor):
            above = torch.cat(state._nodes[state._latest :])[parents]
            depths = [state._depths[-1] + 1] * len(tokens)
        else:
            above = torch.cat([state._nodes[parent] for parent in parents])
            depths = [state._depths[parent] + 1 for parent in parents]
        if max(depths) >= self.spec.num_modules:
            message = f"node {first} has no level: the head has {self.spec.num_modules}"
            raise DraftError(message, slug="draft_too_deep", node=first)
        rows: list[torch.Tensor] = [tokens] * len(depths)
        nodes: list[torch.Tensor] = [tokens] * len(depths)
        for depth in sorted(set(depths)):
            mine = [index for index, other in enumerate(depths) if other == depth]
            some = slice(None) if len(mine) == len(depths) else mine
            logits, after = self.advance(above[some], tokens[some], depth)
            for place, index in enumerate(mine):
                rows[index], nodes[index] = logits[place : place + 1], after[place : place + 1]
        state._nodes += nodes
        state._depths += depths
        state._latest = first
        return torch.cat(rows)
