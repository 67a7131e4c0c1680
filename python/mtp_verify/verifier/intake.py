"""Convert the arguments of callers to what the core takes, or refuse them by name."""

import operator
import sys
from collections.abc import Iterable, Mapping, Sequence, Sized
from itertools import islice
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any

from mtp_verify.errors import ParamsError
from mtp_verify.verifier.kernels.host import to_host

__all__ = [
    "as_count",
    "as_float",
    "as_list",
    "as_path",
    "as_word",
    "as_words",
    "check_callable",
    "check_history",
    "check_instance",
    "check_sequence",
    "check_type",
    "check_word",
    "shown",
]

_WORDS = 1 << 64
_MOST_SIGNS = 80
_PRINTED = 256  # Longer integers would fill an error message.
_MOST_ITEMS = 1 << 26  # As the core has it: a longer list is a mistake, a range of 2**40 say.


def check_type(name: str, value: Any, kind: type) -> None:
    """Refuse a value that is no instance of a class.

    Raises:
        TypeError: names the argument and the class.
    """
    if not isinstance(value, kind):
        message = f"{name}: found {type(value).__name__}, wanted {kind.__name__}"
        raise TypeError(message)


def as_path(name: str, value: Any) -> Path:
    """Convert to a path.

    Raises:
        TypeError: names what is none.
    """
    if not isinstance(value, str | PathLike):
        message = f"{name}: found {shown(value)}, wanted a path"
        raise TypeError(message)
    return Path(value)


def check_callable(name: str, value: Any) -> None:
    """Refuse a value that cannot be called.

    Raises:
        TypeError: names the argument.
    """
    if not callable(value):
        message = f"{name}: found {shown(value)}, wanted a function"
        raise TypeError(message)


def check_instance(name: str, value: Any, calls: Sequence[str], wanted: str) -> None:
    """Refuse an object without the methods of a protocol, or a class in place of an object.

    Raises:
        TypeError: names the argument and says what is missing.
    """
    if isinstance(value, type):
        message = (
            f"{name}: found the class {value.__name__}, wanted {wanted}: {value.__name__}(...)"
        )
        raise TypeError(message)
    for call in calls:
        if not callable(getattr(value, call, None)):
            message = f"{name}: found {shown(value)} without {call}(), wanted {wanted}"
            raise TypeError(message)


def check_word(name: str, value: Any, words: Sequence[str]) -> None:
    """Refuse a value that is not one of the words of an argument.

    Raises:
        ParamsError: names the argument and the words.
    """
    if not isinstance(value, str) or value not in words:
        message = f"{name}: found {shown(value)}, wanted one of: {', '.join(words)}"
        raise ParamsError(message, slug="param_out_of_range")


