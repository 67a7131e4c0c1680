"""Settings of `generate` that cannot be honoured, refused by the names that the user used."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from transformers import StaticCache

from mtp_verify.caches.names import cache_name
from mtp_verify.errors import ParamsError, UnsupportedModelError

if TYPE_CHECKING:
    from mtp_verify.integrations.hf.withheld import Call

__all__ = ["check_context", "check_positions", "check_settings", "refuse_caches"]

# What `generate` always sends along, or sends as None, beside the cache.
_KNOWN_KWARGS = frozenset({"attention_mask", "position_ids", "use_cache", "logits_to_keep"})
# Settings that are refused where they are set, some of them to False or 0.
_FLAGS = ("penalty_alpha", "use_mtp", "is_assistant", "output_attentions", "output_hidden_states")
_VALUES = (
    "dola_layers", "constraints", "force_words_ids", "prompt_lookup_num_tokens",
    "assistant_early_exit",
)  # fmt: skip
# Zeros say of every token of a model of images and text that it is text.
_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")


def check_context(context: int | None, max_length: int, shown: torch.Tensor) -> None:
    """Refuse texts beyond the model's context: `generate` runs on, and drafts may be inexact."""
    longest = int(shown.sum(1).max())
    num_new = max_length - shown.shape[1]
    if context is not None and longest + num_new > context:
        message = (
            f"max_new_tokens: found {num_new} behind a prompt of {longest} tokens; the model's "
            f"context is {context}, so wanted {max(context - longest, 0)} at most"
        )
        raise ParamsError(message, slug="beyond_context")


def check_settings(model: Any, config: Any, model_kwargs: dict[str, Any], call: Call) -> None:
    """Refuse settings that would otherwise be ignored.

    Args:
        model: that generates.
        config: of the generation, as `generate` has prepared it.
        model_kwargs: what it sends along for the forward, without the cache.
        call: of `generate`, as far as it can be seen.
    """
    names = [*call.withheld, *(["num_beams"] if (config.num_beams or 1) > 1 else [])]
    names += [name for name in _FLAGS if getattr(config, name, None)]
    names += [name for name in _VALUES if getattr(config, name, None) is not None]
    for name, value in model_kwargs.items():
        if name not in _KNOWN_KWARGS and value is not None and not _is_of_text(name, value, model):
            names += _names_of(name, model, model_kwargs, call)
    if names:
        message = (
            f"generate's {', '.join(names)} cannot be combined with mv.hf.speculative; unset it"
        )
        raise ParamsError(message, slug="unsupported_setting")
    if config.cache_implementation not in (None, "dynamic", "static"):
        message = (
            f'cache_implementation="{config.cache_implementation}" cannot be rolled back after a '
            'rejected draft; use "static", or leave it unset (the dynamic cache)'
        )
        raise UnsupportedModelError(message, slug="unsupported_cache")


def _is_of_text(name: str, value: Any, model: Any) -> bool:
    """Return whether it only states that there are no images."""
    if name == "mm_encoder_outputs":
        return not any(output is not None for output in value.values())
    has_images = "pixel_values" in inspect.signature(model.forward).parameters
    return name in _TOKEN_TYPES and has_images and not bool(value.any())


def _names_of(name: str, model: Any, model_kwargs: dict[str, Any], call: Call) -> list[str]:
    """Return the user's name for an argument of the forward, which `generate` may have made."""
    if call.given is None and name == "mm_encoder_outputs":
        return ["images or videos (mm_encoder_outputs)"]
    if call.maker:
        return [f"{name} (made by {call.maker}.generate)"]
    if call.given is None or name in call.given:
        return [name]
    # The outputs of an encoder: what went into it is gone, and stands in the call.
    forward = set(inspect.signature(model.forward).parameters)
    gone = forward - {*model_kwargs, cache_name(model.forward), "input_ids"}
    return [n for n, value in call.given.items() if n in gone and value is not None] or [name]


def refuse_caches(argument: str, past: Any, config: Any) -> None:
    """Refuse caches that a paged one would replace; an empty dynamic one is the default."""
    name = None
    if config.cache_implementation is not None:
        name = f'cache_implementation="{config.cache_implementation}"'
    elif isinstance(past, StaticCache) or (past is not None and past.get_seq_length() > 0):
        name = argument
    if name is not None:
        message = f"a paged cache keeps its entries in a pool of its own: unset {name}, or cache"
        raise ParamsError(message, slug="unsupported_setting")


def check_positions(positions: Any, mask: torch.Tensor | None, input_ids: torch.Tensor) -> None:
    """Refuse positions other than those that the mask implies."""
    if positions is None:
        return
    length = input_ids.shape[1]
    visible = torch.ones_like(input_ids) if mask is None else mask.to(input_ids.device)
    expected = (visible.cumsum(-1) - 1)[:, -positions.shape[-1] :]
    shown = visible[:, -positions.shape[-1] :] != 0
    # Models of images and text have one set of positions for each axis; those of text are equal.
    axes = positions[None] if positions.dim() == 2 else positions
    if (
        axes.dim() != 3
        or axes.shape[2] > length
        or axes.shape[1] != input_ids.shape[0]
        or any(bool((axis.to(input_ids.device) != expected)[shown].any()) for axis in axes)
    ):
        message = (
            "position_ids: found others than those of the attention mask; leave them to generate"
        )
        raise ParamsError(message, slug="unsupported_setting")
