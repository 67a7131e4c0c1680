"""Targets: a transformers model behind the calls of `models.interface`, or one of your own."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify.caches.compiled import name_of, without_compiler
from mtp_verify.caches.names import cache_name
from mtp_verify.caches.trials import inexact, state_obstacle, static_obstacle, traits_of
from mtp_verify.errors import UnsupportedModelError
from mtp_verify.models.cpu.fused import Trees, fused_model, is_narrow
from mtp_verify.models.cpu.ragged import Ragged
from mtp_verify.models.hidden import HiddenStates
from mtp_verify.models.interface import BatchTarget, Target, TargetCache, check_facts, missing_parts
from mtp_verify.models.supported import warn_if_untested

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers.cache_utils import DynamicCache

    from mtp_verify.caches.many import ManyCache
    from mtp_verify.caches.model import ModelCache
    from mtp_verify.models.cpu.fused import FusedModel

__all__ = ["BatchTarget", "Target", "TargetCache", "TransformersTarget", "as_target"]

# These attend along a tree through a 4-D additive mask. Flash kernels take no such mask, and flex
# attention corrupts memory on the CPU when it is given one (transformers 5.23).
_TREE_ATTENTION = ("eager", "sdpa")


class TransformersTarget:
    """A transformers causal language model as `Target`.

    It is in evaluation mode, with a cache that can be rolled back (`mtp_verify.caches`). One that
    was given to `torch.compile` runs compiled.

    Attributes:
        takes_positions: whether its forward can be told where tokens stand.
        switch_length: longest text that is read as short ones are: beyond it, the model turns
            queries and keys by other frequencies (longrope). None for all others.
        forgets_at_switch: whether the library then computes all entries of the text anew.

    Raises:
        UnsupportedModelError: the model cannot decode speculatively; says why. It is tried on a few
            tokens at first (`mtp_verify.caches.trials`).
    """

    def __init__(self, model: Any) -> None:
        import transformers

        warn_if_untested(transformers.__version__)
        _refuse_unsuitable(model)
        self.model = model
        config = model.config.get_text_config(decoder=True)
        self._config = config
        self.vocab_size: int | None = getattr(config, "vocab_size", None)
        self.max_length: int | None = getattr(config, "max_position_embeddings", None)
        self.eos_ids = _token_ids(getattr(model.generation_config, "eos_token_id", None))
        self._dtype = next(model.parameters()).dtype
        forward = without_compiler(model).forward
        names = inspect.signature(forward).parameters
        self._takes_logits_to_keep = "logits_to_keep" in names
        self.takes_positions = "position_ids" in names
        self._cache_name = cache_name(forward)
        # What cannot work is refused here, not in mid-generation.
        is_recurrent = self._check_cache()
        obstacle = self._find_tree_obstacle(is_recurrent=is_recurrent)
        # Trees and batches are worth trying where they are not refused already.
        traits = traits_of(self, trees=obstacle is None, batches=obstacle is None)
        if traits.chains:
            raise inexact(model, traits.chains)
        self.tree_obstacle = obstacle or (
            traits.trees and f"{traits.trees}; use a drafter of chains"
        )
        self.batch_obstacle = obstacle or traits.batches
        self.switch_length = traits.switch
        self.forgets_at_switch = traits.forgets
        self.max_length = traits.max_length or self.max_length

    @property
    def device(self) -> torch.device:
        """Where the model's input belongs."""
        device: torch.device = self.model.device
        return device

    @property
    def is_ragged(self) -> bool:
        """See `BatchTarget.is_ragged`: where forwards are fused."""
        return fused_model(self.model) is not None

    @property
    def fingerprint(self) -> Any:
        """What decides how the model runs, its weights aside."""
        attention = self._config._attn_implementation
        is_fused = fused_model(self.model) is not None
        return str(self.model.config.to_dict()), attention, self._dtype, is_fused

    def new_cache(self, past: Any | None = None) -> ModelCache:
        """Return an empty cache, or wrap the user's own (changed in place).

        Raises:
            UnsupportedModelError: it cannot be rolled back, or the model does not run on it.
        """
        from mtp_verify.caches.model import ModelCache

        if past is None:
            return ModelCache(self.new_kv())
        cache = ModelCache(past)
        if cache.capacity is not None and (found := static_obstacle(self, cache.capacity)):
            message = f"{name_of(self.model)} takes no {type(past).__name__}: {found}"
            raise UnsupportedModelError(message, slug="unsupported_cache")
        return cache

    def _check_cache(self) -> bool:
        """Return whether the model has recurrent layers; refuse one whose cache cannot go back."""
        if self._cache_name is None:
            raise inexact(self.model, "its forward takes no cache that could be rolled back")
        is_recurrent = self.new_cache().is_recurrent
        if is_recurrent and (obstacle := state_obstacle(self)):
            raise inexact(self.model, obstacle)
        return is_recurrent

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor | None,
        tree_mask: torch.Tensor | None,
        cache: ModelCache,
        hidden_layers: Sequence[int] = (),
        *,
        num_logits: int,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """See `Target.forward`."""
        fused = self._fused_for(tokens.numel(), cache)
        if fused is not None:
            given = tokens, positions, tree_mask, cache, hidden_layers, num_logits
            return self._forward_fused(fused, *given)
        options: dict[str, Any] = {}
        if positions is None and self.takes_positions:
            # As `generate` does. Models that are left to count make positions of their own: from 0
            # in every forward (Bamba), behind those of padding (RoBERTa), or by what they remember
            # of the last image (Qwen2-VL; all in transformers 5.23).
            start = cache.length
            positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
        if positions is not None:
            options["position_ids"] = positions
        if tree_mask is not None:
            options["attention_mask"] = self._attention_mask(tree_mask, positions, cache)
        if self._takes_logits_to_keep:
            options["logits_to_keep"] = num_logits
        with cache.writing(tokens.shape[1]):
            logits, states = self._run(tokens, cache, hidden_layers, options)
        hidden = tuple(state[0] for state in states) if hidden_layers else None
        return _as_read(logits[0, -num_logits:]), hidden

    def _run(
        self, tokens: torch.Tensor, cache: Any, layers: Sequence[int], options: dict[str, Any]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Run the model's own code; return logits (B, any, V) and (B, n, d) hidden states."""
        options = {**options, self._cache_name or "": cache.kv}
        with HiddenStates(self.model, layers) as states:
            options |= states.options
            output = self.model(input_ids=tokens, use_cache=True, return_dict=True, **options)
        return output.logits, states.of(output)

    def _fused_for(self, num_rows: int, cache: Any) -> FusedModel | None:
        """Return what runs a forward of so many rows instead of the model's own code, or None."""
        if (fused := fused_model(self.model)) is None or not is_narrow(num_rows):
            return None
        from mtp_verify.caches.base import are_open

        # A cache without a configuration has no layers before the first forward.
        return fused if are_open(getattr(cache.kv, "layers", ())) else None

    def _forward_fused(
        self,
        fused: FusedModel,
        tokens: torch.Tensor,
        positions: torch.Tensor | None,
        ancestors: torch.Tensor | None,
        cache: ModelCache,
        hidden_layers: Sequence[int],
        num_logits: int,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        width, past = tokens.shape[1], cache.length
        if positions is None:
            positions = torch.arange(past, past + width)[None]
        seen = None if ancestors is None else ancestors[None]
        trees = Trees(tokens, positions, [past], [width], seen)
        with cache.writing(width):
            logits, states = fused(trees, cache.kv.layers, hidden_layers, num_logits=num_logits)
        return logits[0], tuple(state[0] for state in states) if hidden_layers else None

    def new_kv(self) -> DynamicCache:
        """See `BatchTarget.new_kv`."""
        from transformers.cache_utils import DynamicCache

        return DynamicCache(config=self.model.config)

    def forward_slots(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        ancestors: torch.Tensor,
        cache: ManyCache,
        hidden_layers: Sequence[int] = (),
        counts: Sequence[int] | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """See `BatchTarget.forward_slots`."""
        from mtp_verify.caches.masks import slot_mask

        (has_full, window), (count, width) = cache.windows, tokens.shape
        cache.aim(width, tokens.device)
        counts = counts or [width] * count
        if (fused := self._fused_for(sum(counts), cache)) is not None:
            ragged = Ragged(counts, width)
            rows = ragged.gather(tokens), ragged.gather(positions)
            trees = Trees(*rows, cache.lengths, counts, ancestors)
            logits, states = fused(trees, cache.kv.layers, hidden_layers)
            return ragged.spread(logits), tuple(map(ragged.spread, states))
        starts, num_shown = cache.starts(tokens.device), cache.num_shown(width)
        shape, masks = (starts, num_shown, positions, ancestors, self._dtype), {}
        if has_full:
            masks["full_attention"] = slot_mask(*shape)
        if window is not None:
            masks["sliding_attention"] = slot_mask(*shape, window=window)
        mask = masks if len(masks) > 1 else next(iter(masks.values()))
        options = {"position_ids": positions, "attention_mask": mask}
        logits, states = self._run(tokens, cache, hidden_layers, options)
        return _as_read(logits), states

    def _attention_mask(
        self, ancestors: torch.Tensor, positions: torch.Tensor | None, cache: ModelCache
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        from mtp_verify.caches.masks import tree_mask

        past, (has_full, window) = cache.length, cache.windows
        shape = ancestors.to(self.device), past, self._dtype
        full = tree_mask(*shape, capacity=cache.capacity)
        if window is None:
            return full
        depths = torch.arange(len(ancestors)) if positions is None else positions[0] - past
        sliding = tree_mask(*shape, window=window, depths=depths.to(self.device))
        return {"full_attention": full, "sliding_attention": sliding} if has_full else sliding

    def _find_tree_obstacle(self, *, is_recurrent: bool) -> str | None:
        if is_recurrent:
            return (
                f"{name_of(self.model)} has recurrent layers, which keep one state and not "
                "one for each branch; use a drafter of chains"
            )
        attention = self._config._attn_implementation
        if attention not in _TREE_ATTENTION:
            return (
                f'attention "{attention}" takes no mask of a tree; load the model with '
                'attn_implementation="sdpa" or "eager", or use a drafter of chains'
            )
        if not self.takes_positions:
            return "its forward takes no position_ids, so nodes cannot be placed by their depth"
        layer_types = getattr(self._config, "layer_types", None) or ()
        unknown = sorted(set(layer_types) - {"full_attention", "sliding_attention"})
        if unknown:
            return f"layers of type {', '.join(unknown)} take no mask of a tree"
        return None


def as_target(model: Any) -> Target:
    """Return `model` as a `Target`: itself if it is one, else a transformers model wrapped.

    Raises:
        UnsupportedModelError: it is neither, or a transformers model that cannot work.
    """
    if isinstance(model, type):
        name = model.__name__
        message = f"model: found the class {name}, wanted an object: {name}(...)"
        raise UnsupportedModelError(message, slug="not_a_target")
    missing = missing_parts(model)
    if not missing:
        own: Target = model
        check_facts(own)
        return own
    if isinstance(model, torch.nn.Module) and hasattr(model, "config"):
        return TransformersTarget(model)
    message = (
        f"model: found {type(model).__name__}, which is neither a transformers causal language "
        f"model nor a Target: it has no {', '.join(missing)}. Derive from mv.Target "
        "(docs/howto/own-target.md)"
    )
    raise UnsupportedModelError(message, slug="not_a_target")


def _refuse_unsuitable(model: Any) -> None:
    name, config = name_of(model), model.config
    attention = config.get_text_config(decoder=True)._attn_implementation
    obstacles = {
        "encoder_decoder": (
            getattr(config, "is_encoder_decoder", False),
            "is an encoder-decoder model; only decoder-only models are supported",
        ),
        "no_lm_head": (
            not hasattr(model, "generation_config") or not model.can_generate(),
            "has no language-model head; load it with AutoModelForCausalLM",
        ),
        "unsupported_attention": (
            attention == "flex_attention" and model.device.type == "cpu",
            "uses flex_attention, which corrupts memory on the CPU; load it with "
            'attn_implementation="sdpa"',
        ),
        "training_mode": (
            model.training,
            "is in training mode, where dropout makes its rows random; call model.eval()",
        ),
    }
    for slug, (is_found, obstacle) in obstacles.items():
        if is_found:
            message = f"{name} {obstacle}"
            raise UnsupportedModelError(message, slug=slug)


def _as_read(logits: torch.Tensor) -> torch.Tensor:
    """Return what the core reads, rows of 32 bits at most, as `generate` does."""
    return logits.float() if logits.dtype == torch.float64 else logits


def _token_ids(value: Any) -> tuple[int, ...]:
    """Return one id, several, a tensor of them or None, as a tuple."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    elif value is None:
        value = ()
    return tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else (int(value),)
