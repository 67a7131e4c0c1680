"""A small language model with one head or several, for experiments of minutes.

The trunk is a stack of blocks; each head is one more block and the shared norm and output, as in
Meta's multi-token training. Head 0 is the ordinary next-token path, so a model with one head is a
plain language model of the same depth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from mtp_verify.heads import HeadSpec, Sizes
from mtp_verify.heads.blocks.base import BlockInputs
from mtp_verify.heads.blocks.llama import LlamaBlock, RMSNorm, Rotary
from mtp_verify.training.losses import sequential_backward

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Toy", "complete", "fit"]


class Toy(nn.Module):
    """A causal model over a small vocabulary.

    Args:
        vocab_size: number of tokens.
        num_heads: tokens that are predicted at each position.
        width: of the hidden states.
        num_blocks: of the trunk.
        seed: of the weights.
    """

    def __init__(
        self,
        vocab_size: int,
        num_heads: int,
        *,
        width: int = 64,
        num_blocks: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = Sizes(
            hidden_size=width,
            vocab_size=vocab_size,
            intermediate_size=4 * width,
            num_heads=4,
            num_kv_heads=4,
            head_dim=width // 4,
        )
        spec = HeadSpec("toy", sizes=sizes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed = nn.Embedding(vocab_size, width)
            self.trunk_blocks = nn.ModuleList(LlamaBlock(spec) for _ in range(num_blocks))
            self.norm = RMSNorm(width, sizes.norm_eps)
            self.output = nn.Linear(width, vocab_size, bias=False)
            # Made last, and the next-token path first: models of one seed start alike.
            self.heads = nn.ModuleList(LlamaBlock(spec) for _ in range(num_heads))
        self.rotary = Rotary(sizes)

    def trunk(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, n) tokens to (B, n, d)."""
        x: torch.Tensor = self.embed(tokens)
        for block in self.trunk_blocks:
            x = self._block(block, x)
        return x

    def head(self, trunk: torch.Tensor, index: int) -> torch.Tensor:
        """Logits (B, n, V) of the token 1 + index places behind each position."""
        logits: torch.Tensor = self.output(self.norm(self._block(self.heads[index], trunk)))
        return logits

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (B, n, V) of the next token."""
        return self.head(self.trunk(tokens), 0)

    def _block(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        count = x.shape[1]
        positions = torch.arange(count)[None]
        visible = positions[0][None] <= positions[0][:, None]
        rotation = self.rotary(positions, x.dtype)
        result: torch.Tensor = block(x, BlockInputs(positions, rotation, visible[None, None]))
        return result


def fit(
    model: Toy,
    sample: Callable[[torch.Generator], torch.Tensor],
    steps: int,
    *,
    first: int = 0,
    seed: int = 0,
    rate: float = 1e-3,
    watch: Callable[[int], None] | None = None,
) -> float:
    """Train on fresh samples, every head with equal weight.

    Args:
        model: changed.
        sample: gives (B, T) tokens.
        steps: number of updates.
        first: the first position whose token counts in the loss.
        seed: of the samples.
        rate: of learning.
        watch: is given the number of updates after each.

    Returns:
        The last loss, summed over the heads.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    last = 0.0
    for step in range(1, steps + 1):
        tokens = sample(generator)

        def loss_of(index: int, tokens: torch.Tensor = tokens) -> Callable[..., torch.Tensor]:
            def loss(trunk: torch.Tensor) -> torch.Tensor:
                logits = model.head(trunk, index)[:, : -1 - index]
                targets = tokens[:, 1 + index :]
                start = max(first - 1 - index, 0)
                return functional.cross_entropy(
                    logits[:, start:].flatten(0, 1), targets[:, start:].flatten()
                )

            return loss

        optimizer.zero_grad()
        losses = [loss_of(index) for index in range(len(model.heads))]
        last = sequential_backward(model.trunk(tokens), losses)
        optimizer.step()
        if watch is not None:
            watch(step)
    return last


def complete(
    model: Toy,
    prompts: torch.Tensor,
    count: int,
    *,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Let a model read its own output.

    Args:
        model: reads by its next-token path.
        prompts: (B, T) tokens.
        count: of the tokens to append.
        generator: of samples at temperature 1; None takes the most likely token.

    Returns:
        (B, count) tokens.
    """
    texts = prompts
    with torch.no_grad():
        for _ in range(count):
            logits = model(texts)[:, -1]
            if generator is None:
                token = logits.argmax(-1, keepdim=True)
            else:
                token = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            texts = torch.cat((texts, token), dim=1)
    return texts[:, prompts.shape[1] :]
