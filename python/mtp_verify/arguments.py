"""What users pass to a generation, checked and brought into one form."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtp_verify import derive_seed
from mtp_verify.errors import ParamsError
from mtp_verify.processors import check_processors, keeps_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = [
    "Prompt",
    "as_count",
    "as_criteria",
    "as_ids",
    "as_prompts",
    "as_seeds",
    "check_tokens",
    "criteria_of_rows",
    "per_row",
    "processors_of_rows",
    "says_stop",
]


@dataclass(frozen=True, eq=False)
class Prompt:
    """One sequence as the user gave it.

    Attributes:
        ids: (T,) int64 on the CPU, padding included.
        num_padding: how many at the left are padding.
    """

    ids: torch.Tensor
    num_padding: int

    @property
    def tokens(self) -> list[int]:
        """The sequence's own tokens."""
        tokens: list[int] = self.ids[self.num_padding :].tolist()
        return tokens


def as_prompts(input_ids: Any, attention_mask: Any | None) -> list[Prompt]:
    """Return the sequences of a batch.

    Args:
        input_ids: (B, T) or (T,) integers, or a list of B lists, arrays or tensors of any lengths.
        attention_mask: of the same shape, or a list of rows as long as those of `input_ids`; None
            means no padding.

    Raises:
        ParamsError: empty, not integers, or a mask that is not zeros, then ones; names the row.
    """
    rows = _as_rows(input_ids)
    if attention_mask is None:
        return [Prompt(row, 0) for row in rows]
    masks = _as_rows(attention_mask, "attention_mask")
    lengths, wanted = [len(mask) for mask in masks], [len(row) for row in rows]
    if lengths != wanted:
        msg = f"attention_mask has rows of {lengths} entries; wanted {wanted}, as input_ids"
        raise ParamsError(msg, slug="bad_attention_mask")
    return [
        Prompt(row, _count_padding(mask, index))
        for index, (row, mask) in enumerate(zip(rows, masks, strict=True))
    ]


def _as_rows(value: Any, name: str = "input_ids") -> list[torch.Tensor]:
    if isinstance(value, (list, tuple)) and value and all(_is_row(row) for row in value):
        rows = [torch.as_tensor(row) for row in value]
    else:
        table = torch.as_tensor(value)
        rows = [table] if table.dim() == 1 else list(table) if table.dim() == 2 else []
    bad = next((row for row in rows if not row.numel() or _is_inexact(row, name)), None)
    if not rows or bad is not None:
        found = torch.as_tensor(value) if bad is None else bad
        index = "" if bad is None else f"[{next(i for i, row in enumerate(rows) if row is bad)}]"
        msg = (
            f"{name}{index} has shape {tuple(found.shape)} and dtype {found.dtype}; "
            "wanted (B, T) or (T,) integers with T >= 1, or a list of such rows"
        )
        raise ParamsError(msg, slug=f"bad_{name}")
    return [row.to(device="cpu", dtype=torch.int64) for row in rows]


def _is_inexact(row: torch.Tensor, name: str) -> bool:
    # A mask of zeros and ones may come in any dtype.
    return name == "input_ids" and (row.is_floating_point() or row.dtype is torch.bool)


def _is_row(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray, torch.Tensor)) and np.ndim(value) == 1


def _count_padding(mask: torch.Tensor, index: int) -> int:
    visible = mask != 0
    num_padding = len(mask) - int(visible.sum())
    if num_padding == len(mask) or bool((~visible[num_padding:]).any()):
        msg = (
            f"attention_mask[{index}] must be zeros on the left, then ones; right padding and "
            'holes are not supported: tokenise with padding_side="left"'
        )
        raise ParamsError(msg, slug="bad_attention_mask", sequence=index)
    return num_padding


def check_tokens(tokens: list[int], vocab_size: int | None, num_padding: int, index: int) -> None:
    """Refuse tokens that the model has no embedding for.

    Raises:
        ParamsError: names the first one and its place in `input_ids`.
    """
    limit = vocab_size if vocab_size is not None else max(tokens) + 1
    if min(tokens) < 0 or max(tokens) >= limit:
        place = next(i for i, token in enumerate(tokens) if not 0 <= token < limit)
        msg = (
            f"input_ids[{index}, {num_padding + place}] is {tokens[place]}, outside the vocabulary "
            f"of {vocab_size}; use the model's own tokenizer"
        )
        raise ParamsError(msg, slug="token_out_of_vocab", sequence=index)


