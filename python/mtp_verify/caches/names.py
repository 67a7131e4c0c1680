"""What transformers calls the argument that takes a cache; nothing else in the package knows.

Up to 5.23 it is `past_key_values`, and `cache_params` in some recurrent models; since 5.24 it is
`cache`, in forwards, in `generate` and in what they return. Each function is asked for itself, so
that no version has to be known.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["cache_name"]

_NAMES = ("cache", "past_key_values", "cache_params")


def cache_name(function: Callable[..., Any]) -> str | None:
    """Return the parameter of a forward, or of a class of outputs, that takes a cache, or None.

    A parameter of another name counts if its annotation says `Cache`.
    """
    parameters = inspect.signature(function).parameters
    if known := next((name for name in _NAMES if name in parameters), None):
        return known
    pairs = parameters.items()
    return next((n for n, given in pairs if re.search(r"\bCache\b", str(given.annotation))), None)
