"""The parts that heads are made of: norms, rotary positions, a transformer block, residual blocks.

`Block` is a Llama block whose attention input and residual stream may differ, which is all that
EAGLE-3 needs beyond it. `TargetBlock` wraps the target's own kind of layer (latent attention,
experts, ...) for heads that are one more layer of their target.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from mtp_verify.caches.names import cache_name
from mtp_verify.errors import ParamsError, UnsupportedModelError
from mtp_verify.models.cpu.attention import GroupedMask, attend
from mtp_verify.models.cpu.fused import fused_layer, is_narrow

if TYPE_CHECKING:
    from mtp_verify.caches.dynamic import GrowingLayer
    from mtp_verify.heads.spec import Sizes

__all__ = ["Block", "RMSNorm", "ResidualBlock", "Rotary", "TargetBlock"]


class RMSNorm(nn.Module):
    """x / rms(x) * w, or * (1 + w); computed in float32.

    Args:
        width: of x.
        eps: added to the mean square.
        plus_one: the weight is stored as its difference from 1.
    """

    def __init__(self, width: int, eps: float, *, plus_one: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width) if plus_one else torch.ones(width))
        self.eps = eps
        self.plus_one = plus_one

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        weight, shape = self.weight, self.weight.shape
        if self.plus_one:
            # The weight is added before anything is rounded: 1 + w is not exact in bfloat16.
            wide = functional.rms_norm(x.float(), shape, 1.0 + weight.float(), self.eps)
            return wide.to(x.dtype)
        return functional.rms_norm(x.to(weight.dtype), shape, weight, self.eps)


class Rotary(nn.Module):
    """Cosines and sines of rotary positions, in the form that `mtp_verify.models.cpu.fused` takes.

    A rotation negates the second half of what it swaps; the sines are negated instead.

    Args:
        sizes: `rope` holds the parameters in transformers' names; kinds other than the default are
            left to transformers' own formulas.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        rope = dict(sizes.rope)
        rotated = int(sizes.head_dim * rope.get("partial_rotary_factor", 1.0))
        self.scale = 1.0
        if rope.get("rope_type", "default") == "default":
            powers = torch.arange(0, rotated, 2, dtype=torch.float32) / rotated
            frequencies = 1.0 / (rope["rope_theta"] ** powers)
        else:
            frequencies, self.scale = _scaled_frequencies(sizes, rope)
        signs = torch.full_like(frequencies, self.scale)
        # Of both halves of a head's columns; the signs carry the scale.
        self.register_buffer("frequencies", torch.cat((frequencies, frequencies)), persistent=False)
        self.register_buffer("signs", torch.cat((-signs, signs)), persistent=False)
        self.frequencies: torch.Tensor
        self.signs: torch.Tensor

    def forward(
        self, positions: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, n) positions -> cosines and signed sines (B, 1, n, width) in `dtype`."""
        angles = positions[:, None, :, None] * self.frequencies
        cos = angles.cos()
        if self.scale != 1.0:
            cos *= self.scale
        return cos.to(dtype), (angles.sin() * self.signs).to(dtype)


def _scaled_frequencies(sizes: Sizes, rope: dict[str, Any]) -> tuple[torch.Tensor, float]:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = rope["rope_type"]
    if kind not in ROPE_INIT_FUNCTIONS:
        msg = (
            f"rotary embedding of kind {kind!r}; known are: default, {_names(ROPE_INIT_FUNCTIONS)}"
        )
        raise UnsupportedModelError(msg, slug="unsupported_rope")
    config = LlamaConfig(
        hidden_size=sizes.num_heads * sizes.head_dim,
        num_attention_heads=sizes.num_heads,
        head_dim=sizes.head_dim,
        max_position_embeddings=sizes.max_positions,
        rope_parameters=rope,
    )
    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config)
    return frequencies, float(scale)


def _names(table: Any) -> str:
    return ", ".join(sorted(table))


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first columns of (B, heads, n, head_dim); the rest pass through."""
    width = cos.shape[-1]
    turned = x if width == x.shape[-1] else x[..., :width]
    rotated = turned * cos + turned.roll(width // 2, -1) * sin
    return rotated if width == x.shape[-1] else torch.cat((rotated, x[..., width:]), dim=-1)


class _Attention(nn.Module):
    def __init__(self, sizes: Sizes, inputs: int) -> None:
        super().__init__()
        self.head_dim = sizes.head_dim
        if self.head_dim < 2 or self.head_dim % 2:
            msg = f"head_dim is {self.head_dim}; rotary attention wants an even number >= 2"
            raise ParamsError(msg, slug="bad_head_spec")
        width, kv_width = sizes.num_heads * self.head_dim, sizes.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(inputs, width, bias=sizes.qkv_bias)
        self.k_proj = nn.Linear(inputs, kv_width, bias=sizes.qkv_bias)
        self.v_proj = nn.Linear(inputs, kv_width, bias=sizes.qkv_bias)
        self.o_proj = nn.Linear(width, sizes.hidden_size, bias=sizes.output_bias)
        self.group = sizes.num_heads // sizes.num_kv_heads
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if sizes.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, sizes.norm_eps)
            self.k_norm = RMSNorm(self.head_dim, sizes.norm_eps)

    def forward(
        self,
        x: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        layer: GrowingLayer | None,
    ) -> torch.Tensor:
        batch, count, _ = x.shape
        shape = (batch, count, -1, self.head_dim)
        queries = _rotate(self.q_norm(self.q_proj(x).view(shape)).transpose(1, 2), *rotation)
        keys = _rotate(self.k_norm(self.k_proj(x).view(shape)).transpose(1, 2), *rotation)
        values = self.v_proj(x).view(shape).transpose(1, 2)
        if layer is not None:
            keys, values = layer.update(keys, values)
            shared = None if mask is None else GroupedMask(mask, self.group)
            mixed = attend(queries, keys, values, shared)
        else:
            by_head = functional.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, enable_gqa=self.group > 1
            )
            mixed = by_head.transpose(1, 2).reshape(batch, count, -1)
        output: torch.Tensor = self.o_proj(mixed)
        return output


