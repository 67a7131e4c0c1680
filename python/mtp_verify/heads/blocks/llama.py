"""A Llama block with its parts: norms, rotary positions, attention, MLP.

What its attention reads and its residual stream may differ: that is all that EAGLE-3 needs beyond
Llama's block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional

from mtp_verify.errors import ParamsError, UnsupportedModelError
from mtp_verify.heads.blocks.base import BlockInputs, HeadBlock, Rotation
from mtp_verify.heads.spec import HeadSpec, Sizes
from mtp_verify.models.cpu.fused import FusedLayer, fused_part, is_narrow

if TYPE_CHECKING:
    from mtp_verify.heads.io.recognise import Source

__all__ = ["LlamaBlock", "RMSNorm", "Rotary"]

_SLIDING = "sliding_attention"
_QWENS = ("qwen2", "qwen3")
_MAX_WINDOW_LAYERS = 28  # transformers' own, where a configuration does not say


class RMSNorm(nn.Module):
    """x / rms(x) * w, or with `plus_one` * (1 + w); computed in float32."""

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

    A rotation negates the second half of what it swaps; the sines are negated instead. Kinds other
    than the default use transformers' own formulas.
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
        # Of both halves of a head's columns; the signs include the scale.
        self.register_buffer("frequencies", torch.cat((frequencies, frequencies)), persistent=False)
        self.register_buffer("signs", torch.cat((-signs, signs)), persistent=False)
        self.frequencies: torch.Tensor
        self.signs: torch.Tensor

    def forward(self, positions: torch.Tensor, dtype: torch.dtype) -> Rotation:
        """Return (B, n) positions as cosines and signed sines (B, 1, n, width) in `dtype`."""
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
        known = ", ".join(("default", *sorted(ROPE_INIT_FUNCTIONS)))
        message = f"rope_type: found {kind!r}, wanted one of: {known}"
        raise UnsupportedModelError(message, slug="unsupported_rope")
    config = LlamaConfig(
        num_attention_heads=sizes.num_heads,
        hidden_size=sizes.num_heads * sizes.head_dim,
        head_dim=sizes.head_dim,
        max_position_embeddings=sizes.max_positions,
        rope_parameters=rope,
    )
    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config)
    return frequencies, float(scale)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first columns of (B, heads, n, head_dim); the rest pass through."""
    width = cos.shape[-1]
    first = x if width == x.shape[-1] else x[..., :width]
    rotated = first * cos + first.roll(width // 2, -1) * sin
    return rotated if width == x.shape[-1] else torch.cat((rotated, x[..., width:]), dim=-1)


def _window(source: Source) -> int | None:
    """Return the width of a drafter's sliding attention, or None, as vLLM reads its configuration.

    `layer_types` decides, counted from the drafter's first block. Without it all of Mistral's
    layers slide, Qwen's from `max_window_layers` on, Llama's never. Qwen's width counts only where
    `use_sliding_window` says so.
    """
    config, count = source.config, source.spec.num_layers
    kind, width = config.get("model_type"), config.get("sliding_window")
    if kind in _QWENS and not config.get("use_sliding_window"):
        return None
    kinds: Any = config.get("layer_types")
    if kinds is None:
        first = {"mistral": 0}.get(str(kind), count)
        if kind in _QWENS:
            first = config.get("max_window_layers", _MAX_WINDOW_LAYERS)
        slides = [width is not None and type(first) is int and n >= first for n in range(count)]
    else:
        known = isinstance(kinds, list) and all(k in ("full_attention", _SLIDING) for k in kinds)
        if not known or len(kinds) < count:
            wanted = f"a list that begins with {count} of: full_attention, {_SLIDING}"
            message = f"layer_types: found {str(kinds)[:100]}, wanted {wanted}"
            raise ParamsError(message, slug="bad_head_spec")
        slides = [kind == _SLIDING for kind in kinds[:count]]
    if not any(slides):
        return None
    if not all(slides):
        message = f"found {count} blocks of which some slide, wanted one kind of attention for all"
        raise UnsupportedModelError(message, slug="unsupported_head")
    if type(width) is not int or width < 1:
        message = f"sliding_window: found {str(width)[:100]}, wanted an int >= 1"
        raise ParamsError(message, slug="bad_head_spec")
    return width


class _Attention(nn.Module):
    def __init__(self, sizes: Sizes, inputs: int) -> None:
        super().__init__()
        self.head_dim = sizes.head_dim
        if self.head_dim < 2 or self.head_dim % 2:
            message = f"head_dim: found {self.head_dim}, wanted an even number >= 2"
            raise ParamsError(message, slug="bad_head_spec")
        width, kv_width = sizes.num_heads * self.head_dim, sizes.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(inputs, width, bias=sizes.qkv_bias)
        self.k_proj = nn.Linear(inputs, kv_width, bias=sizes.qkv_bias)
        self.v_proj = nn.Linear(inputs, kv_width, bias=sizes.qkv_bias)
        self.o_proj = nn.Linear(width, sizes.hidden_size, bias=sizes.output_bias)
        self.group = sizes.num_heads // sizes.num_kv_heads
        norm = (lambda: RMSNorm(self.head_dim, sizes.norm_eps)) if sizes.qk_norm else nn.Identity
        self.q_norm, self.k_norm = norm(), norm()

    def queries(self, x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """Return queries (B, heads, n, head_dim) of x (B, n, inputs)."""
        heads = self.q_proj(x).view(*x.shape[:2], -1, self.head_dim)
        return _rotate(self.q_norm(heads).transpose(1, 2), *rotation)

    def entries(self, x: torch.Tensor, rotation: Rotation) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values (B, heads, n, head_dim) of x (B, n, inputs)."""
        shape = *x.shape[:2], -1, self.head_dim
        keys = _rotate(self.k_norm(self.k_proj(x).view(shape)).transpose(1, 2), *rotation)
        return keys, self.v_proj(x).view(shape).transpose(1, 2)

    def forward(self, x: torch.Tensor, inputs: BlockInputs) -> torch.Tensor:
        batch, count, _ = x.shape
        rotation = cast("Rotation", inputs.rotation)
        queries = self.queries(x, rotation)
        keys, values = self.entries(x, rotation)
        if inputs.segments:
            mixed = inputs.mix(queries, keys, values)
        else:
            by_head = functional.scaled_dot_product_attention(
                queries, keys, values, attn_mask=inputs.mask, enable_gqa=self.group > 1
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


class LlamaBlock(HeadBlock):
    """A pre-norm transformer block; a plain one is fused, see `mtp_verify.models.cpu.fused`."""

    kind = "llama"

    def __init__(self, spec: HeadSpec, index: int = 0, target: Any | None = None) -> None:
        super().__init__(spec, index, target)
        sizes, plus_one = spec.known_sizes, spec.norm_kind == "rms1p"
        width, eps = sizes.hidden_size, sizes.norm_eps
        # Side by side, both halves have a norm of their own already.
        is_side_by_side = spec.fusion == "attention" and not index
        self.input_layernorm: nn.Module = nn.Identity()
        if index or (spec.input_norm and not is_side_by_side):
            self.input_layernorm = RMSNorm(width, eps, plus_one=plus_one)
        self.self_attn = _Attention(sizes, 2 * width if is_side_by_side else width)
        self.post_attention_layernorm = RMSNorm(width, eps, plus_one=plus_one)
        self.mlp = _MLP(sizes)
        is_whole = sizes.rope.get("partial_rotary_factor", 1.0) == 1.0
        self._is_fusable = not is_side_by_side and not plus_one and is_whole

    def make_fused(self) -> FusedLayer | None:
        """Return what `models.cpu.fused.fuse` runs narrow forwards with, or None."""
        return FusedLayer(self) if self._is_fusable else None

    @classmethod
    def read_sizes(cls, source: Source) -> Sizes:
        """See `HeadBlock.read_sizes`: tensors say which biases and norms there are."""
        block = "levels.0.layers.0."
        wide = source.shape(f"{block}mlp.gate_proj.weight")
        return Sizes.from_table(
            source.config,
            **({"intermediate_size": wide[0]} if wide else {}),
            activation=source.config.get("hidden_act") or "silu",
            qkv_bias=source.has(f"{block}self_attn.q_proj.bias"),
            output_bias=source.has(f"{block}self_attn.o_proj.bias"),
            mlp_bias=source.has(f"{block}mlp.gate_proj.bias"),
            qk_norm=source.has(f"{block}self_attn.q_norm.weight"),
            # Layers of a target's configuration are its own, not those of a module behind them.
            window=None if source.spec.is_inside_target else _window(source),
        )

    def forward(self, x: torch.Tensor, inputs: BlockInputs) -> torch.Tensor:
        """See `HeadBlock.forward`."""
        fused: FusedLayer | None = fused_part(self)
        if fused is not None and inputs.segments and is_narrow(x.shape[0] * x.shape[1]):
            rotation = cast("Rotation", inputs.rotation)
            return fused(x, lambda joined: fused.split(joined, rotation, inputs.mix))
        stream = x if inputs.residual is None else inputs.residual
        stream = stream + self.self_attn(self.input_layernorm(x), inputs)
        output: torch.Tensor = stream + self.mlp(self.post_attention_layernorm(stream))
        return output
