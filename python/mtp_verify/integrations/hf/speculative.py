"""`custom_generate`: our decoding loop inside `model.generate`.

`model.generate(..., custom_generate=mv.hf.speculative(drafter))` honours the user's own
`GenerationConfig` and returns what `generate` returns. Settings that cannot work are refused by
name; none is ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import StaticCache
from transformers.generation.utils import GenerateDecoderOnlyOutput

from mtp_verify.caches.names import cache_name
from mtp_verify.decoder.constraints import Constraint
from mtp_verify.decoder.decode import Decoder
from mtp_verify.decoder.options import per_sequence
from mtp_verify.errors import ParamsError, UnsupportedModelError
from mtp_verify.integrations.hf.criteria import WithScores, split_criteria
from mtp_verify.integrations.hf.processors import RowScores, split_processors
from mtp_verify.integrations.hf.refusals import (
    check_context,
    check_positions,
    check_settings,
    refuse_caches,
)
from mtp_verify.integrations.hf.withheld import AfterPrompt, call_of
from mtp_verify.models.target import as_target
from mtp_verify.verifier.kernels import to_host

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import LogitsProcessorList

    from mtp_verify.caches.settings import CacheKind, CacheSettings
    from mtp_verify.decoder.generation import Stats
    from mtp_verify.decoder.planning import Planner
    from mtp_verify.drafters.base import Drafter
    from mtp_verify.verifier.lossy import Lossy
    from mtp_verify.verifier.words import Rule

__all__ = ["speculative"]


def speculative(
    drafter: Drafter | None,
    rule: Rule = "auto",
    seed: int | None = None,
    streamer: Any | None = None,
    stats: Stats | None = None,
    lossy: Lossy | None = None,
    constraint: Constraint | Sequence[Constraint | None] | None = None,
    planner: Planner | Literal["auto"] | None = None,
    cache: CacheKind | CacheSettings | None = None,
) -> Callable[..., Any]:
    """Return a callable for `model.generate(custom_generate=...)`.

    The model's rows are shaped as by its own processors (`do_sample=True` alone brings top-k 50),
    each node's with that node's own tokens. A user's own processor may keep state: its object gets
    the calls of plain `generate`, one for each emitted token in order, and copies of it are asked
    about drafts. In a batch, where rows are at different lengths, one that a call changes is
    refused. For those with `fork` and `accept` see `mtp_verify.verifier.processors`.

    Args:
        drafter: where guesses come from, for example `mv.drafters.NGram()`; None decodes plainly.
        rule: as `Decoder`.
        seed: of all noise; None takes one draw from torch's global generator, so that
            `torch.manual_seed` works as with plain `generate`.
        streamer: here or in `generate`, not in both.
        stats: is filled with the figures of each run.
        lossy: as `Decoder`: of `mv.lossy`, changes the output's distribution.
        constraint: as `Decoder.generate`: of `mv.constraints`, a grammar that the output obeys.
        planner: as `Decoder`: "auto" or a `mv.Planner` chooses how large drafts are, down to none.
        cache: None takes the cache that `generate` sends along: the dynamic one, a static one, or
            the user's own. "paged" or a `Paged`, as `Decoder`, keeps the rows of a call in a pool
            of their own instead, for the time of the call.

    Returns:
        A callable that returns the sequences (B, L), or a `GenerateDecoderOnlyOutput` where
        `return_dict_in_generate` is set; its cache is None for a batch and where it is paged.

    Raises:
        ParamsError: (by the callable) a setting that is not supported; nothing has been generated.
        UnsupportedModelError: (by the callable) a model or cache that cannot work.

    Example:
        >>> model.generate(  # doctest: +SKIP
        ...     **inputs, max_new_tokens=64, custom_generate=mv.hf.speculative(mv.drafters.NGram())
        ... )
    """

    def decode(
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: Sequence[Any],
        generation_config: Any,
        synced_gpus: bool = False,  # noqa: FBT001, FBT002 - the library's own signature
        compiled_model: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        # A model that cannot work is named first: its settings may not be the user's.
        target = as_target(model if compiled_model is None else compiled_model)
        name = cache_name(model.forward) or ""
        past = model_kwargs.pop(name, None)
        call = call_of(decode)
        follower = _only_streamer(streamer, call.withheld.pop("streamer", None))
        if synced_gpus:
            call.withheld["synced_gpus"] = True
        check_settings(model, generation_config, model_kwargs, call)
        gives_cache = generation_config.use_cache is not False
        if past is not None and not gives_cache:
            # The library would write the whole text behind the cache at each step.
            message = f"use_cache=False and {name} say the opposite; unset one of them"
            raise ParamsError(message, slug="unsupported_setting")
        if cache is not None:
            refuse_caches(name, past, generation_config)
            past = None
        max_length, eos_ids, criteria = split_criteria(stopping_criteria, generation_config)
        mask = model_kwargs.get("attention_mask")
        check_positions(model_kwargs.get("position_ids"), mask, input_ids)
        shown = torch.ones_like(input_ids) if mask is None else mask
        check_context(target.max_length, max_length, shown)
        num_rows, width = input_ids.shape
        paddings = [
            to_host(ids[: int((visible == 0).sum())])
            for ids, visible in zip(input_ids, shown, strict=True)
        ]
        same = {"do_sample": generation_config.do_sample, "prompt_width": width}
        same |= {"num_rows": num_rows, "eos_ids": eos_ids}
        splits = [
            split_processors(logits_processor, padding=padding, row=row, **same)
            for row, padding in enumerate(paddings)
        ]
        as_dict = bool(generation_config.return_dict_in_generate)
        wants_scores = as_dict and bool(generation_config.output_scores)
        wants_logits = as_dict and bool(generation_config.output_logits)
        params = [params for params, _ in splits]
        decoder = Decoder(
            target, drafter, params[0], rule, lossy=lossy, planner=planner, cache=cache
        )
        judges: list[Any] = [_without_rows(criterion) for criterion in criteria]
        scored: list[RowScores] = []
        if wants_scores:
            matchers = _matchers(constraint, input_ids, shown)
            parts = zip(paddings, range(num_rows), matchers, strict=True)
            scored = [RowScores(logits_processor, *each) for each in parts]
            if criteria:
                judges = [
                    [WithScores(criteria, scores, len(padding))]
                    for scores, padding in zip(scored, paddings, strict=True)
                ]
        pad = generation_config.pad_token_id
        generation = decoder.generate(
            input_ids,
            mask,
            params=params,
            processors=[left for _, left in splits],
            constraint=constraint,
            # A criterion is asked for the first time behind the first token.
            max_new_tokens=max(max_length - width, 1),
            seed=seed,
            streamer=follower,
            eos_token_id=eos_ids,
            pad_token_id=None if pad is None else int(pad),
            stopping_criteria=judges,
            past_key_values=_past(past, paddings),
            output_logits=wants_scores or wants_logits,
        )
        if stats is not None:
            stats.merge(generation.stats)
        sequences = generation.sequences.to(input_ids.device)
        if not as_dict:
            return sequences
        logits = generation.logits or []
        for scores, padding, ids, rows in zip(scored, paddings, sequences, logits, strict=False):
            own = ids[None, len(padding) : width + len(rows)]
            scores.extend(to_host(own), list(to_host(rows[:, None])))
        made = [torch.cat(scores.rows) for scores in scored]
        kept = generation.past_key_values if gives_cache else None
        return GenerateDecoderOnlyOutput(
            sequences=sequences,
            scores=_by_step(made, input_ids.device) if wants_scores else None,
            logits=_by_step(logits, input_ids.device) if wants_logits else None,
            **{cache_name(GenerateDecoderOnlyOutput) or "": kept},
        )

    return decode


def _by_step(rows: list[torch.Tensor], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Turn rows (n, V) of sequences into (B, V) of steps: zeros where one has ended."""
    return torch.nn.utils.rnn.pad_sequence(rows).to(device).unbind(0)


