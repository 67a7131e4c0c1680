"""What corrects a block head's rows for the tokens drafted above them.

All rows of a block come from one forward, in which no slot knows what the others draw. A correction
adds to a slot's logits what depends on the tokens above, so that rows are computed along paths.

References:
    DSpark, arXiv 2607.05147 ("markov", "gated", "rnn"); Domino, arXiv 2605.29707 ("gru").
    "features" is DSpark's gated correction with the target's embeddings and output rows in place of
    tables of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mtp_verify.errors import ParamsError

if TYPE_CHECKING:
    from mtp_verify.heads.spec import HeadSpec

__all__ = ["Correction", "FeatureCorrection", "make_correction"]


class Correction(nn.Module):
    """A correction; `state_size` is the width of what it keeps along a path, 0 for nothing."""

    state_size = 0
    reads_embeddings = False  # of the target, in place of an embedding of its own

    def forward(
        self, tokens: torch.Tensor, features: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what is added to logits, and the state for the slot after.

        Args:
            tokens: (n,) int64 above each slot; embeddings (n, d) where `reads_embeddings`.
            features: (n, d) of the slots.
            state: (n, state_size) before.

        Returns:
            (n, D) and (n, state_size).
        """
        raise NotImplementedError


class MarkovCorrection(Correction):
    """By the token above alone: a product of low rank; a gate may depend on the slot."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.token = nn.Embedding(spec.known_sizes.vocab_size, spec.rank)
        self.output = _output(spec)
        self.gate: nn.Linear | None = None
        if spec.correction == "gated":
            self.gate = nn.Linear(spec.known_sizes.hidden_size + spec.rank, spec.rank)

    def forward(
        self, tokens: torch.Tensor, features: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Correction.forward`."""
        latent = self.token(tokens)
        if self.gate is not None:
            latent = latent * self.gate(torch.cat((features, latent), dim=-1)).sigmoid()
        return self.output(latent), state


class RecurrentCorrection(Correction):
    """By all tokens above, through a gated state of the rank's width."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        rank, width = spec.rank, spec.known_sizes.hidden_size
        self.state_size = rank
        self.token = nn.Embedding(spec.known_sizes.vocab_size, rank)
        self.joint = nn.Linear(2 * rank + width, 3 * rank)
        self.output = _output(spec)

    def forward(
        self, tokens: torch.Tensor, features: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Correction.forward`."""
        joined = torch.cat((state, self.token(tokens), features), dim=-1)
        gate, candidate, latent = self.joint(joined).chunk(3, dim=-1)
        gate = gate.sigmoid()
        return self.output(latent.tanh()), gate * state + (1.0 - gate) * candidate.tanh()


class GruCorrection(Correction):
    """By all tokens above, through a GRU over the target's embeddings of them."""

    reads_embeddings = True

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        width = spec.known_sizes.hidden_size
        self.state_size = spec.gru_size
        self.cell = nn.GRU(width, spec.gru_size, bias=False, batch_first=True)
        self.mix = nn.Linear(width + spec.gru_size, spec.rank, bias=False)
        self.output = _output(spec)

    def forward(
        self, tokens: torch.Tensor, features: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Correction.forward`."""
        found, _ = self.cell(tokens[:, None], state[None].contiguous())
        after: torch.Tensor = found[:, 0]
        latent = self.mix(torch.cat((features, after), dim=-1))
        return self.output(nn.functional.silu(latent)), after


class FeatureCorrection(nn.Module):
    """By the token above alone, gated; what it changes are the slot's features, not its logits.

    As the output head is linear, its rows may be multiplied by `output` once: a product of `rank`
    columns then corrects a row.
    """

    state_size = 0

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        width = spec.known_sizes.hidden_size
        self.mix = nn.Linear(width, spec.rank, bias=False)
        self.gate = nn.Linear(width, spec.rank, bias=False)
        self.output = nn.Linear(spec.rank, width, bias=False)

    def latent(self, embeds: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Return (..., rank) of embeddings and features (..., d)."""
        mixed: torch.Tensor = self.mix(embeds) * self.gate(features).sigmoid()
        return mixed

    def correct(self, embeds: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Return corrected features (..., d)."""
        corrected: torch.Tensor = features + self.output(self.latent(embeds, features))
        return corrected


def _output(spec: HeadSpec) -> nn.Linear:
    size = spec.draft_vocab_size or spec.known_sizes.vocab_size
    return nn.Linear(spec.rank, size, bias=False)


_Kind = MarkovCorrection | RecurrentCorrection | GruCorrection | FeatureCorrection
_KINDS: dict[str, type[_Kind]] = {
    "markov": MarkovCorrection,
    "gated": MarkovCorrection,
    "rnn": RecurrentCorrection,
    "gru": GruCorrection,
    "features": FeatureCorrection,
}


def make_correction(spec: HeadSpec) -> Correction | FeatureCorrection | None:
    """Return the correction of a head, None if it has none; ParamsError: it lacks a width."""
    if spec.correction == "none":
        return None
    if spec.rank < 1 or (spec.correction == "gru" and spec.gru_size < 1):
        message = f"rank, gru_size: found {spec.rank}, {spec.gru_size}, wanted widths >= 1"
        raise ParamsError(message, slug="bad_head_spec")
    return _KINDS[spec.correction](spec)
