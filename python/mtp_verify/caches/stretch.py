"""Made-up entries behind a prompt, so that a few tokens reach past the end of a window.

Windows of attention, and chunks, are longer than what is worth running only to see how a model
behaves there. What matters is which entries a token sees, not what they hold: the prompt's own are
copied, in an order that does not repeat, and those at a window's end get values that show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtp_verify.caches.base import DUMMY
from mtp_verify.caches.indexed import IndexedLayer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mtp_verify.caches.model import ModelCache

__all__ = ["attending", "copied", "spans_of", "stretch"]

# What a configuration calls the reach of its attention.
_REACHES = ("window", "chunk", "local", "block", "span")
# Entries that are made up may take this share of the model's own memory, and always 64 MiB.
_SHARE_OF_MEMORY = 1 / 16
_ALWAYS = 1 << 26
# Entries that there are at least: how much longer than another request's text this one is.
_LENGTH = 32
# How far behind a window's end a token of what is tried may stand.
_EDGE = 16
_LARGEST_WEIGHT = 512.0  # eight times that and a usual value is finite in float16


def spans_of(model: Any, cache: ModelCache) -> list[int]:
    """Return the reaches of attention that the configuration names, least first.

    Left out are those shorter than the prompt in the cache, and those that there is no memory for.
    """
    layers = attending(cache.kv)
    held = sum(states.nbytes for layer in layers for states in (layer.keys, layer.values))
    parameters = sum(weight.nbytes for weight in model.parameters())
    most = max(_ALWAYS, parameters * _SHARE_OF_MEMORY) * cache.length / max(held, 1)
    config = model.config.get_text_config(decoder=True).to_dict()
    named = {n for name, n in _numbers(config) if any(word in name for word in _REACHES)}
    return sorted(n for n in named if cache.length < n < most)


def stretch(cache: ModelCache, spans: list[int], most: int) -> int:
    """Write entries behind those of a prompt, `most` in all, and return how many there are.

    The third token that follows is the first one not to see all: the widest window (`spans_of`) has
    slid by one, or a chunk has begun.
    """
    length, layers = cache.length, attending(cache.kv)
    spans = [span for span in spans if span <= most]
    widest = max(spans, default=_LENGTH)
    total = min(widest * -(-_LENGTH // widest) - 1, most)
    count = total - length
    if not layers or count < 1:
        return length
    # As copies of a few the entries would have one sum, unless some are turned about.
    weights = torch.ones(total)
    weights[torch.arange(total) ** 2 // 5 % 2 == 1] = -1
    for span in spans:
        edge = total + 1 - span
        weights[edge : edge + _EDGE] *= max(1.0, min(span / 8, _LARGEST_WEIGHT))
        weights[edge] *= 8
    # Which entry of the prompt each one copies: one that leaves a window must not have a twin that
    # enters it.
    places = torch.arange(count) ** 2 // 3
    with cache.writing(count):
        for layer in layers:
            held = layer.keys.shape[2]
            weight = weights.to(layer.values)[:, None]
            place = (places % held).to(layer.keys.device)
            made = layer.values[:, :, place] * weight[length:]
            layer.values.mul_(weight[length - held : length])
            layer.update(layer.keys[:, :, place], made)
            if isinstance(layer, IndexedLayer):
                # Of equal scores nobody knows which one is picked.
                scores = 1.0 + torch.arange(1, count + 1) / count
                keys = layer.index.keys[:, 0, place]
                layer.update_indexer(keys * scores.to(keys)[:, None])
    cache.crop(total)
    return total


def attending(kv: Any) -> list[Any]:
    """Return the layers of a cache that hold keys and values of their own."""
    return [layer for layer in kv.layers if not isinstance(layer, DUMMY) and hasattr(layer, "keys")]


def copied(cache: ModelCache) -> list[tuple[torch.Tensor, ...]]:
    """Return copies of the keys and values of each layer; zeros for what has left a window."""

    def whole(states: torch.Tensor) -> torch.Tensor:
        missing = cache.length - states.shape[2]
        return torch.nn.functional.pad(states, (0, 0, missing, 0)).clone()

    return [(whole(layer.keys), whole(layer.values)) for layer in attending(cache.kv)]


def _numbers(config: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Yield the integers of nested dictionaries and lists, with the names of their keys."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _numbers(value, str(key))
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _numbers(value, name)
    elif isinstance(config, int) and not isinstance(config, bool):
        yield name, config
