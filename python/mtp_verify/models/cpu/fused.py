"""Narrow forwards of Llama-shaped models on a CPU, in fewer and larger operators.

A forward over a draft has a few rows, and half of its time goes into what surrounds the products.
Here a layer's query, key and value products are one, its gate and up products are one, rotary
positions turn queries and keys together, and the queries that share a key are rows of one
attention. Weights are prepacked (`packing`). The model's own formulas stay, and so do the places
where it rounds; only the order of sums differs.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional

from mtp_verify.models.cpu.attention import GroupedMask, attend
from mtp_verify.models.cpu.packing import Product, multiply, prepack, prepacked_copy
from mtp_verify.models.cpu.ragged import Ragged
from mtp_verify.models.hidden import BEFORE_NORM, check_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    # What `rotary` returns; what takes new keys and values and returns those of all entries; what
    # takes queries, new keys and new values and returns what the queries see, as `attend`.
    _Rotary = tuple[torch.Tensor, torch.Tensor]
    _Update = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    _Mix = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

__all__ = ["FusedLayer", "FusedModel", "fuse", "fused_layer", "fused_model", "is_narrow"]

# Their layers are Llama's but for biases and for norms of queries and keys.
_FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_WIDEST = 128  # rows; wider forwards spend their time in products anyway
_PROBE_TOKENS = 5
# Mean distance of logits, relative to their spread, that rounding may explain; 0.7 and more where
# one of the parts is missing.
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.05}
_MODELS: WeakKeyDictionary[nn.Module, tuple[_Watch, FusedModel]] = WeakKeyDictionary()
_LAYERS: WeakKeyDictionary[nn.Module, tuple[_Watch, FusedLayer]] = WeakKeyDictionary()


class FusedLayer:
    """A layer with the parts and the names of a Llama layer, whose weights are copied.

    Attributes:
        group: queries that share a key.
        nbytes: of the copies.
    """

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._head_dim: int = attention.head_dim
        self._num_kv_heads: int = attention.k_proj.out_features // self._head_dim
        self._num_turned = self._num_kv_heads + attention.q_proj.out_features // self._head_dim
        self.group = (self._num_turned - self._num_kv_heads) // self._num_kv_heads
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
        self, x: torch.Tensor, turn: _Rotary, mix: _Mix, ragged: Ragged | None = None
    ) -> torch.Tensor:
        """Run the layer on `x`, hidden states (B, W, d), or (1, R, d) of those that are `ragged`.

        `turn` is from `rotary`. `mix` takes the queries, keys and values (B, heads, W, head_dim) of
        these rows, keeps the last two, and returns (B, W, d), what the queries see in all entries.
        """
        x = x + self._attend(self._input_norm(x), turn, mix, ragged)
        wide = self._gate_up(self._norm(x))
        gate, up = wide[..., : self._width], wide[..., self._width :]
        return x + self._down(self._activation(gate).mul_(up))

    def _attend(
        self, x: torch.Tensor, turn: _Rotary, mix: _Mix, ragged: Ragged | None
    ) -> torch.Tensor:
        joined = self._qkv(x) if ragged is None else ragged.spread(self._qkv(x))
        batch, width, _ = joined.shape
        dim, num_kv, num_turned = self._head_dim, self._num_kv_heads, self._num_turned
        num_queries = num_turned - num_kv
        heads = joined.view(batch, width, num_turned + num_kv, dim).transpose(1, 2)
        turned = heads[:, :num_turned]
        if self._qk_norms is not None:
            q_norm, k_norm = self._qk_norms
            queries, keys = turned[:, :num_queries], turned[:, num_queries:]
            turned = torch.cat((q_norm(queries), k_norm(keys)), dim=1)
        cos, sin = turn
        turned = (turned * cos).add_(turned.roll(dim // 2, -1).mul_(sin))
        queries, keys = turned[:, :num_queries], turned[:, num_queries:]
        seen = mix(queries, keys, heads[:, num_turned:])
        return self._out(seen if ragged is None else ragged.gather(seen))


def rotary(cos: torch.Tensor, sin: torch.Tensor) -> _Rotary:
    """Return rotary cosines and sines (B, W, head_dim) as `FusedLayer` takes them.

    The sines are negated here, once for all layers, instead of half of each query and key.
    """
    half = sin.shape[-1] // 2
    signed = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
    return cos[:, None], signed[:, None]


def _mix(
    update: _Update,
    mask: GroupedMask | Ragged | None,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    keys, values = update(keys, values)
    if isinstance(mask, Ragged):
        return mask.attend(queries, keys, values)
    return attend(queries, keys, values, mask)


class FusedModel:
    """The forward over a few rows of a whole model, whose layers `FusedLayer` knows."""

    def __init__(self, model: Any) -> None:
        decoder = model.get_decoder()
        self._embedding: torch.Tensor = decoder.embed_tokens.weight
        self._rotary = decoder.rotary_emb
        self._layers = [FusedLayer(layer) for layer in decoder.layers]
        self._norm = _Norm(decoder.norm)
        self._head = _Joined(model.get_output_embeddings())
        self.nbytes = sum(layer.nbytes for layer in self._layers) + self._head.nbytes

    def __call__(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        updates: Sequence[_Update],
        hidden_layers: Sequence[int] = (),
        *,
        num_logits: int | None = None,
        counts: Sequence[int] | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return logits (B, num_logits or W, V), and (B, W, d) hidden states per layer.

        Args:
            tokens: (B, W) int64.
            positions: (B, W) int64.
            mask: additive, (B or 1, 1, W, K), or None where every row sees every entry.
            updates: of each layer: takes keys and values (B, heads, W, head_dim) of these rows,
                keeps them, and returns those of all entries.
            hidden_layers: as `mtp_verify.models.hidden` numbers them.
            num_logits: last rows of each sequence whose logits are wanted; None: all.
            counts: (B,) the first rows of each sequence that are wanted: all others are left out of
                the products, and 0 in what is returned. None: all. Not with `num_logits`.
        """
        check_layers(hidden_layers, len(self._layers))
        group, width = self._layers[0].group, tokens.shape[1]
        ragged = None
        if counts is not None and mask is not None and min(counts) < width:
            ragged = Ragged(counts, width, mask, group)
            tokens = ragged.gather(tokens)
        x = functional.embedding(tokens, self._embedding)
        turn = rotary(*self._rotary(x, positions))
        shared = ragged or (None if mask is None else GroupedMask(mask, group))
        states = [x]
        for layer, update in zip(self._layers, updates, strict=True):
            x = layer(x, turn, partial(_mix, update, shared), ragged)
            states.append(x)
        last = self._norm(x)
        # As transformers numbers them: the last layer's state is the one behind the final norm.
        states[-1] = last
        found = tuple(x if i == BEFORE_NORM else states[i] for i in hidden_layers)
        logits = self._head(last if num_logits is None else last[:, -num_logits:])
        if ragged is None:
            return logits, found
        return ragged.spread(logits), tuple(map(ragged.spread, found))


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
    for block in model.modules():
        if getattr(block, "is_fusable", False) and _is_cpu_supported(next(block.parameters())):
            layer = FusedLayer(block)
            _LAYERS[block] = (_Watch(block), layer)
            size += layer.nbytes
    return size