def as_seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """Return one seed per row; None takes one draw from torch's global generator.

    Raises:
        ParamsError: not an integer of 0 to 2**64 - 1, or not one per row.
    """
    if seed is None:
        seed = int(torch.randint(0, 2**63 - 1, ()).item())
    if isinstance(seed, (list, tuple, np.ndarray, torch.Tensor)) and np.ndim(seed):
        if len(seed) != count:
            msg = f"{len(seed)} seeds were given for {count} sequences"
            raise ParamsError(msg, slug="bad_seed")
        return [_as_seed(value) for value in seed]
    first = _as_seed(seed)
    return [derive_seed(first, row) for row in range(count)]


def _as_seed(seed: Any) -> int:
    try:
        value = operator.index(seed)
    except TypeError:
        value = -1
    if not 0 <= value < 2**64:
        msg = f"seed is {seed!r}; wanted an integer of 0 to 2**64 - 1"
        raise ParamsError(msg, slug="bad_seed")
    return value


def as_count(value: Any, name: str) -> int:
    """Return a count of tokens or sequences.

    Raises:
        ParamsError: not an integer of at least 1.
    """
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1:
        msg = f"{name} must be an integer of at least 1"
        raise ParamsError(msg, slug=f"bad_{name}")
    return count


def per_row(value: Any, kind: Any, count: int, name: str) -> list[Any]:
    """Return one value per row: the same for all, or a sequence of `count`.

    Args:
        value: what the user gave.
        kind: its type, or a union of types.
        count: of rows.
        name: of the argument.

    Raises:
        ParamsError: a sequence of another length, or with something else in it.
    """
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(values) != count or not all(isinstance(item, kind) for item in values):
        wanted = getattr(kind, "__name__", str(kind))
        msg = f"{name}: wanted one {wanted}, or a list of {count}"
        raise ParamsError(msg, slug=f"bad_{name}")
    return values


def processors_of_rows(value: Sequence[Any], count: int) -> list[list[Any]]:
    """Return each row's own processors, from a list for all or one list per row.

    Raises:
        ParamsError: something that cannot be called, lists for another number of rows, or one
            processor for several rows that keeps state and cannot be forked.
    """
    rows = [list(value)] * count
    if value and all(isinstance(item, (list, tuple)) for item in value):
        rows = [list(item) for item in value]
        if len(rows) != count:
            msg = f"processors: found {len(rows)} lists for {count} sequences"
            raise ParamsError(msg, slug="bad_processor")
    for row in rows:
        check_processors(row)
    shared = count > 1 and rows[0] is rows[-1]
    return [[_own(processor, shared=shared) for processor in row] for row in rows]


def _own(processor: Any, *, shared: bool) -> Any:
    if not keeps_state(processor):
        return processor
    if hasattr(processor, "fork"):
        return processor.fork()
    if shared:
        msg = (
            f"processor {type(processor).__name__} keeps state and has no fork: it serves a single "
            "sequence; pass one list per row"
        )
        raise ParamsError(msg, slug="bad_processor")
    return processor


def as_ids(value: int | Iterable[int]) -> tuple[int, ...]:
    """Return one id, several, or a tensor of them, as a tuple."""
    if isinstance(value, torch.Tensor):
        value = value.reshape(-1).tolist()
    try:
        return (operator.index(value),)  # type: ignore[arg-type]
    except TypeError:
        return tuple(operator.index(v) for v in value)  # type: ignore[union-attr]


def as_criteria(criteria: Any) -> list[Callable[..., Any]]:
    """Return one criterion, several, or none, as a list."""
    if criteria is None:
        return []
    # A StoppingCriteriaList is callable as well as a list; its members are evaluated one by one.
    return list(criteria) if isinstance(criteria, (list, tuple)) else [criteria]


def criteria_of_rows(criteria: Any, count: int) -> list[list[Callable[..., Any]]]:
    """Return each row's criteria, from one, a list for all, or one list per row.

    Raises:
        ParamsError: lists for another number of rows.
    """
    all_rows = as_criteria(criteria)
    if not all_rows or any(callable(item) for item in all_rows):
        return [all_rows] * count
    rows: list[list[Callable[..., Any]]] = [as_criteria(item) for item in all_rows]
    if len(rows) != count:
        msg = f"stopping_criteria: found {len(rows)} lists for {count} sequences"
        raise ParamsError(msg, slug="bad_stopping_criteria")
    return rows


def says_stop(answer: Any) -> bool:
    """Whether a criterion's answer, a bool or a tensor of one per sequence, ends the row."""
    return bool(answer.all()) if isinstance(answer, torch.Tensor) else bool(answer)
