"""Stopping criteria as `generate` prepares them: numbers where they are numbers, else called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from mtp_verify.decoder.options import says_stop
from mtp_verify.errors import ParamsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtp_verify.integrations.hf.processors import RowScores

__all__ = ["WithScores", "split_criteria"]


def split_criteria(
    criteria: Sequence[Any], config: Any
) -> tuple[int, tuple[int, ...], list[Callable[..., Any]]]:
    """Return the greatest length, the EOS ids, and the criteria that are called after each token.

    Raises:
        ParamsError: there is no limit of length.
    """
    # The user's own criterion replaces that of the config.
    lengths = [c.max_length for c in criteria if type(c) is MaxLengthCriteria]
    max_length = min(lengths, default=config.max_length)
    eos_ids: list[int] = []
    others: list[Callable[..., Any]] = []
    for criterion in criteria:
        if type(criterion) is EosTokenCriteria:
            eos_ids += torch.as_tensor(criterion.eos_token_id).reshape(-1).tolist()
        elif type(criterion) is not MaxLengthCriteria:
            others.append(criterion)
    if max_length is None:
        message = "generate has no limit of length; pass max_new_tokens"
        raise ParamsError(message, slug="bad_max_new_tokens")
    return max_length, tuple(eos_ids), others


class WithScores:
    """A user's criteria with the scores of their row so far, as `generate` passes them."""

    def __init__(
        self, criteria: Sequence[Callable[..., Any]], scores: RowScores, num_padding: int
    ) -> None:
        self._criteria, self._scores, self._num_padding = criteria, scores, num_padding

    def __call__(self, ids: torch.Tensor, rows: Sequence[torch.Tensor]) -> bool:
        """Return whether one ends a text (1, n); `rows` (1, V) of its emitted tokens are raw."""
        self._scores.extend(ids[:, self._num_padding :], rows)
        scores = tuple(self._scores.rows)
        return any(says_stop(criterion(ids, scores)) for criterion in self._criteria)
