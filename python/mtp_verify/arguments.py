"""What users pass to a generation, checked and brought into one form."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from mtp_verify.errors import ParamsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = [
    "as_criteria",
    "as_ids",
    "as_prompt",
    "as_seed",
    "check_tokens",
    "count_padding",
    "says_stop",
]


def as_prompt(input_ids: Any) -> torch.Tensor:
    """Return the prompt as (1, T) int64 on the CPU.

    Raises:
        ParamsError: empty, not integers, or more than one sequence.
    """
    if isinstance(input_ids, (list, tuple)) and input_ids and _is_row(input_ids[0]):
        lengths = [len(row) for row in input_ids]
        if len(lengths) > 1:
            _refuse_batch(len(lengths))
        input_ids = input_ids[0]
    prompt = torch.as_tensor(input_ids)
    if prompt.dim() == 1:
        prompt = prompt[None]
    if prompt.dim() != 2 or prompt.numel() == 0 or prompt.is_floating_point():
        msg = (
            f"input_ids has shape {tuple(prompt.shape)} and dtype {prompt.dtype}; "
            "wanted (1, T) integers with T >= 1"
        )
        raise ParamsError(msg, slug="bad_input_ids")
    if prompt.shape[0] > 1:
        _refuse_batch(prompt.shape[0])
    return prompt.to(device="cpu", dtype=torch.int64)


def _is_row(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray, torch.Tensor)) and np.ndim(value) == 1


def _refuse_batch(count: int) -> NoReturn:
    msg = (
        f"input_ids holds {count} sequences; batches need ragged commits of the cache, which are "
        "not supported yet: call generate once per sequence (seed=mv.derive_seed(seed, row))"
    )
    raise ParamsError(msg, slug="batch_not_supported")


def count_padding(attention_mask: Any | None, length: int) -> int:
    """Return how many tokens at the left are padding.

    Raises:
        ParamsError: the mask is not (1, length), or is anything but zeros, then ones.
    """
    if attention_mask is None:
        return 0
    mask = torch.as_tensor(attention_mask)
    mask = mask[None] if mask.dim() == 1 else mask
    if tuple(mask.shape) != (1, length):
        msg = f"attention_mask has shape {tuple(mask.shape)}; wanted (1, {length}), as input_ids"
        raise ParamsError(msg, slug="bad_attention_mask")
    visible = mask[0].to("cpu") != 0
    num_padding = length - int(visible.sum())
    if num_padding == length or bool((~visible[num_padding:]).any()):
        msg = (
            "attention_mask must be zeros on the left, then ones; right padding and holes are not "
            'supported: tokenise with padding_side="left"'
        )
        raise ParamsError(msg, slug="bad_attention_mask", sequence=0)
    return num_padding


def check_tokens(tokens: list[int], vocab_size: int | None, num_padding: int) -> None:
    """Refuse tokens that the model has no embedding for.

    Raises:
        ParamsError: names the first one and its place in `input_ids`.
    """
    limit = vocab_size if vocab_size is not None else max(tokens) + 1
    if min(tokens) < 0 or max(tokens) >= limit:
        index = next(i for i, token in enumerate(tokens) if not 0 <= token < limit)
        msg = (
            f"input_ids[0, {num_padding + index}] is {tokens[index]}, outside the vocabulary of "
            f"{vocab_size}; use the model's own tokenizer"
        )
        raise ParamsError(msg, slug="token_out_of_vocab", sequence=0)


def as_seed(seed: int | Sequence[int] | None) -> int:
    """Return the seed of the one row; None takes one draw from torch's global generator.

    Raises:
        ParamsError: not an integer of 0 to 2**64 - 1, or several seeds.
    """
    if seed is None:
        return int(torch.randint(0, 2**63 - 1, ()).item())
    if isinstance(seed, (list, tuple, np.ndarray)):
        if len(seed) != 1:
            msg = f"{len(seed)} seeds were given for 1 sequence"
            raise ParamsError(msg, slug="bad_seed")
        seed = seed[0]
    try:
        value = operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        value = -1
    if not 0 <= value < 2**64:
        msg = f"seed is {seed!r}; wanted an integer of 0 to 2**64 - 1"
        raise ParamsError(msg, slug="bad_seed")
    return value


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


def says_stop(answer: Any) -> bool:
    """Whether a criterion's answer, a bool or a tensor of one per sequence, ends the row."""
    return bool(answer.all()) if isinstance(answer, torch.Tensor) else bool(answer)
