"""What comes in from callers, brought into the form that the core takes."""

import operator
from collections.abc import Iterable
from numbers import Integral
from typing import Any

from mtp_verify.errors import ParamsError

__all__ = ["as_word", "as_words", "on_host"]

_WORDS = 1 << 64
_PRINTED = 256  # Longer integers would fill an error message.


def on_host(tensor: Any) -> Any:
    """The tensor itself, or its copy on the host where it lives on a device; detached."""
    if getattr(tensor, "requires_grad", False):
        tensor = tensor.detach()
    return tensor if getattr(tensor, "is_cpu", True) else tensor.cpu()


def as_word(name: str, value: Any) -> int:
    """A seed or a position as an int that fits its 64 bits.

    Raises:
        ParamsError: names the value.
    """
    try:
        number = operator.index(value)
    except TypeError:
        message = f"{name}: found {value!r}, wanted an integer"
        raise ParamsError(message, slug="param_out_of_range") from None
    if not 0 <= number < _WORDS:
        bits = number.bit_length()
        found = number if bits <= _PRINTED else f"an integer of {bits} bits"
        message = f"{name}: found {found}, wanted 0 <= {name} < 2**64"
        raise ParamsError(message, slug="param_out_of_range")
    return number


def as_words(name: str, values: Any) -> list[int]:
    """One word of 64 bits for each sequence of a batch.

    Raises:
        ParamsError: names the values, and the sequence.
    """
    listed = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(listed, Iterable):
        message = f"{name}: found {values!r}, wanted one for each sequence"
        raise ParamsError(message, slug="param_out_of_range")
    words = list(listed)
    for sequence, value in enumerate(words):
        if isinstance(value, bool) or not isinstance(value, Integral):
            message = f"sequence {sequence}: {name}: found {value!r}, wanted an integer"
            raise ParamsError(message, slug="param_out_of_range", sequence=sequence)
        try:
            as_word(name, value)
        except ParamsError as error:
            raise error.in_sequence(sequence) from None
    return words
