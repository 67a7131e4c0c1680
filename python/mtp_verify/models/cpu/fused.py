"""Narrow forwards of Llama-shaped models on a CPU, in fewer and larger operators.

A forward over a draft has a few rows, and half of its time goes into what surrounds the products.
Here a layer's query, key and value products are one, its gate and up products are one, and rotary
positions, the cache's new entries and the attention are one call of the core, which reads what each
row sees and nothing else. Weights are prepacked (`packing`). The model's own formulas stay, and so
do the places where it rounds, but that attention weights stay wide; the order of sums differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional

from mtp_verify._core import Attention
from mtp_verify.models.cpu.packing import Product, multiply, prepack, prepacked_copy
from mtp_verify.models.hidden import BEFORE_NORM, check_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtp_verify._core import Entries

    # Cosines and signed sines; what takes queries, new keys and new values and returns what the
    # queries see.
    _Rotary = tuple[torch.Tensor, torch.Tensor]
    _Mix = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

__all__ = [
    "FusedLayer",
    "FusedModel",
    "Trees",
    "fuse",
    "fused_model",
    "fused_part",
    "is_narrow",
    "unfuse",
]

# Their layers are Llama's but for biases and for norms of queries and keys.
_FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_WIDEST = 128  # rows; wider forwards spend their time in products anyway
_PROBE_TOKENS = 5
# Mean distance of logits, relative to their spread, that rounding may explain; 0.7 and more where
# one of the parts is missing.
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.05}
_MODELS: WeakKeyDictionary[nn.Module, tuple[_Watch, FusedModel]] = WeakKeyDictionary()
_PARTS: WeakKeyDictionary[nn.Module, tuple[_Watch, Any]] = WeakKeyDictionary()


class FusedLayer:
    """A layer with the parts and the names of a Llama layer, whose weights are copied.

    Attributes:
        num_kv_heads: of keys and of values.
        nbytes: of the copies.
    """

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._head_dim: int = attention.head_dim
        self.num_kv_heads: int = attention.k_proj.out_features // self._head_dim
        self._num_turned = self.num_kv_heads + attention.q_proj.out_features // self._head_dim
        before = layer.input_layernorm  # none in EAGLE's blocks
        self._input_norm = before if isinstance(before, nn.Identity) else _Norm(before)
        self._norm = _Norm(layer.post_attention_layernorm)
        inner = [getattr(attention, name, nn.Identity()) for name in ("q_norm", "k_norm")]
        self._qk_norms = None if isinstance(inner[0], nn.Identity) else [_Norm(n) for n in inner]
        self._qkv = _Joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self._out, self._down = _Joined(attention.o_proj), _Joined(mlp.down_proj)
        self._gate_up = _Joined(mlp.gate_proj, mlp.up_proj)
        self._activation: Callable[[torch.Tensor], torch.Tensor] = mlp.act_fn
        self._width: int = mlp.gate_proj.out_features
        parts = (self._qkv, self._out, self._gate_up, self._down)
        self.nbytes = sum(part.nbytes for part in parts)

    def __call__(
        self, x: torch.Tensor, attend: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Run the layer on `x`, hidden states (B, W, d).

        `attend` takes the queries, keys and values of these rows side by side, as `split` does, and
        returns (B, W, heads * head_dim), what the queries see in all entries.
        """
        x = x + self._out(attend(self._project(x)))
        wide = self._gate_up(self._norm(x))
        gate, up = wide[..., : self._width], wide[..., self._width :]
        return x + self._down(self._activation(gate).mul_(up))

    def split(self, joined: torch.Tensor, turn: _Rotary, mix: _Mix) -> torch.Tensor:
        """Turn and attend with torch's operators.

        `turn` are cosines and sines (B, 1, W, head_dim), the sines of the first half negated. `mix`
        takes the queries, keys and values (B, heads, W, head_dim) and returns (B, W, d).
        """
        batch, width, _ = joined.shape
        dim, num_turned, num_kv = self._head_dim, self._num_turned, self.num_kv_heads
        heads = joined.view(batch, width, num_turned + num_kv, dim).transpose(1, 2)
        turned = heads[:, :num_turned]
        cos, sin = turn
        turned = (turned * cos).add_(turned.roll(dim // 2, -1).mul_(sin))
        num_queries = num_turned - num_kv
        return mix(turned[:, :num_queries], turned[:, num_queries:], heads[:, num_turned:])

    def _project(self, x: torch.Tensor) -> torch.Tensor:
        """Return queries, keys and values (B, W, all heads * head_dim) side by side."""
        joined = self._qkv(self._input_norm(x))
        if self._qk_norms is None:
            return joined
        q_norm, k_norm = self._qk_norms
        heads = joined.view(*joined.shape[:-1], -1, self._head_dim)
        num_queries = self._num_turned - self.num_kv_heads
        queries, keys = heads[..., :num_queries, :], heads[..., num_queries : self._num_turned, :]
        parts = q_norm(queries), k_norm(keys), heads[..., self._num_turned :, :]
        return torch.cat(parts, dim=-2).flatten(-2)


class Trees(NamedTuple):
    """The rows of a forward: the first `counts[i]` nodes of a tree behind each sequence's past."""

    tokens: torch.Tensor  # (1, R) int64, one sequence after the other
    positions: torch.Tensor  # (1, R) int64
    pasts: Sequence[int]  # (B,) committed entries
    counts: Sequence[int]  # (B,) rows, R in all
    ancestors: torch.Tensor | None  # (B, W, W) bool; None: each sees all before it


class FusedModel:
    """The forward over a few rows of a whole model, whose layers `FusedLayer` knows."""

    def __init__(self, model: Any) -> None:
        decoder = model.get_decoder()
        self._embedding: torch.Tensor = decoder.embed_tokens.weight
        self._rotary = decoder.rotary_emb
        attention = decoder.layers[0].self_attn
        self._head_dim: int = attention.head_dim
        self._num_heads: int = attention.q_proj.out_features // self._head_dim
        self._layers = [FusedLayer(layer) for layer in decoder.layers]
        self._norm = _Norm(decoder.norm)
        self._head = _Joined(model.get_output_embeddings())
        self.nbytes = sum(layer.nbytes for layer in self._layers) + self._head.nbytes

    def __call__(
        self,
        trees: Trees,
        layers: Sequence[Any],
        hidden_layers: Sequence[int] = (),
        *,
        num_logits: int | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return logits (1, num_logits or R, V), and (1, R, d) hidden states per layer.

        Args:
            trees: what runs.
            layers: the cache's; `open` of each gives the memory of its entries.
            hidden_layers: as `mtp_verify.models.hidden` numbers them.
            num_logits: last rows whose logits are wanted; None: all.
        """
        check_layers(hidden_layers, len(self._layers))
        x = functional.embedding(trees.tokens, self._embedding)
        like = x.new_empty((1, self._layers[0].num_kv_heads, 0, self._head_dim))
        attend, seen = self._attention(trees, x)
        states = [x]
        for layer, entries in zip(self._layers, layers, strict=True):

            def see(joined: torch.Tensor, entries: Any = entries) -> torch.Tensor:
                attend(joined, *entries.open(max(trees.counts), like))
                entries.close()
                return seen

            x = layer(x, see)
            states.append(x)
        last = self._norm(x)
        # As transformers numbers them: the last layer's state is the one behind the final norm.
        states[-1] = last
        found = tuple(x if i == BEFORE_NORM else states[i] for i in hidden_layers)
        return self._head(last if num_logits is None else last[:, -num_logits:]), found

    def _attention(
        self, trees: Trees, x: torch.Tensor
    ) -> tuple[Callable[[torch.Tensor, Entries, int], None], torch.Tensor]:
        """Return what attends in a layer, and (1, R, d) where it leaves what the rows see."""
        cos, sin = self._rotary(x, trees.positions)
        seen = x.new_empty((1, x.shape[1], self._num_heads * self._head_dim))
        ancestors = trees.ancestors
        attention = Attention(
            trees.pasts,
            trees.counts,
            None if ancestors is None else ancestors.contiguous(),
            cos=cos.contiguous(),
            sin=_signed(sin),
            out=seen,
            heads=self._num_heads,
        )
        return attention.attend, seen


def _signed(sin: torch.Tensor) -> torch.Tensor:
    """Negate the first half of rotary sines (..., head_dim), instead of half of what is turned."""
    half = sin.shape[-1] // 2
    return torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)


def fuse(model: nn.Module) -> int:
    """Run this target's, or this draft head's, narrow forwards fused from now on.

    A target itself is left as it is: its own `generate` does not change. One of another family, or
    one that a probe finds to compute something else, gets `packing.prepack` instead; so does what
    is not a block in a head. Once the weights change, its own code runs again, until the next call;
    what is written through `.data`, and modules that are put in later, as adapters, go unnoticed.

    Args:
        model: a transformers causal language model, or a `mtp_verify.heads` head, on a CPU and in
            evaluation mode.

    Returns:
        Bytes of the weights that were copied.

    Example:
        >>> fuse(nn.Linear(4, 4))  # no model: nothing to do
        0
    """
    _MODELS.pop(model, None)
    if _is_known(model):
        fused = FusedModel(model)
        if _agrees(fused, model):
            _MODELS[model] = (_Watch(model), fused)
            return fused.nbytes
    size = prepack(model)
    for part in model.modules():
        make_fused = getattr(part, "make_fused", None)
        made = make_fused() if make_fused and _is_cpu_supported(part) else None
        if made is not None:
            _PARTS[part] = (_Watch(part), made)
            size += made.nbytes
    return size


def fused_model(model: nn.Module) -> FusedModel | None:
    """Return what `fuse` made of a model; None if nothing, or if its weights have changed since."""
    watch, fused = _MODELS.get(model, (None, None))
    return None if watch is None or watch.has_changed() else fused


def fused_part(part: nn.Module) -> Any | None:
    """Return what `fuse` made of a part of a head by its `make_fused`, as `fused_model`."""
    watch, fused = _PARTS.get(part, (None, None))
    return None if watch is None or watch.has_changed() else fused


def unfuse(part: nn.Module) -> None:
    """Drop what `fuse` made of a part itself, as what it was made of changes."""
    _PARTS.pop(part, None)


def is_narrow(num_rows: int) -> bool:
    """Return whether a forward of that many rows, over all sequences, runs fused."""
    return num_rows <= _WIDEST and not torch.is_grad_enabled()


class _Watch:
    """Notices changes of a module's weights, but for those that were made in inference mode."""

    def __init__(self, module: nn.Module) -> None:
        self._weights = [p for p in module.parameters() if not p.is_inference()]
        self._seen = self._look()

    def has_changed(self) -> bool:
        """Return whether a weight was written to, or all moved to another dtype or device."""
        return self._look() != self._seen

    def _look(self) -> tuple[Any, ...]:
        places = [(p.dtype, p.device, p.data_ptr()) for p in self._weights[:1]]
        return sum(p._version for p in self._weights), *places


class _Norm:
    """x / rms(x) * w as Llama rounds it, in half as many operators; `fuse` checks the formula."""

    def __init__(self, module: Any) -> None:
        self._weight: torch.Tensor = module.weight.detach()
        eps = getattr(module, "variance_epsilon", None)
        self._eps = torch.tensor(float(module.eps if eps is None else eps))
        self._share = 1.0 / self._weight.shape[0]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.addcmul(self._eps, length, length, value=self._share).rsqrt_()
        return torch.mul(x, scale, out=torch.empty_like(x)).mul_(self._weight)


class _Joined:
    """The products of linear layers that read the same rows, as one; copies take `nbytes`."""

    def __init__(self, *layers: Any) -> None:
        first = layers[0]
        weight: torch.Tensor = first.weight.detach()
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        if len(layers) > 1:
            weight = torch.cat([layer.weight.detach() for layer in layers])
        prepacked: Any = vars(first).get("forward")
        is_shared = len(layers) == 1 and isinstance(prepacked, Product)
        packed: torch.Tensor | None = prepacked.packed if is_shared else prepacked_copy(weight)
        self._weight, self._is_packed = (weight, False) if packed is None else (packed, True)
        is_copy = len(layers) > 1 or (packed is not None and not is_shared)
        self.nbytes = weight.nbytes if is_copy else 0

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        if self._is_packed:
            return multiply(rows, self._weight, self._bias)
        return functional.linear(rows, self._weight, self._bias)


def _is_known(model: nn.Module) -> bool:
    """Return whether a model is of a family that `FusedModel` can run."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    is_of_library = type(model).__module__.startswith("transformers.models.")
    if type(model).__name__ not in _FAMILIES or not is_of_library or model.training:
        return False
    config: Any = model.config
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    # Quantised and adapted layers compute something else than a product with their weight.
    linear = [m for name, m in model.named_modules() if name.endswith(("_proj", "lm_head"))]
    return (
        _is_cpu_supported(model)
        and config._attn_implementation == "sdpa"
        and kinds == {DynamicLayer}
        and all(type(layer) is nn.Linear for layer in linear)
        and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    )


def _is_cpu_supported(part: nn.Module) -> bool:
    weight = next(part.parameters())
    return weight.device.type == "cpu" and weight.dtype in _TOLERANCES


@torch.inference_mode()
def _agrees(fused: FusedModel, model: Any) -> bool:
    """Return whether both give the same logits on a few tokens, as far as their dtype tells."""
    from mtp_verify.caches.dynamic import GrowingLayer

    tokens = torch.arange(_PROBE_TOKENS)[None] % model.config.vocab_size
    layers = [GrowingLayer() for _ in model.get_decoder().layers]
    # Positions are the tokens: both count from 0.
    mine, _ = fused(Trees(tokens, tokens, [0], [_PROBE_TOKENS], None), layers)
    other = model(input_ids=tokens).logits
    distance = (mine - other).float().abs().mean() / other.float().std()
    return bool(distance <= _TOLERANCES[other.dtype])
