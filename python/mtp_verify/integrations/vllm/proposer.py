"""Drafts for vLLM, copied from each request's own text by this package's suffix index.

vLLM takes a proposer by the name of its class (`method: custom_class`) and passes it the tokens of
the batch's rows, without names of requests and hidden states: enough for drafters that copy. Heads
draft in vLLM through its own code, from what `mtp-verify export` writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.drafters import Request, Suffix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["SuffixProposer"]


@dataclass
class _Row:
    """A request as it was when it was last drafted for."""

    text: NDArray[np.integer[Any]]  # (T,) its tokens; a copy
    request: Request  # the same for the drafter, which keeps an index of them

    def begins(self, text: NDArray[np.integer[Any]]) -> bool:
        """Return whether `text` is a continuation of this one."""
        length = len(self.text)
        # The last token first: it differs for most texts.
        return (
            length <= len(text)
            and self.text[-1] == text[length - 1]
            and np.array_equal(self.text, text[:length])
        )


class SuffixProposer:
    """Drafts a chain for each request by `mv.drafters.Suffix`, up to twice as deep as the match.

    In the speculative config of vLLM 0.32:

        {"method": "custom_class", "num_speculative_tokens": 8,
         "model": "mtp_verify.integrations.vllm.SuffixProposer"}

    Args:
        vllm_config: vLLM's `VllmConfig`; its number of speculative tokens and longest sequence
            count.

    References:
        SuffixDecoding, arXiv 2411.04975.
    """

    def __init__(self, vllm_config: Any) -> None:
        self._width = int(vllm_config.speculative_config.num_speculative_tokens)
        self._max_length = int(vllm_config.model_config.max_model_len)
        # Chains are short here, and an engine's forwards hardly longer for a few tokens more.
        self._drafter = Suffix(self._width, depth_factor=2.0)
        self._rows: list[_Row] = []
        self._numbers = count()

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: there is no model to load, but vLLM's CPU runner calls every proposer."""

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: NDArray[np.integer[Any]],
        token_ids_cpu: NDArray[np.integer[Any]],
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """Draft for every row of the batch.

        Args:
            sampled_token_ids: per row what was emitted in this step; nothing while a prompt is
                being read, and then nothing is drafted.
            num_tokens_no_spec: (B,) tokens of each row, those just emitted included.
            token_ids_cpu: (B, max_model_len) the tokens themselves.
            slot_mappings: not used.

        Returns:
            Per row at most `num_speculative_tokens` tokens, fewer where the context ends.
        """
        del slot_mappings
        before, self._rows = self._rows, []
        drafts: list[list[int]] = []
        for place, emitted in enumerate(sampled_token_ids):
            length = int(num_tokens_no_spec[place])
            room = min(self._width, self._max_length - length - 1)
            if not emitted or room < 1:
                drafts.append([])
                continue
            row = self._take(before, place, token_ids_cpu[place, :length])
            self._rows.append(row)
            (draft,) = self._drafter.propose([row.request], [room])
            drafts.append(draft.tokens[1:].tolist())
        for row in before:
            self._drafter.release(row.request)
        return drafts

    def _take(self, before: list[_Row], place: int, text: NDArray[np.integer[Any]]) -> _Row:
        """Bring the row that `text` continues up to date, and remove it from `before`."""
        # vLLM moves requests about in its batch, so that a row is known by its text. Two requests
        # of the same text have the same index, whichever is taken for the other.
        usual = before[place : place + 1]
        row = next((known for known in [*usual, *before] if known.begins(text)), None)
        if row is None:
            number = next(self._numbers)
            row = _Row(text[:0], Request(number, [], prompt_len=len(text), seed=number))
        else:
            before[:] = [known for known in before if known is not row]
        row.request.tokens.extend(text[len(row.text) :].tolist())
        row.text = text.copy()
        return row