def _without_rows(criterion: Callable[..., Any]) -> Callable[..., Any]:
    """Return a criterion as `generate` calls it where no scores are kept."""
    return lambda ids, _rows: criterion(ids, None)


def _only_streamer(ours: Any | None, generates: Any | None) -> Any | None:
    if generates is None:
        return ours
    if ours is not None:
        message = "streamer is given to generate and to mv.hf.speculative; give it to one of them"
        raise ParamsError(message, slug="bad_streamer")
    return AfterPrompt(generates)


def _matchers(constraint: Any, input_ids: torch.Tensor, shown: torch.Tensor) -> list[Any]:
    """Start the constraint of each row once more, to mask its scores."""
    each = per_sequence(constraint, Constraint | None, len(input_ids), "constraint")
    return [
        None if one is None else one.start(tuple(ids[visible != 0].tolist()))
        for one, ids, visible in zip(each, input_ids, shown, strict=True)
    ]


def _past(past: Any, paddings: Sequence[torch.Tensor]) -> Any:
    """`generate` sends an empty cache along, which a batch does without."""
    num_rows = len(paddings)
    if isinstance(past, StaticCache) and (num_rows > 1 or len(paddings[0])):
        found = f"there are {num_rows}" if num_rows > 1 else "this one is padded on the left"
        message = f"a static cache serves a single sequence without padding, and {found}; unset it"
        raise UnsupportedModelError(message, slug="unsupported_cache")
    return None if num_rows > 1 and past is not None and past.get_seq_length() == 0 else past