def as_count(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Convert a count to an int.

    Raises:
        ParamsError: names what is no integer, too small or too large.
    """
    try:
        count = operator.index(value)
    except Exception:  # noqa: BLE001 - an object's own method may raise anything
        count = least - 1
    if isinstance(value, bool) or count < least or (most is not None and count > most):
        wanted = f">= {least}" if count < least else f"<= {most}"
        message = f"{name}: found {shown(value)}, wanted an integer {wanted}"
        raise ParamsError(message, slug="param_out_of_range")
    return count


def shown(value: Any) -> str:
    """Format a value for an error message: one short line."""
    try:
        if isinstance(value, int) and value.bit_length() > _PRINTED:
            return f"an integer of {value.bit_length()} bits"
        text = repr(value)
    except Exception:  # noqa: BLE001 - an object's own method may raise anything
        text = ""
    is_short = text and len(text) <= _MOST_SIGNS and text.isprintable()
    return text if is_short else f"a {type(value).__name__}"


def check_sequence(name: str, value: Any) -> None:
    """Refuse values without a length and items; nothing is copied.

    Raises:
        ParamsError: names the argument.
    """
    has_both = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    has_length = has_both and getattr(value, "ndim", 1) != 0
    if not has_length or isinstance(value, str | bytes | Mapping):
        message = f"{name}: found {type(value).__name__}, wanted a sequence of tokens"
        raise ParamsError(message, slug="param_out_of_range")


def check_history(
    history: Sequence[int], prompt_len: int, *, root: int, position: int | None
) -> None:
    """Refuse tokens that do not lead to a root.

    Args:
        history: The tokens up to and including the root.
        prompt_len: How many of them are prompt.
        root: The root's token, or -1 where it is not known.
        position: Of the root, or None.

    Raises:
        ParamsError: The history is too short or too long, or does not end with the root.
    """
    check_sequence("history", history)
    if position is not None and len(history) != position + 1:
        message = (
            f"history: found {len(history)} tokens, wanted position + 1 = {position + 1}: "
            "the tokens up to and including the root"
        )
        raise ParamsError(message, slug="param_out_of_range")
    if not 0 <= prompt_len <= len(history):
        message = f"prompt_len: found {prompt_len}, wanted 0 <= prompt_len <= {len(history)}"
        raise ParamsError(message, slug="param_out_of_range")
    if len(history) and root >= 0 and int(history[-1]) != root:
        message = (
            f"history: ends with token {int(history[-1])}, wanted the root's token {root}: "
            "the tokens up to and including the root"
        )
        raise ParamsError(message, slug="param_out_of_range")


def as_list(name: str, values: Any) -> list[Any]:
    """Convert any collection to a list, of at most as many items as its length says.

    Raises:
        TypeError: names what is no collection.
        ParamsError: names what is too long, or longer than it says.
    """
    is_iterable = isinstance(values, Iterable) or hasattr(values, "__getitem__")
    if not is_iterable or isinstance(values, str | bytes | Mapping):
        message = f"{name}: found {type(values).__name__}, wanted a list"
        raise TypeError(message)
    count = _MOST_ITEMS
    if isinstance(values, Sized):
        try:
            count = len(values)
        except OverflowError:
            count = sys.maxsize
        except TypeError:  # An array without dimensions.
            message = f"{name}: found {shown(values)}, wanted a list"
            raise TypeError(message) from None
        if count > _MOST_ITEMS:
            message = f"{name}: found {count} items, wanted at most {_MOST_ITEMS}"
            raise ParamsError(message, slug="param_out_of_range")
    listed = list(islice(values, count + 1))
    if len(listed) > count:
        message = f"{name}: found more than {count} items, wanted no more"
        raise ParamsError(message, slug="param_out_of_range")
    return listed


def as_float(name: str, value: Any) -> float:
    """Convert a number to a float64.

    Raises:
        ParamsError: names what is no number, or an integer beyond all floats.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        message = f"{name}: found {shown(value)}, wanted a number"
        raise ParamsError(message, slug="param_out_of_range")
    try:
        return float(value)
    except OverflowError:
        message = f"{name}: found {shown(value)}, wanted a float64"
        raise ParamsError(message, slug="param_out_of_range") from None


def as_word(name: str, value: Any) -> int:
    """Convert a seed or a position to an int of 64 bits.

    Raises:
        ParamsError: names the value.
    """
    if type(value) is int and 0 <= value < _WORDS:
        return value
    try:
        number = operator.index(value)
    except TypeError:
        message = f"{name}: found {shown(value)}, wanted an integer"
        raise ParamsError(message, slug="param_out_of_range") from None
    if not 0 <= number < _WORDS:
        message = f"{name}: found {shown(number)}, wanted 0 <= {name} < 2**64"
        raise ParamsError(message, slug="param_out_of_range")
    return number


def as_words(name: str, values: Any) -> list[int]:
    """Convert to one integer of 64 bits for each sequence of a batch.

    Raises:
        ParamsError: names the values, and the sequence.
    """
    listed = to_host(values, name).tolist() if hasattr(values, "tolist") else values
    if not isinstance(listed, Iterable):
        message = f"{name}: found {shown(values)}, wanted one for each sequence"
        raise ParamsError(message, slug="param_out_of_range")
    words = as_list(name, listed)
    for sequence, value in enumerate(words):
        if isinstance(value, bool) or not isinstance(value, Integral):
            message = f"sequence {sequence}: {name}: found {shown(value)}, wanted an integer"
            raise ParamsError(message, slug="param_out_of_range", sequence=sequence)
        try:
            as_word(name, value)
        except ParamsError as error:
            raise error.in_sequence(sequence) from None
    return words
