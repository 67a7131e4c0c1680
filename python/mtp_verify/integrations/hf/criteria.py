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
    """Turn length and EOS criteria into numbers; the rest is called after each token.

    Returns:
        The greatest length, the EOS ids, and the rest.

    Raises:
        ParamsError: there is no limit of length.
    """
    # One of the user's own takes the place of the one that the config brings.
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
        msg = "generate has no limit of length; pass max_new_tokens"
        raise ParamsError(msg, slug="bad_max_new_tokens")
    return max_length, tuple(eos_ids), others


class WithScores:
    """Criteria that get the scores of their row so far, as `generate` hands them over.

    Args:
        criteria: a user's own.
        scores: of the row.
        num_padding: of the row.
    """

    def __init__(
        self, criteria: Sequence[Callable[..., Any]], scores: RowScores, num_padding: int
    ) -> None:
        self._criteria, self._scores, self._num_padding = criteria, scores, num_padding

    def __call__(self, ids: torch.Tensor, rows: Sequence[torch.Tensor]) -> bool:
        """Whether one of them ends a text.

        Args:
            ids: (1, n) int64, prompt and emitted tokens.
            rows: (1, V) raw, one for each emitted token.
        """
        self._scores.extend(ids[:, self._num_padding :], rows)
        scores = tuple(self._scores.rows)
        return any(says_stop(criterion(ids, scores)) for criterion in self._criteria)
