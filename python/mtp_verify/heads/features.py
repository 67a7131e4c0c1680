"""`FeatureHead`: what heads share that read hidden states of several of the target's layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mtp_verify.heads.base import Head
from mtp_verify.heads.blocks.llama import RMSNorm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.heads.spec import HeadSpec

__all__ = ["FeatureHead"]


class FeatureHead(Head):
    """A head that makes one hidden state of those that it reads, and may embed tokens itself."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__(spec)
        sizes = spec.known_sizes
        width, eps = sizes.hidden_size, sizes.norm_eps
        self.embedding = nn.Embedding(sizes.vocab_size, width) if spec.own_embedding else None
        layers = len(spec.aux_layers) if spec.feed == "aux" else 0
        self.features = nn.Linear(layers * width, width, bias=False) if layers else None
        widths = {"all": [layers * width], "each": [width] * layers, "none": []}
        self.feature_norms = nn.ModuleList(
            RMSNorm(wide, eps) for wide in widths[spec.feature_norm if layers else "none"]
        )

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
