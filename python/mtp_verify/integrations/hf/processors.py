"""A prepared `LogitsProcessorList` as parameters of the core and the processors that are left.

Nearly everything that `generate` does to logits is a function of a row and the tokens before it.
What the core knows at the list's beginning (penalties, bans) and at its end (temperature, top-k,
top-p, min-p) becomes `SamplingParams`; the processors between are called as they are, per node with
that node's own tokens; a user's own as `followed` says. The library's that keep state are refused.
"""

from __future__ import annotations

import copy
import functools
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers.generation import logits_process as hf

from mtp_verify.errors import ParamsError
from mtp_verify.integrations.hf.followed import Followed, Unchanging, copies_of, may_keep_state
from mtp_verify.verifier.params import SamplingParams
from mtp_verify.verifier.processors import accept, keeps_state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["RowScores", "params_from_processors", "split_processors"]

# The order in which transformers applies its warpers, and in which the preset of that name does.
_WARPERS: dict[type, str] = {
    hf.TemperatureLogitsWarper: "temperature",
    hf.TopKLogitsWarper: "top_k",
    hf.TopPLogitsWarper: "top_p",
    hf.MinPLogitsWarper: "min_p",
}
# They run the model, or count their calls; and the settings that bring them.
_STATEFUL = {
    hf.UnbatchedClassifierFreeGuidanceLogitsProcessor: "guidance_scale",
    hf.SynthIDTextWatermarkLogitsProcessor: "watermarking_config",
    hf.WhisperNoSpeechDetection: "no_speech_threshold",
}


def split_processors(
    processors: Sequence[Any],
    *,
    do_sample: bool,
    prompt_width: int,
    padding: torch.Tensor,
    row: int,
    num_rows: int,
    eos_ids: Sequence[int],
) -> tuple[SamplingParams, list[Callable[..., Any]]]:
    """Split a list that transformers has prepared for one row of a batch of `num_rows`.

    The prompt of `prompt_width` tokens has (P,) `padding` before the row's own ones.

    Returns:
        What the core does before and after the processors, and the processors, which are called
        with the row's own tokens.

    Raises:
        ParamsError: a processor that keeps state and cannot follow a draft; names it.
    """
    place = _Place(prompt_width, len(padding) > 0, eos_ids)
    params, rest = _split(processors, place, do_sample=do_sample)
    for_row = functools.partial(_for_row, padding=padding, row=row)

    left: list[Callable[..., Any]] = []
    for has_protocol, group in itertools.groupby(rest, keeps_state):
        members = list(group)
        if has_protocol or not any(map(may_keep_state, members)):
            left += map(for_row, members)
        elif num_rows == 1:
            left.append(Followed(members, padding))
        else:
            left.append(Unchanging(members, for_row))
    return params, left


class _Place(NamedTuple):
    """What the core must know of a text to take a processor's place."""

    prompt_width: int = 0
    has_padding: bool = False
    eos_ids: Sequence[int] | None = None


def _split(
    processors: Sequence[Any], place: _Place, *, do_sample: bool
) -> tuple[SamplingParams, list[Any]]:
    """Return the part that the core does, and the processors between its first and its last."""
    for processor in processors:
        name = next((n for kind, n in _STATEFUL.items() if isinstance(processor, kind)), None)
        if name is not None and not keeps_state(processor):
            message = (
                f"{name} brings the logits processor {type(processor).__name__}, which keeps state "
                "of its own and cannot be asked about several continuations: unset it, or call "
                "generate without custom_generate"
            )
            raise ParamsError(message, slug="unsupported_processor")
    fields: dict[str, Any] = {}
    rest = list(processors)
    while rest and _take_first(rest[0], fields, place):
        del rest[0]
    warpers = _take_last(rest)
    if not do_sample:
        warpers = {"temperature": 0.0}  # the others keep the largest logit
    return SamplingParams(**fields, **warpers), rest


def params_from_processors(processors: Sequence[Any], *, do_sample: bool) -> SamplingParams:
    """Read sampling parameters from a prepared `LogitsProcessorList`.

    Args:
        processors: as transformers prepares it, for rows without padding: penalties, then
            temperature, top-k, top-p, min-p, each at most once and in this order.
        do_sample: False is greedy decoding.

    Raises:
        ParamsError: a processor that has no counterpart in `SamplingParams`; names it.
    """
    params, left = _split(processors, _Place(), do_sample=do_sample)
    if left:
        message = (
            f"logits processor {type(left[0]).__name__} has no counterpart in SamplingParams "
            "(at its place, with its settings); pass it to processors="
        )
        raise ParamsError(message, slug="unsupported_processor")
    return params