def fused_model(model: nn.Module) -> FusedModel | None:
    """Return what `fuse` made of a model; None if nothing, or if its weights have changed since."""
    watch, fused = _MODELS.get(model, (None, None))
    return None if watch is None or watch.has_changed() else fused


def fused_layer(block: nn.Module) -> FusedLayer | None:
    """Return what `fuse` made of a head's block, as `fused_model`."""
    watch, layer = _LAYERS.get(block, (None, None))
    return None if watch is None or watch.has_changed() else layer


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
        _is_cpu_supported(next(model.parameters()))
        and config._attn_implementation == "sdpa"
        and kinds == {DynamicLayer}
        and all(type(layer) is nn.Linear for layer in linear)
        and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    )


def _is_cpu_supported(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in _TOLERANCES


@torch.inference_mode()
def _agrees(fused: FusedModel, model: Any) -> bool:
    """Return whether both give the same logits on a few tokens, as far as their dtype tells."""
    from transformers.cache_utils import DynamicCache

    config = model.config
    tokens = torch.arange(_PROBE_TOKENS)[None] % config.vocab_size
    mask = torch.full((_PROBE_TOKENS, _PROBE_TOKENS), -torch.inf).triu(1).to(model.dtype)
    cache = DynamicCache(config=config)
    mine, _ = fused(tokens, tokens, mask[None, None], [layer.update for layer in cache.layers])
    # Positions are the tokens: both count from 0.
    other = model(input_ids=tokens).logits
    distance = (mine - other).float().abs().mean() / other.float().std()
    return bool(distance <= _TOLERANCES[other.dtype])
