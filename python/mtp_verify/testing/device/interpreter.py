"""Triton's interpreter without what it does anew at every operation.

Kernels of short rows spend their time in the interpreter's own bookkeeping: it patches the language
at every call of a function, and makes the same types again for every tensor. What is computed stays
as it is.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import triton
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["enlarged", "hastened", "numbers_as_on_a_device"]


class _Kept:
    """A patch of `triton.language` that stays until `hastened` ends."""

    def restore(self) -> None:
        """Do nothing: others still need it."""


@contextmanager
def hastened() -> Iterator[None]:
    """Make the interpreter remember what it made, inside the block.

    Raises:
        RuntimeError: Kernels would be compiled: TRITON_INTERPRET was not set in time.
    """
    if not triton.knobs.runtime.interpret:
        message = "TRITON_INTERPRET: not set, wanted 1 before kernels are imported"
        raise RuntimeError(message)
    # It computes whether numbers overflow, and asserts it in its debug mode alone.
    options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    scopes: dict[frozenset[int], Any] = {}
    broadcast = TritonSemantic.broadcast_impl_value
    changes = (
        (interpreter.interpreter_builder, "options", options),
        (tl.block_type, "__init__", _remembered_types(tl.block_type.__init__)),
        (tl.tensor, "__init__", _remembered_shapes(tl.tensor.__init__)),
        (interpreter, "_get_np_dtype", _by_name(interpreter._get_np_dtype)),
        (TritonSemantic, "broadcast_impl_value", _if_shapes_differ(broadcast)),
        (interpreter, "_patch_lang", _patched_once(interpreter._patch_lang, scopes)),
    )
    with ExitStack() as stack:
        for owner, name, value in changes:
            stack.enter_context(patch.object(owner, name, value))
        yield
        for scope in reversed(scopes.values()):
            scope.restore()


@contextmanager
def enlarged(package: str) -> Iterator[None]:
    """Make programs fewer and larger, and loops as short as rows: no bit depends on it."""
    sizes = {
        "race": {"PAIRS": 4096},
        "stats": {"GROUP": 64, "PROGRAMS": 1},
        "rows": {"UNROLLED": tl.constexpr(1)},
        "residual": {"UNROLLED": tl.constexpr(1)},
    }
    with ExitStack() as stack:
        for module, values in sizes.items():
            for name, value in values.items():
                own = import_module(f"{package}.{module}")
                stack.enter_context(patch.object(own, name, value))
        yield


@contextmanager
def numbers_as_on_a_device() -> Iterator[None]:
    """Let infinities and NaN come up without a warning, as they do there."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        yield


def _patched_once(patch: Any, scopes: dict[frozenset[int], Any]) -> Callable[[Any], _Kept]:
    """Patch the language once for all modules that call it by the same names."""
    seen: dict[int, Any] = {}

    def patch_once(function: Any) -> _Kept:
        names = function.__globals__
        if id(names) not in seen:
            seen[id(names)] = names
            modules = (interpreter.tl, interpreter.tl.core)
            found = frozenset(id(m) for m in names.values() if m in modules)
            if found not in scopes:
                scopes[found] = patch(function)
        return _Kept()

    return patch_once


def _remembered_types(make: Any) -> Callable[..., None]:
    """Make each type of blocks once."""
    made: dict[Any, dict[str, Any]] = {}

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple(getattr(size, "value", size) for size in shape)
        key = (element_ty.name, sizes)
        if key not in made:
            make(self, element_ty, shape)
            made[key] = dict(self.__dict__)
        self.__dict__.update(made[key])

    return init


def _remembered_shapes(make: Any) -> Callable[..., None]:
    """Make the shape of the tensors of a type once."""
    made: dict[int, tuple[Any, Any, Any]] = {}

    def init(self: Any, handle: Any, type: Any) -> None:
        # Types of one shape share it: it is kept here, so that its number stays its own.
        of_type = type.shape if type.is_block() else None
        if id(of_type) not in made:
            make(self, handle, type)
            made[id(of_type)] = (of_type, self.shape, self.numel)
        self.handle, self.type, self.dtype = handle, type, type.scalar
        _, self.shape, self.numel = made[id(of_type)]

    return init


def _by_name(find: Any) -> Callable[[Any], Any]:
    """Find numpy's type once for each name of a type."""
    found: dict[str, Any] = {}

    def find_once(dtype: Any) -> Any:
        if dtype.name not in found:
            found[dtype.name] = find(dtype)
        return found[dtype.name]

    return find_once


def _if_shapes_differ(broadcast: Any) -> Callable[..., Any]:
    """Leave tensors of one shape alone."""

    def broadcast_others(self: Any, lhs: Any, rhs: Any) -> Any:
        if lhs.shape is rhs.shape:
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    return broadcast_others
