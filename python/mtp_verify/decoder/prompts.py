"""The texts that requests start from: `input_ids` and `attention_mask`, in one form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mtp_verify.errors import ParamsError
from mtp_verify.verifier.intake import as_list, check_sequence, shown

__all__ = ["Prompt", "as_prompts", "as_tensor", "check_tokens"]


@dataclass(frozen=True, eq=False)
class Prompt:
    """The text that a request starts from, as the user gave it."""

    ids: torch.Tensor  # (T,) int64 on the CPU, padding included
    num_padding: int  # how many at the left are padding

    @property
    def tokens(self) -> list[int]:
        """The text's own tokens."""
        tokens: list[int] = self.ids[self.num_padding :].tolist()
        return tokens


def as_prompts(input_ids: Any, attention_mask: Any | None) -> list[Prompt]:
    """Return the prompts of a batch, from the arguments of `Decoder.generate`.

    Raises:
        ParamsError: empty, not integers, or a mask that is not zeros, then ones; names the prompt.
    """
    texts = _as_texts(input_ids)
    if attention_mask is None:
        return [Prompt(text, 0) for text in texts]
    masks = _as_texts(attention_mask, "attention_mask")
    lengths, wanted = [len(mask) for mask in masks], [len(text) for text in texts]
    if lengths != wanted:
        message = f"attention_mask: found {lengths} entries, wanted {wanted}, as in input_ids"
        raise ParamsError(message, slug="bad_attention_mask")
    padding = [_count_padding(mask, index) for index, mask in enumerate(masks)]
    return [Prompt(*each) for each in zip(texts, padding, strict=True)]


def _as_texts(value: Any, name: str = "input_ids") -> list[torch.Tensor]:
    if isinstance(value, (list, tuple)) and value and all(_is_text(text) for text in value):
        texts = [as_tensor(text, f"{name}[{index}]") for index, text in enumerate(value)]
    else:
        table = as_tensor(value, name)
        texts = [table] if table.dim() == 1 else list(table) if table.dim() == 2 else []
    bad = next((text for text in texts if not text.numel() or _is_inexact(text, name)), None)
    if not texts or bad is not None:
        found = table if bad is None else bad
        index = "" if bad is None else f"[{next(i for i, text in enumerate(texts) if text is bad)}]"
        message = (
            f"{name}{index}: found shape {tuple(found.shape)} and dtype {found.dtype}, "
            "wanted (B, T) or (T,) integers with T >= 1, or a list of such texts"
        )
        raise ParamsError(message, slug=f"bad_{name}")
    return [text.to(device="cpu", dtype=torch.int64) for text in texts]


def as_tensor(value: Any, name: str) -> torch.Tensor:
    """Return tokens as a tensor of integers of any shape.

    Raises:
        ParamsError: something else; names the argument.
    """
    if isinstance(value, Mapping):
        kind = type(value).__name__
        message = f'{name}: found {kind}, wanted one of its entries: value["{name}"]'
        raise ParamsError(message, slug="bad_input_ids")
    if isinstance(value, str):
        message = f"{name}: found {shown(value)}, wanted integers (B, T) or (T,); tokenise the text"
        raise ParamsError(message, slug="bad_input_ids")
    try:
        if not isinstance(value, torch.Tensor | np.ndarray | int | float):
            check_sequence(name, value)
            value = as_list(name, value)  # With no more items than it says.
        tensor = torch.as_tensor(value)
        if tensor.is_meta:
            message = "a tensor of device meta has no values"
            raise ValueError(message)
        return tensor
    except ParamsError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        message = f"{name}: found {shown(value)}, wanted integers, (B, T) or (T,)"
        raise ParamsError(message, slug=f"bad_{name.partition('[')[0]}") from error


def _is_inexact(text: torch.Tensor, name: str) -> bool:
    # A mask of zeros and ones may come in any dtype.
    is_whole = not (text.is_floating_point() or text.is_complex() or text.dtype is torch.bool)
    return name == "input_ids" and not is_whole


def _is_text(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray, torch.Tensor)) and np.ndim(value) == 1


def _count_padding(mask: torch.Tensor, index: int) -> int:
    visible = mask != 0
    num_padding = len(mask) - int(visible.sum())
    if num_padding == len(mask) or bool((~visible[num_padding:]).any()):
        message = (
            f"attention_mask[{index}]: found right padding or holes, wanted zeros on the left, "
            'then ones: tokenise with padding_side="left"'
        )
        raise ParamsError(message, slug="bad_attention_mask", sequence=index)
    return num_padding


def check_tokens(tokens: list[int], vocab_size: int | None, num_padding: int, index: int) -> None:
    """Refuse tokens that the model has no embedding for.

    Raises:
        ParamsError: names the first one and its place in `input_ids`.
    """
    limit = vocab_size if vocab_size is not None else max(tokens) + 1
    if min(tokens) < 0 or max(tokens) >= limit:
        place = next(i for i, token in enumerate(tokens) if not 0 <= token < limit)
        message = (
            f"input_ids[{index}, {num_padding + place}]: found {tokens[place]}, wanted 0 to "
            f"{limit - 1}; use the model's own tokenizer"
        )
        raise ParamsError(message, slug="token_out_of_vocab", sequence=index)
