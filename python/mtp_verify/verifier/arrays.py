"""Compare values that hold arrays or tensors, and print them briefly."""

from typing import Any

__all__ = ["is_equal", "sizes"]


def is_equal(one: Any, other: Any) -> bool:
    """Compare arrays, lists and tuples of them, and exceptions by their messages."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(is_equal, one, other))
    if isinstance(one, BaseException):
        return type(one) is type(other) and str(one) == str(other)
    if hasattr(one, "shape") and hasattr(other, "shape"):
        return one.shape == other.shape and bool((one == other).all())
    return bool(one == other)


def sizes(value: Any) -> str:
    """Return a named tuple of arrays as text: the dtype and shape of each."""
    parts = zip(value._fields, value, strict=True)
    listed = ", ".join(f"{name}={part.dtype} {tuple(part.shape)}" for name, part in parts)
    return f"{type(value).__name__}({listed})"
