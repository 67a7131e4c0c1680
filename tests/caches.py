"""What a cache should hold: the entries of one forward over the accepted text alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from mtp_verify.caches.names import cache_name

if TYPE_CHECKING:
    from collections.abc import Sequence

_STATES = ("conv_states", "recurrent_states")


def fresh_cache(model: Any, tokens: Sequence[int], cache: Any = None) -> Any:
    """Return what one forward over `tokens` leaves, in an empty `cache` of any kind."""
    if cache is None:
        cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.tensor([list(tokens)]), use_cache=True, **with_cache(model, cache))
    return cache


def with_cache(model: Any, cache: Any) -> dict[str, Any]:
    """The argument that hands a cache to `model` or to its `generate`."""
    return {cache_name(model.forward): cache}


def assert_same_entries(found: Any, expected: Any, atol: float = 1e-5) -> None:
    """Compare keys, values and recurrent states, entry by entry."""
    assert len(found.layers) == len(expected.layers)
    for mine, theirs in zip(found.layers, expected.layers, strict=True):
        if hasattr(theirs, "get_seq_length"):
            assert int(mine.get_seq_length()) == int(theirs.get_seq_length())
        if getattr(theirs, "keys", None) is not None:
            torch.testing.assert_close(mine.keys, theirs.keys, atol=atol, rtol=0)
            torch.testing.assert_close(mine.values, theirs.values, atol=atol, rtol=0)
        for name in _STATES:
            for index, state in getattr(theirs, name, {}).items():
                own = getattr(mine, name)[index]
                assert (own is None) == (state is None)
                if state is not None:
                    torch.testing.assert_close(own, state, atol=atol, rtol=1e-4)