class _MLP(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        wide, narrow = sizes.intermediate_size, sizes.hidden_size
        self.gate_proj = nn.Linear(narrow, wide, bias=sizes.mlp_bias)
        self.up_proj = nn.Linear(narrow, wide, bias=sizes.mlp_bias)
        self.down_proj = nn.Linear(wide, narrow, bias=sizes.mlp_bias)
        self.act_fn = getattr(functional, sizes.activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return output


class Block(nn.Module):
    """A pre-norm transformer block.

    Args:
        sizes: of the block.
        inputs: width of what the attention reads; None: of the hidden state.
        input_norm: normalise what the attention reads.
        plus_one: norms store their weight's difference from 1.

    Attributes:
        is_fusable: it is a Llama layer, which `mtp_verify.models.cpu.fused` can run.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        inputs: int | None = None,
        input_norm: bool = True,
        plus_one: bool = False,
    ) -> None:
        super().__init__()
        width, eps = sizes.hidden_size, sizes.norm_eps
        self.input_layernorm: nn.Module = (
            RMSNorm(width, eps, plus_one=plus_one) if input_norm else nn.Identity()
        )
        self.self_attn = _Attention(sizes, inputs or width)
        self.post_attention_layernorm = RMSNorm(width, eps, plus_one=plus_one)
        self.mlp = _MLP(sizes)
        is_whole = sizes.rope.get("partial_rotary_factor", 1.0) == 1.0
        self.is_fusable = inputs is None and not plus_one and is_whole

    def forward(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        layer: GrowingLayer | None,
        *,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run the block.

        Args:
            x: (B, n, width), what the attention reads.
            positions: (B, n).
            rotation: of these positions.
            mask: broadcastable to (B, heads, n, keys), True (or 0) where visible; None shows all.
            layer: keys and values of earlier entries; these are appended. None keeps nothing.
            residual: (B, n, hidden size), the stream that the block adds to; None: x.
        """
        del positions
        fused = fused_layer(self)
        if fused is not None and layer is not None and is_narrow(x.shape[0] * x.shape[1]):
            shared = None if mask is None else GroupedMask(mask, fused.group)
            return fused(x, rotation, shared, layer.update)
        stream = x if residual is None else residual
        stream = stream + self.self_attn(self.input_layernorm(x), rotation, mask, layer)
        output: torch.Tensor = stream + self.mlp(self.post_attention_layernorm(stream))
        return output


class _OneLayer:
    """What a transformers layer sees as its cache: one layer, whatever index it asks for."""

    def __init__(self, layer: GrowingLayer) -> None:
        self.layer = layer

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append entries and return all of them."""
        return self.layer.update(keys, values)

    def get_seq_length(self, *_args: Any) -> int:
        """Number of entries."""
        return self.layer.get_seq_length()


class TargetBlock(nn.Module):
    """One more layer of the target's own kind.

    Args:
        model: a transformers causal language model.

    Raises:
        UnsupportedModelError: its layers cannot be found.

    Attributes:
        window: width of its sliding attention, or None where it sees all.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        decoder = model.get_decoder()
        layers = getattr(decoder, "layers", None)
        rotary = getattr(decoder, "rotary_emb", None)
        if not isinstance(layers, nn.ModuleList) or not len(layers) or rotary is None:
            msg = (
                f"{type(model).__name__} does not show its layers and rotary embedding, so a head "
                "made of one more such layer cannot be built"
            )
            raise UnsupportedModelError(msg, slug="unsupported_block")
        config, index = _config_of_head(model.config, len(layers))
        self.layer = type(layers[-1])(config, index)
        self._cache_name = cache_name(self.layer.forward)
        if self._cache_name is None:
            msg = f"{type(self.layer).__name__} takes no cache, so a head cannot be made of it"
            raise UnsupportedModelError(msg, slug="unsupported_block")
        types = getattr(config, "layer_types", None)
        kind = types[index] if types else "full_attention"
        # The rotary parameters may be one table for each kind of layer.
        rope = getattr(config, "rope_parameters", None) or {}
        is_nested = any(isinstance(value, dict) for value in rope.values())
        self._rope_options = {"layer_type": kind} if is_nested else {}
        self.window: int | None = config.sliding_window if kind == "sliding_attention" else None
        # The target's own, without weights of its own; outside of this module's parameters.
        self._shared = (rotary,)

    def forward(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        layer: GrowingLayer | None,
        *,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `Block.forward`; the layer has its own input norm and residual stream."""
        del residual, rotation
        if mask is not None and mask.dtype is torch.bool:
            # Floats are the one form that eager and SDPA attention both take.
            mask = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill_(
                ~mask, torch.finfo(x.dtype).min
            )
        output = self.layer(
            x,
            attention_mask=mask,
            position_ids=positions,
            position_embeddings=self._shared[0](x, position_ids=positions, **self._rope_options),
            use_cache=layer is not None,
            **{self._cache_name or "": None if layer is None else _OneLayer(layer)},
        )
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result


def _config_of_head(config: Any, num_layers: int) -> tuple[Any, int]:
    """The configuration and number under which the target's layer class builds the head's block.

    Where lists say what each layer is, the head's are those for multi-token prediction, or a full
    attention layer of the kind that the target ends with.
    """
    text = copy.deepcopy(config.get_text_config(decoder=True))
    types = getattr(text, "layer_types", None)
    if getattr(text, "mtp_layer_types", None):
        text.layer_types = list(text.mtp_layer_types)
        if getattr(text, "mtp_mlp_layer_types", None):
            text.mlp_layer_types = list(text.mtp_mlp_layer_types)
        text.num_hidden_layers = len(text.layer_types)
        return text, 0
    if types and "full_attention" in types:
        return text, len(types) - 1 - list(reversed(types)).index("full_attention")
    return text, num_layers - 1


class ResidualBlock(nn.Module):
    """Medusa's block: x + silu(A x + b); with A = 0 and b = 0 it passes x on.

    References:
        arXiv 2401.10774.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block."""
        return x + functional.silu(self.linear(x))
