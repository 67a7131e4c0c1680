"""What users pass to a generation, checked and brought into one form."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch

from mtp_verify.errors import ParamsError
from mtp_verify.verifier.api import derive_seed
from mtp_verify.verifier.intake import as_count, as_list, check_instance, check_sequence, shown
from mtp_verify.verifier.processors import check_processors, keeps_state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "Prompt",
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


_LAST_TOKEN = (1 << 32) - 1


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
        rows = [_as_tensor(row, f"{name}[{index}]") for index, row in enumerate(value)]
    else:
        table = _as_tensor(value, name)
        rows = [table] if table.dim() == 1 else list(table) if table.dim() == 2 else []
    bad = next((row for row in rows if not row.numel() or _is_inexact(row, name)), None)
    if not rows or bad is not None:
        found = table if bad is None else bad
        index = "" if bad is None else f"[{next(i for i, row in enumerate(rows) if row is bad)}]"
        msg = (
            f"{name}{index} has shape {tuple(found.shape)} and dtype {found.dtype}; "
            "wanted (B, T) or (T,) integers with T >= 1, or a list of such rows"
        )
        raise ParamsError(msg, slug=f"bad_{name}")
    return [row.to(device="cpu", dtype=torch.int64) for row in rows]


def _as_tensor(value: Any, name: str) -> torch.Tensor:
    if isinstance(value, Mapping):
        msg = f'{name}: found {type(value).__name__}, wanted one of its entries: value["{name}"]'
        raise ParamsError(msg, slug="bad_input_ids")
    if isinstance(value, str):
        msg = f"{name}: found {shown(value)}, wanted integers, (B, T) or (T,); tokenise the text"
        raise ParamsError(msg, slug="bad_input_ids")
    try:
        if not isinstance(value, torch.Tensor | np.ndarray | int | float):
            check_sequence(name, value)
            value = as_list(name, value)  # With no more items than it says.
        tensor = torch.as_tensor(value)
        if tensor.is_meta:
            msg = "a tensor of device meta has no values"
            raise ValueError(msg)
        return tensor
    except ParamsError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        msg = f"{name}: found {shown(value)}, wanted integers, (B, T) or (T,)"
        raise ParamsError(msg, slug=f"bad_{name.partition('[')[0]}") from error


def _is_inexact(row: torch.Tensor, name: str) -> bool:
    # A mask of zeros and ones may come in any dtype.
    is_whole = not (row.is_floating_point() or row.is_complex() or row.dtype is torch.bool)
    return name == "input_ids" and not is_whole


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
        msg = f"seed is {shown(seed)}; wanted an integer of 0 to 2**64 - 1"
        raise ParamsError(msg, slug="bad_seed")
    return value


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
        names = [getattr(part, "__name__", str(part)) for part in get_args(kind) or (kind,)]
        wanted = " or ".join(names).replace("NoneType", "None")
        msg = f"{name}: found {shown(value)}, wanted one {wanted}, or a list of {count}"
        raise ParamsError(msg, slug=f"bad_{name}")
    return values


def processors_of_rows(value: Sequence[Any], count: int) -> list[list[Any]]:
    """Return each row's own processors, from a list for all or one list per row.

    Raises:
        ParamsError: something that cannot be called, lists for another number of rows, or one
            processor for several rows that keeps state and cannot be forked.
    """
    listed = as_list("processors", value)
    rows = [listed] * count
    if listed and all(isinstance(item, (list, tuple)) for item in listed):
        rows = [list(item) for item in listed]
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
    """Return one id, several, or a tensor of them, as a tuple.

    Raises:
        ParamsError, TypeError: something else, by the name of `eos_token_id`.
    """
    if isinstance(value, torch.Tensor | np.ndarray):
        value = _as_tensor(value, "eos_token_id").reshape(-1).tolist()
    is_one = not isinstance(value, Iterable) and hasattr(value, "__index__")
    ids = [value] if is_one else as_list("eos_token_id", value)
    return tuple(as_count("eos_token_id", token, 0, _LAST_TOKEN) for token in ids)


def as_criteria(criteria: Any) -> list[Callable[..., Any]]:
    """Return one criterion, several, or none, as a list.

    Raises:
        TypeError: names the first that cannot be called with tokens and scores.
    """
    if criteria is None:
        return []
    # A StoppingCriteriaList is callable as well as a list; its members are evaluated one by one.
    is_several = isinstance(criteria, Iterable) and (
        isinstance(criteria, list | tuple) or not callable(criteria)
    )
    listed = as_list("stopping_criteria", criteria) if is_several else [criteria]
    for index, criterion in enumerate(listed):
        name = f"stopping_criteria[{index}]" if is_several else "stopping_criteria"
        check_instance(name, criterion, ["__call__"], "a function of tokens and scores")
    return listed


def criteria_of_rows(criteria: Any, count: int) -> list[list[Callable[..., Any]]]:
    """Return each row's criteria, from one, a list for all, or one list per row.

    Raises:
        ParamsError: lists for another number of rows.
    """
    is_by_row = isinstance(criteria, list | tuple) and any(
        isinstance(item, list | tuple) and not callable(item) for item in criteria
    )
    if not is_by_row:
        return [as_criteria(criteria)] * count
    rows: list[list[Callable[..., Any]]] = [as_criteria(item) for item in criteria]
    if len(rows) != count:
        msg = f"stopping_criteria: found {len(rows)} lists for {count} sequences"
        raise ParamsError(msg, slug="bad_stopping_criteria")
    return rows


def says_stop(answer: Any) -> bool:
    """Whether a criterion's answer, a bool or a tensor of one per sequence, ends the row."""
    return bool(answer.all()) if isinstance(answer, torch.Tensor) else bool(answer)