def _take_first(processor: Any, fields: dict[str, Any], place: _Place) -> bool:
    """Enter a processor of the list's beginning into `fields`, if the core can do the same."""
    kind = type(processor)
    if kind is hf.SequenceBiasLogitsProcessor:
        taken = _single_tokens(processor)
        if taken is None or fields:
            return False
        fields["logit_bias"] = taken
    elif kind is hf.RepetitionPenaltyLogitsProcessor:
        # An int of the user's own leaves out a part of the prompt; generate's tensor, the padding.
        if "repetition_penalty" in fields or isinstance(processor.prompt_ignore_length, int):
            return False
        fields["repetition_penalty"] = processor.penalty
    elif kind is hf.NoRepeatNGramLogitsProcessor:
        # The library's looks for repeats in padding too.
        if "no_repeat_ngram_size" in fields or place.has_padding:
            return False
        fields["no_repeat_ngram_size"] = processor.ngram_size
    elif kind is hf.NoBadWordsLogitsProcessor:
        words = _single_tokens(processor)
        if words is None:
            return False
        fields["banned"] = [*fields.get("banned", []), *words]
    elif kind is hf.SuppressTokensLogitsProcessor:
        tokens = processor.suppress_tokens.reshape(-1).tolist()
        fields["banned"] = [*fields.get("banned", []), *tokens]
    elif kind in (hf.MinLengthLogitsProcessor, hf.MinNewTokensLengthLogitsProcessor):
        stop_ids = processor.eos_token_id.reshape(-1).tolist()
        # What the core holds back ends the text, too, and the other way round.
        if place.eos_ids is not None and {*stop_ids} != {*place.eos_ids}:
            return False
        if kind is hf.MinLengthLogitsProcessor:
            count = max(processor.min_length - place.prompt_width, 0)
        else:
            count = processor.min_new_tokens
        is_here = getattr(processor, "prompt_length_to_skip", place.prompt_width)
        if is_here != place.prompt_width or fields.get("stop_ids", stop_ids) != stop_ids:
            return False
        fields["stop_ids"] = stop_ids
        fields["min_new_tokens"] = max(count, fields.get("min_new_tokens", 0))
    else:
        return False
    return True


def _single_tokens(processor: Any) -> dict[int, float] | None:
    """Return the biases of a sequence bias by token; None if a sequence has several."""
    if any(len(sequence) != 1 for sequence in processor.sequence_bias):
        return None
    return {int(sequence[0]): bias for sequence, bias in processor.sequence_bias.items()}


def _take_last(rest: list[Any]) -> dict[str, Any]:
    """Take the longest run of warpers, in the core's own order, off the end of a list."""
    order = list(_WARPERS)
    values: dict[str, Any] = {}
    first = len(order)
    while rest:
        processor = rest[-1]
        kind = type(processor)
        if kind not in _WARPERS or order.index(kind) >= first:
            break
        plain = getattr(processor, "filter_value", -torch.inf) == -torch.inf
        # For top-k the library has already raised k to this.
        if not plain or (
            kind is not hf.TopKLogitsWarper and getattr(processor, "min_tokens_to_keep", 1) != 1
        ):
            break
        first = order.index(kind)
        values[_WARPERS[kind]] = getattr(processor, _WARPERS[kind])
        del rest[-1]
    return values


def _for_row(processor: Any, padding: torch.Tensor, row: int) -> Callable[..., Any]:
    """Return the processor for one row, with the padding before its tokens as in `generate`."""
    kind = type(processor)
    if kind.__module__.startswith("transformers."):
        processor = copy.copy(processor)  # The user's own is called itself.
    if kind is hf.RepetitionPenaltyLogitsProcessor and isinstance(
        processor.prompt_ignore_length, torch.Tensor
    ):
        processor.prompt_ignore_length = len(padding)
    # Three know the whole batch; each row's copy knows that row.
    if kind is hf.PrefixConstrainedLogitsProcessor:
        allowed = processor._prefix_allowed_tokens_fn
        processor._prefix_allowed_tokens_fn = lambda _, tokens: allowed(row, tokens)
    elif kind is hf.EncoderNoRepeatNGramLogitsProcessor:
        processor.batch_size = 1
        processor.generated_ngrams = processor.generated_ngrams[row : row + 1]
    elif kind is hf.EncoderRepetitionPenaltyLogitsProcessor:
        processor.encoder_input_ids = processor.encoder_input_ids[row : row + 1]
    if len(padding) == 0:
        return processor  # type: ignore[no-any-return]

    def process(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        shown = torch.cat([padding.expand(len(input_ids), -1), input_ids], dim=1)
        return processor(shown, scores)  # type: ignore[no-any-return]

    return process


class RowScores:
    """The scores of one row of a batch, as `generate` makes them: processed rows.

    Args:
        processors: the prepared list; what keeps state is copied before anything has called it.
        padding: (P,) the tokens before the row's own ones.
        row: its place in the batch.
        matcher: a constraint's, which masks the rows before they are processed, or None.
    """

    def __init__(
        self, processors: Sequence[Any], padding: torch.Tensor, row: int, matcher: Any
    ) -> None:
        own = copies_of(processors)
        for at, processor in enumerate(own):
            if keeps_state(processor):
                fork = getattr(processor, "fork", None)
                own[at] = copy.deepcopy(processor) if fork is None else fork()
        self._processors = [_for_row(processor, padding, row) for processor in own]
        self._with_state = list(filter(keeps_state, own))
        self._matcher = matcher
        self.rows: list[torch.Tensor] = []

    def extend(self, ids: torch.Tensor, logits: Sequence[torch.Tensor]) -> None:
        """Process the rows (1, V) of the emitted tokens, which end `ids` (1, n), that are new."""
        start = ids.shape[1] - len(logits)
        for step in range(len(self.rows), len(logits)):
            row, token = logits[step].clone(), int(ids[0, start + step])
            if self._matcher is not None:
                row = self._matcher.mask_rows(row, [[]])
                self._matcher.commit([token])
            for processor in self._processors:
                row = processor(ids[:, : start + step], row)
            accept(self._with_state, [token])
            self.rows.append(row)
