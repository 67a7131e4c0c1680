"""A level of a recurrent head: a state and a token's embedding in, a state and logits out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from mtp_verify.checkpoints.tensors import bad_checkpoint
from mtp_verify.heads.blocks.base import HeadBlock
from mtp_verify.heads.spec import HeadSpec, Sizes

if TYPE_CHECKING:
    from mtp_verify.heads.io.recognise import Source

__all__ = ["RecurrentCell"]

_EPS = 1e-6
_GATES = 4  # of an LSTM: forget, input, output, and the candidate


class _Norm(nn.Module):
    """x / rms(x) * w + b."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _normed(x) * self.weight + self.bias


def _normed(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + _EPS)


class RecurrentCell(HeadBlock):
    """Level `index` of a recurrent head; of tied ones the second has a projection alone."""

    kind = "recurrent"
    attends = uses_rotary = False

    def __init__(self, spec: HeadSpec, index: int = 0, target: Any | None = None) -> None:
        super().__init__(spec, index, target)
        sizes = spec.known_sizes
        width = sizes.intermediate_size
        self._has_gates = spec.state == "lstm"
        self._scales_input = spec.hidden_norm
        wide = _GATES * width if self._has_gates else width
        self.state = nn.Linear(width if index else sizes.hidden_size, wide, bias=False)
        # What an embedding weighs beside the state (arXiv 2404.19124, section 3).
        kept = 0.5 ** (0.5 / spec.num_modules)
        self._weight = math.sqrt((1 - kept**2) * width / 2) / kept
        self.output: nn.Linear | None = None
        if index == 0 or not spec.is_tied:
            self.token = nn.Embedding(sizes.vocab_size, width)
            self.state_norm = _Norm(width)
            if self._has_gates:
                self.cell_norm = _Norm(width)
            self.output = nn.Linear(width, sizes.vocab_size, bias=False)

    @classmethod
    def read_sizes(cls, source: Source) -> Sizes:
        """See `HeadBlock.read_sizes`: shapes say all."""
        first, token = source.shape("levels.0.state.weight"), source.shape("levels.0.token.weight")
        if first is None or token is None or len(first) != 2 or len(token) != 2:
            bad_checkpoint(source.folder, "its first projection and embedding are no matrices")
        return Sizes(first[1], token[0], intermediate_size=token[1])

    @classmethod
    def find_copies(cls, source: Source) -> set[str]:
        """See `HeadBlock.find_copies`; refuses levels that should be equal and are not."""
        spec, found = source.spec, set()
        parts = ("token", "state", "state_norm", "cell_norm", "output")
        for level in range(1, spec.num_modules if spec.is_tied else 0):
            for part in parts:
                first = min(level, 1) if part == "state" else 0
                for kind in ("weight", "bias"):
                    label = source.naming.name_of(f"levels.{level}.{part}.{kind}")
                    base = source.name(f"levels.{first}.{part}.{kind}")
                    if level == first or label is None or label not in source.names:
                        continue
                    read = source.checkpoint.read
                    if base is None or not torch.equal(read(source.names[label]), read(base)):
                        bad_checkpoint(source.folder, f"tie_weights: {label} differs from {base}")
                    found.add(label)
        return found

    def advance(
        self, state: torch.Tensor, tokens: torch.Tensor, projection: nn.Module, *, is_first: bool
    ) -> torch.Tensor:
        """Return states after tokens: of an LSTM with the cells behind them."""
        width = self.token.weight.shape[1]
        hidden, cells = state, torch.zeros_like(state[..., :1])
        if not is_first and self._has_gates:
            hidden, cells = state[..., :width], state[..., width:]
        if is_first and self._scales_input:
            hidden = _normed(hidden) / math.sqrt(2)
        embeds, mixed = self.token(tokens) * self._weight, projection(hidden)
        if not self._has_gates:
            return functional.gelu(self.state_norm(mixed + embeds))
        gates = mixed + torch.cat([embeds] * _GATES, dim=-1)
        forget, enter, leave, candidate = gates.chunk(_GATES, dim=-1)
        cells = cells * forget.sigmoid()
        cells = cells + functional.gelu(self.cell_norm(candidate)) * enter.sigmoid()
        after = functional.gelu(self.state_norm(cells)) * leave.sigmoid()
        return torch.cat((after, cells), dim=-1)

    def logits(self, state: torch.Tensor) -> torch.Tensor:
        """Return logits (..., V) of states."""
        assert self.output is not None
        rows: torch.Tensor = self.output(state[..., : self.output.in_features])
        return rows
