"""A user's own logits processors, called as `generate` calls them: once for each emitted token.

A processor may keep state: count its calls, remember what it saw, change its settings as the text
grows. Drafts ask for the rows of many continuations, most of which never come. So each node of a
draft is given a copy of the processors as they are after the calls for the node's ancestors, and
once a token is emitted, the user's own objects are called with what the copy at its node was given.
They get the calls of plain generation, in their order, and no others.

Rows of a batch are verified each at a length of its own, so that no call could be that of plain
generation. There a processor has to be a function of its arguments: one that a call has changed is
refused.
"""

from __future__ import annotations

import copy
import functools
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from mtp_verify.errors import ParamsError
from mtp_verify.verifier.processors import keeps_state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Followed", "Unchanging", "copies_of", "may_keep_state"]


def may_keep_state(processor: Any) -> bool:
    """Return whether calls may change a processor: a user's object with attributes.

    The library's own are functions of their arguments, those aside that are refused by name.
    """
    if type(processor).__module__.startswith("transformers."):
        inner = getattr(processor, "_prefix_allowed_tokens_fn", None)
        return inner is not None and may_keep_state(inner)
    if isinstance(processor, MethodType):
        return may_keep_state(processor.__self__)
    if isinstance(processor, FunctionType | BuiltinFunctionType) or keeps_state(processor):
        return False
    slots = any(getattr(kind, "__slots__", ()) for kind in type(processor).__mro__)
    is_partial = isinstance(processor, functools.partial)
    return slots or is_partial or bool(getattr(processor, "__dict__", True))


def copies_of(processors: Sequence[Any]) -> list[Any]:
    """Copy those that may keep state, all in one: what they share, their copies share.

    Models and tokenizers that they have are not copied.

    Raises:
        ParamsError: one that cannot be copied; names it.
    """
    kept = [processor for processor in processors if not may_keep_state(processor)]
    memo: dict[int, Any] = {id(processor): processor for processor in kept}
    for processor in processors:
        for value in getattr(processor, "__dict__", {}).values():
            if isinstance(value, torch.nn.Module | PreTrainedTokenizerBase):
                memo[id(value)] = value
    copies = []
    for processor in processors:
        try:
            copies.append(copy.deepcopy(processor, memo))
        except Exception as error:
            message = (
                f"logits processor {_name(processor)} may keep state and cannot be copied "
                f"({type(error).__name__}: {error}), so it cannot be asked about drafts: give it "
                "fork and accept (mtp_verify.verifier.processors), or pass a plain function, "
                "which is taken to keep none"
            )
            raise ParamsError(message, slug="unsupported_processor") from error
    return copies


class _Place:
    """A node of a draft: the processors before their call there, what they got, and after it."""

    def __init__(self, before: list[Any]) -> None:
        self.before = self.after = before
        self.given: tuple[torch.Tensor, torch.Tensor] | None = None
        self.children: dict[int, _Place] = {}

    def child(self, token: int) -> _Place:
        return self.children.setdefault(token, _Place(self.after))


class Followed:
    """Processors of one sequence, one after the other, as a decoder forks them.

    The first fork is a row's, and calls the user's own for each token that it accepts; a fork of
    that stands at a node of a draft.

    Args:
        own: the user's, and those of the library between them; one of them `may_keep_state`.
        padding: (P,) the tokens before the sequence's own ones.
    """

    def __init__(self, own: Sequence[Any], padding: torch.Tensor) -> None:
        copies_of(own)  # What cannot be copied is refused before anything runs.
        self._own, self._padding = list(own), padding
        self._place = _Place(self._own)
        self._num_forks = 0

    def fork(self) -> Followed:
        """Return a copy at the same place, for a row or for a node of its draft."""
        fork = copy.copy(self)
        fork._num_forks += 1
        return fork

    def accept(self, token: int) -> None:
        """Go on by a token, which is drafted or emitted."""
        if self._num_forks > 1:
            self._place = self._place.child(token)
            return
        if self._place.given is not None:
            # What the copies were given where this token was drawn.
            _run(self._own, *self._place.given)
        self._place = self._place.children.get(token) or _Place(self._own)
        self._place.before = self._own

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Call copies of them, as they are after the calls for the text before."""
        place = self._place
        shown = torch.cat([self._padding[None].to(input_ids), input_ids], dim=1)
        # Processors may write into what they are given.
        place.given = shown.clone(), scores.clone()
        place.after = copies_of(place.before)
        return _run(place.after, shown, scores)


class Unchanging:
    """Processors of one row of a batch, which no call may change; it calls `for_row` of each."""

    def __init__(self, own: Sequence[Any], for_row: Callable[[Any], Any]) -> None:
        self._copies, self._first = copies_of(own), copies_of(own)
        self._called = [for_row(processor) for processor in self._copies]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Call them, and refuse those that it has changed."""
        scores = _run(self._called, input_ids, scores)
        for processor, first in zip(self._copies, self._first, strict=True):
            if not _is_same(processor, first, set()):
                message = (
                    f"logits processor {_name(processor)} keeps state (a call has changed it), and "
                    "the rows of a batch are at different lengths: generate one sequence at a time"
                )
                raise ParamsError(message, slug="unsupported_processor")
        return scores


def _run(processors: Sequence[Any], ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    for processor in processors:
        scores = processor(ids, scores)
    return scores


def _name(processor: Any) -> str:
    return str(getattr(processor, "__name__", type(processor).__name__))


def _is_same(one: Any, other: Any, seen: set[tuple[int, int]]) -> bool:
    """Return whether two copies of one object are equal; False if that cannot be known."""
    pair = id(one), id(other)
    if one is other or pair in seen:
        return True
    if type(one) is not type(other):
        return False
    seen.add(pair)
    is_same = functools.partial(_is_same, seen=seen)
    if isinstance(one, torch.Tensor):
        same: bool = one.shape == other.shape and one.dtype == other.dtype
        return same and bool(((one == other) | ((one != one) & (other != other))).all())
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, MethodType):
        return is_same(one.__self__, other.__self__)
    if isinstance(one, functools.partial):
        parts = ("func", "args", "keywords")
        return all(is_same(getattr(one, part), getattr(other, part)) for part in parts)
    inherited: Any = object.__eq__
    if type(one).__eq__ is inherited and hasattr(one, "__dict__"):
        return is_same(vars(one), vars(other))
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001 - their own comparison may raise anything
        return False
