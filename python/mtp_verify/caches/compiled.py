"""Models under `torch.compile`: the module that was compiled, and its name.

What belongs to the model (its class, the arguments of its forward) is asked of the model inside;
forwards go through the module around it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

__all__ = ["is_compiled", "name_of", "uncompiled", "without_compiler"]


def without_compiler(model: Any) -> Any:
    """Return the model inside `torch.compile(model)`; any other model is itself."""
    return getattr(model, "_orig_mod", model)


def name_of(model: Any) -> str:
    """Return the name of the model's class."""
    return type(without_compiler(model)).__name__


def is_compiled(model: Any) -> bool:
    """Return whether forwards are compiled: the module, its forward, or by `model.compile()`."""
    inner = without_compiler(model)
    return (
        inner is not model
        or hasattr(inner.forward, "_torchdynamo_orig_callable")
        or getattr(inner, "_compiled_call_impl", None) is not None
    )


def uncompiled(model: Any) -> AbstractContextManager[Any]:
    """While it is open, the model runs as it was written, and nothing is compiled."""
    return torch.compiler.set_stance("force_eager") if is_compiled(model) else nullcontext()
