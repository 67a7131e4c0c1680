"""A level of a draft head by the core, with weights of eight bits: what `fuse` makes of a head.

What a level takes on a CPU is reading its weights, and calling operators: a dozen small ones and
four products. Here it is two calls, and half of the bytes of bfloat16. Each row of a matrix is
rounded to multiples of a 127th of its largest weight, so that a fused head may draft other tokens;
what is emitted has the same law.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from mtp_verify._core import HeadBlock, HeadModule, Product

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.heads.base import ContextTokens
    from mtp_verify.heads.blocks.base import BlockInputs, Rotation
    from mtp_verify.heads.spec import HeadSpec

__all__ = ["FusedModule", "FusedOutputs", "is_few"]

_WIDEST = 16  # rows; wider products take longer than torch's
# As `getattr(functional, activation)` names what `HeadBlock` computes.
_ACTIVATION = "silu"


class FusedModule:
    """A module of a causal head whose blocks are Llama's."""

    def __init__(self, module: Any) -> None:
        spec: HeadSpec = module.spec
        eps = spec.known_sizes.norm_eps
        fusion = module.fusion
        products = [] if isinstance(fusion, nn.Identity) else [_product(fusion)]
        blocks = [_Block(block) for block in module.layers]
        self._dtype = next(module.parameters()).dtype
        self._blocks = blocks
        self._core = HeadModule(
            [block.core for block in blocks],
            fusion=products[0] if products else None,
            embed_norm=_norm(module.embed_norm),
            hidden_norm=_norm(module.hidden_norm),
            norm=_norm(module.norm),
            eps=eps,
            is_embed_first=spec.fusion != "he",
            is_stream_normed=spec.norm_before_residual,
            is_normed_next=spec.recycle == "post",
        )
        self.nbytes = sum(own.nbytes for own in products) + sum(block.nbytes for block in blocks)

    @staticmethod
    def knows(module: Any) -> bool:
        """Return whether a `CausalModule` can be run so."""
        spec: HeadSpec = module.spec
        sizes = spec.known_sizes
        return (
            spec.block == "llama"
            and sizes.activation == _ACTIVATION
            and sizes.window is None
            and sizes.rope.get("partial_rotary_factor", 1.0) == 1.0
        )

    def takes(self, hidden: torch.Tensor, embeds: torch.Tensor, inputs: BlockInputs) -> bool:
        """Return whether these rows run here: few, without gradients, seen by numbers."""
        return (
            bool(inputs.segments)
            and is_few(hidden)
            and hidden.dtype == embeds.dtype == self._dtype
            and all(segment.paths is not None for segment in inputs.segments)
        )

    def __call__(
        self, hidden: torch.Tensor, embeds: torch.Tensor, inputs: BlockInputs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `CausalModule.forward`."""
        cos, sin = cast("Rotation", inputs.rotation)
        given = []
        for segment in inputs.segments:
            opened = [
                layer.open(segment.num_rows, block.like)[0]
                for layer, block in zip(segment.layers, self._blocks, strict=True)
            ]
            paths = cast("Sequence[Sequence[int]]", segment.paths)
            given.append((segment.num_true, segment.num_held, paths, opened))
        hidden, embeds = hidden.detach().contiguous(), embeds.detach().contiguous()
        normed, after = torch.empty_like(hidden), torch.empty_like(hidden)
        self._core.run(hidden, embeds, cos, sin, given, normed, after)
        return normed, after


class FusedOutputs:
    """The output heads of a head's levels."""

    def __init__(self, layers: Sequence[nn.Linear | torch.Tensor]) -> None:
        """Take by level a layer, or a matrix (D, d) of rows that are shared."""
        # Levels that share their rows share the copy.
        made = {id(layer): _product(layer) for layer in layers}
        self._levels = [made[id(layer)] for layer in layers]
        self.nbytes = sum(own.nbytes for own in made.values())

    def __call__(
        self,
        rows: torch.Tensor,
        counts: list[int],
        level: int,
        contexts: Sequence[ContextTokens],
    ) -> list[torch.Tensor]:
        """Return float32 logits (counts[i], D + E) of each sequence's of the rows (n, d)."""
        product = self._levels[min(level, len(self._levels) - 1)]
        size, rows = product.outputs, rows.detach().contiguous()
        most = max(len(context.ids) for context in contexts)
        logits = torch.empty((len(rows), size + most), dtype=torch.float32)
        extras = [_rounded(context) for context in contexts]
        product.multiply(rows, logits, list(zip(counts, extras, strict=True)))
        tables = torch.split(logits, counts)
        return [
            table[:, : size + len(context.ids)]
            for table, context in zip(tables, contexts, strict=True)
        ]


def is_few(rows: torch.Tensor) -> bool:
    """Return whether rows (..., d) are few enough for the core, and need no gradients."""
    return rows.numel() <= _WIDEST * rows.shape[-1] and not torch.is_grad_enabled()


class _Block:
    """A block of Llama's form in the core, and what its keys are like."""

    def __init__(self, block: Any) -> None:
        attention, mlp = block.self_attn, block.mlp
        dim: int = attention.head_dim
        kept = attention.k_proj.out_features // dim
        parts = (
            _product(attention.q_proj, attention.k_proj, attention.v_proj),
            _product(attention.o_proj),
            _product(mlp.gate_proj, mlp.up_proj),
            _product(mlp.down_proj),
        )
        norms = [_norm(norm) for norm in (attention.q_norm, attention.k_norm)]
        self.core = HeadBlock(
            *parts,
            norm=_norm(block.post_attention_layernorm),
            input_norm=_norm(block.input_layernorm),
            head_norms=None if None in norms else norms,
            eps=block.post_attention_layernorm.eps,
            heads=(attention.q_proj.out_features // dim, kept, dim),
        )
        self.nbytes = sum(part.nbytes for part in parts)
        self.like = attention.k_proj.weight.detach().new_empty((1, kept, 0, dim))


def _rounded(context: ContextTokens) -> Product | None:
    """Return the product with a context's rows, if any; only those that are new are rounded."""
    rows, product = context.rows, context.rounded
    if rows is None:
        return None
    if product is None:
        product = context.rounded = Product(rows)
    elif product.outputs < len(rows):
        product.extend(rows[product.outputs :])
    return product


def _product(*layers: nn.Linear | torch.Tensor) -> Product:
    """Round the weights of layers that read the same rows, side by side."""
    weights = [own if isinstance(own, torch.Tensor) else own.weight.detach() for own in layers]
    biases = [
        own.bias.detach() for own in layers if isinstance(own, nn.Linear) and own.bias is not None
    ]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    return Product(weight.contiguous(), torch.cat(biases) if biases else None)


def _norm(norm: Any) -> torch.Tensor | None:
    """Return what a norm multiplies by, in float32; None where there is none."""
    if isinstance(norm, nn.Identity):
        return None
    weight: torch.Tensor = norm.weight.detach().float()
    return 1.0 + weight if norm.plus_one else weight
