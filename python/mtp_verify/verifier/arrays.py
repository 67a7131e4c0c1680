"""Arrays and tensors inside of values: when two are equal, and what a short text says of them."""

from typing import Any

__all__ = ["is_equal", "sizes"]


def is_equal(one: Any, other: Any) -> bool:
    """Equality of arrays, of lists and tuples of them, and of exceptions that say the same."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(is_equal, one, other))
    if isinstance(one, BaseException):
        return type(one) is type(other) and str(one) == str(other)
    if hasattr(one, "shape") and hasattr(other, "shape"):
        return one.shape == other.shape and bool((one == other).all())
    return bool(one == other)


def sizes(value: Any) -> str:
    """The text of a named tuple of arrays: the dtype and shape of each."""
    parts = zip(value._fields, value, strict=True)
    listed = ", ".join(f"{name}={part.dtype} {tuple(part.shape)}" for name, part in parts)
    return f"{type(value).__name__}({listed})"
