"""Tiny random draft heads for tests, one of each kind."""

from __future__ import annotations

from typing import Any

import torch

from mtp_verify.heads import Sizes, family
from mtp_verify.heads.kinds import build
from tests.models import VOCAB

SIZES = Sizes(
    hidden_size=32, vocab_size=VOCAB, intermediate_size=48, num_heads=4, num_kv_heads=2, head_dim=8
)
# What a tiny head's spec adds to its family.
VARIANTS: dict[str, dict[str, Any]] = {
    "deepseek": {"family": "deepseek_v3", "block": "llama"},
    "deepseek-2": {"family": "deepseek_v3", "block": "llama", "num_modules": 2},
    "deepseek-3": {
        "family": "deepseek_v3", "block": "llama", "num_modules": 3, "pair_position": "token",
    },
    "mimo": {"family": "mimo"},
    "qwen": {"family": "qwen3_next", "block": "llama"},
    "ernie": {"family": "ernie4_5_moe", "block": "llama"},
    "eagle": {"family": "eagle"},
    "eagle3": {"family": "eagle3", "aux_layers": (0, 1, -1), "draft_vocab_size": 20},
    "koala-causal": {"family": "eagle", "num_layers": 2},
    "medusa": {"family": "medusa"},
    "koala-parallel": {"family": "medusa", "num_layers": 2, "num_modules": 3},
    "hydra": {"family": "hydra", "num_modules": 3},
    "meta": {"family": "meta", "aux_layers": (1,)},
    "dflash": {"family": "dflash", "aux_layers": (0, 1), "block_size": 5, "num_layers": 2},
    "dflash-sliding": {
        "family": "dflash", "aux_layers": (0, 1), "block_size": 5, "num_layers": 2,
        "windows": (3, 0), "draft_vocab_size": 20, "output_head": "own",
    },
    "dspark": {"family": "dspark", "aux_layers": (1,), "block_size": 4, "rank": 5},
    "block": {
        "family": "block", "aux_layers": (0, 1), "block_size": 4, "rank": 5,
        "draft_vocab_size": 20, "context_tokens": True,
    },
    "dspark-recurrent": {
        "family": "dspark", "aux_layers": (0, 1), "block_size": 5, "rank": 5, "offset": "place",
        "correction": "rnn",
    },
    "domino": {
        "family": "domino", "aux_layers": (0, 1), "block_size": 5, "rank": 5, "gru_size": 6,
        "num_plain": 1,
    },
    "peagle": {
        "family": "peagle", "aux_layers": (0, 1), "block_size": 4, "num_layers": 2,
        "draft_vocab_size": 20,
    },
}  # fmt: skip
CAUSAL, PARALLEL, BLOCK = (
    [name for name, fields in VARIANTS.items() if family(fields["family"]).kind == kind]
    for kind in ("causal", "parallel", "block")
)


def tiny_head(name: str, model: Any, seed: int = 5, sizes: Sizes = SIZES, **changes: Any) -> Any:
    """Return a random head for a tiny target of `tests.models`."""
    fields = {**VARIANTS[name], **changes}
    spec = family(fields.pop("family")).replace(sizes=sizes, **fields)
    torch.manual_seed(seed)
    return randomised(build(spec)).attach(model).eval()


def round_weights(module: Any) -> Any:
    """Round the rows of all matrices to what eight bits hold: fused heads compute the same then."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, torch.nn.Linear):
                largest = layer.weight.abs().amax(dim=1, keepdim=True)
                layer.weight.copy_((layer.weight / largest * 127).round() * (largest / 127))
    return module


def randomised(head: Any) -> Any:
    """Give every parameter random values that are large enough for mistakes to show."""
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            parameter.normal_(std=0.3)
            if "norm" in name:
                parameter += 1.0
    if head.vocab is not None:
        limit, size = head.spec.sizes.vocab_size, head.spec.draft_vocab_size
        head.set_vocab(torch.randperm(limit)[:size].sort().values)
    return head


def random_hidden(head: Any, count: int, seed: int = 11) -> list[torch.Tensor]:
    """Return what a target could have given for `head.hidden_layers` at `count` positions."""
    generator = torch.Generator().manual_seed(seed)
    width = head.spec.sizes.hidden_size
    return [torch.randn((count, width), generator=generator) for _ in head.hidden_layers]
