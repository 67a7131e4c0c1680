"""The exceptions. Each message says where, what was found and what was wanted.

The compiled core imports the classes from here: under the stable ABI an extension cannot derive
from Python's own exception classes before Python 3.12.
"""

from functools import partial
from typing import Any, Self

__all__ = [
    "CacheError",
    "DraftError",
    "InternalError",
    "MtpVerifyError",
    "NumericsError",
    "OutOfBlocksError",
    "ParamsError",
    "RuleError",
    "ServerError",
    "UnsupportedModelError",
]


class MtpVerifyError(Exception):
    """Base of every error that this package raises.

    Attributes:
        slug: Stable short name of the kind of error, or None.
        node: The node of the draft that it is about, or None.
        row: The row of logits or probabilities that it is about, or None.
        sequence: The sequence that it is about, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        slug: str | None = None,
        node: int | None = None,
        row: int | None = None,
        sequence: int | None = None,
    ) -> None:
        """Keep the message and the places that it names."""
        super().__init__(message)
        self.slug = slug
        self.node = node
        self.row = row
        self.sequence = sequence

    def in_sequence(self, sequence: int) -> Self:
        """Return this error as one of a sequence of a batch."""
        self.args = (f"sequence {sequence}: {self}",)
        self.sequence = sequence
        return self

    def alone(self) -> Self:
        """Return this error without its place in a batch, for a caller that passed no batch."""
        self.args = (str(self).removeprefix(f"sequence {self.sequence}: "),)
        self.sequence = None
        return self


class DraftError(MtpVerifyError, ValueError):
    """A tree, its tokens, its law or its tensors do not fit together."""


class ParamsError(MtpVerifyError, ValueError):
    """A parameter is outside its range, or asks for what is not supported."""


class RuleError(MtpVerifyError, ValueError):
    """A rule is unknown, or not lossless for the draft's law."""


class NumericsError(MtpVerifyError, ValueError):
    """A row is not a distribution: NaN, infinity, negative, or nothing left to draw from."""


class CacheError(MtpVerifyError, ValueError):
    """A cache operation does not fit the cache or the tree."""


class OutOfBlocksError(CacheError):
    """A reservation needs more blocks than are free.

    Attributes:
        missing: How many blocks are missing.
        holders: Sequences that hold blocks, the largest first.
    """

    def __init__(self, message: str, *, missing: int, holders: list[int]) -> None:
        """Keep the message and the figures."""
        super().__init__(message, slug="out_of_blocks")
        self.missing = missing
        self.holders = holders

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from `args` and the figures; the default uses `args` alone."""
        build = partial(type(self), missing=self.missing, holders=self.holders)
        return build, self.args, self.__dict__


class UnsupportedModelError(MtpVerifyError, ValueError):
    """A model cannot be decoded speculatively as it is."""


class ServerError(MtpVerifyError, RuntimeError):
    """A server does not answer, refuses, or answers something else than was asked for."""


class InternalError(MtpVerifyError, RuntimeError):
    """A defect of this package; nothing was changed."""
