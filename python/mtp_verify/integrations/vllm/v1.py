"""The sampler of vLLM's V1 model runner: `RejectionSampler.forward`.

The rows are taken as vLLM has them: those of one request lie together, the bonus row last, which is
the form that a drafted chain is verified in; nothing is copied unless vLLM's own processors
(penalties, bad words, allowed and minimal tokens) change them. Temperature, top-k and top-p are
applied lazily, to the rows that a decision reaches. Rows on a device stay there (`v1_device`).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtp_verify._core import Draft
from mtp_verify.errors import NumericsError
from mtp_verify.integrations.vllm import on_device, v1_device
from mtp_verify.integrations.vllm.seams import warn_once
from mtp_verify.verifier.api import verify
from mtp_verify.verifier.kernels import is_on_host
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtp_verify.verifier.words import Rule

__all__ = ["forward", "objection", "verifying"]

_PLACEHOLDER = -1
# vLLM's own limit between greedy and sampled; such requests arrive with temperature 0.
_GREEDY = SamplingParams(temperature=0, preset="vllm")
_SEEDS = 1 << 63


def objection(rule: Rule) -> str | None:
    """Return why a rule is none of this runner's; None if it is."""
    if rule != "coupled":
        return None
    return "coupled wants positions, which the V1 model runner does not tell: vLLM's sampler runs"


def verifying(original: Callable[..., Any], rule: Rule) -> Callable[..., Any]:
    """Return what takes the place of `RejectionSampler.forward`."""

    def replaced(
        self: Any, metadata: Any, draft_probs: Any, logits: Any, sampling_metadata: Any
    ) -> Any:
        reason = _reason(self, logits, rule)
        if reason is not None:
            warn_once(f"{reason}: vLLM's sampler runs")
            return original(self, metadata, draft_probs, logits, sampling_metadata)
        return forward(self, metadata, draft_probs, logits, sampling_metadata, rule=rule)

    return replaced


def _reason(sampler: Any, logits: Any, rule: Rule) -> str | None:
    """Return why vLLM's own sampler runs; None if it does not."""
    if sampler.synthetic_mode:
        return "synthetic acceptance is no sampling"
    if getattr(sampler, "use_fly", False):
        return "rejection_sample_method fly is not lossless, and asked for"
    if is_on_host(logits):
        return None
    return on_device.objection(rule, logits.dtype)


def forward(
    sampler: Any,
    metadata: Any,
    draft_probs: torch.Tensor | None,
    logits: torch.Tensor,
    sampling: Any,
    *,
    rule: Rule = "auto",
) -> Any:
    """Verify one step: what `RejectionSampler.forward` does, with vLLM's own objects.

    Args:
        sampler: The `RejectionSampler`: its processors and log-probabilities are used.
        metadata: `SpecDecodeMetadata`; request b has `num_draft_tokens[b]` drafts, ragged.
        draft_probs: (T, V) float32, or None for drafts that are a function of the past.
        logits: (T + B, V) float32, float16 or bfloat16: for each request the rows of its drafts,
            then its bonus row; not modified.
        sampling: `SamplingMetadata`.
        rule: For drafts with probabilities.

    Returns:
        `SamplerOutput` with int32 (B, max_spec_len + 1) tokens, -1 where there is none.
    """
    rows = _processed(sampler, metadata, logits, sampling)
    if is_on_host(rows):
        tokens = _padded(metadata, _verify(metadata, draft_probs, rows, sampling, rule))
    else:
        tokens = v1_device.verify(metadata, draft_probs, rows, sampling, rule)
    logprobs = None
    if sampling.max_num_logprobs is not None:
        source = logits
        if sampler.is_processed_logprobs_mode:
            source = _shaped(rows.float(), metadata, sampling)
        indices = (metadata.target_logits_indices, metadata.bonus_logits_indices)
        parts = [source[each] for each in indices]
        most = sampling.max_num_logprobs
        logprobs = sampler._get_logprobs_tensors(most, metadata, logits, *parts, tokens)
    from vllm.v1.outputs import SamplerOutput

    return SamplerOutput(sampled_token_ids=tokens, logprobs_tensors=logprobs)


def _padded(metadata: Any, emitted: Sequence[Any]) -> torch.Tensor:
    """Return the tokens of all requests, as wide as the longest draft and one."""
    width = max(metadata.num_draft_tokens, default=0) + 1
    tokens = torch.full((len(emitted), width), _PLACEHOLDER, dtype=torch.int32)
    for row, own in enumerate(emitted):
        tokens[row, : len(own)] = torch.from_numpy(own)
    return tokens


def _verify(
    metadata: Any, draft_probs: torch.Tensor | None, rows: torch.Tensor, sampling: Any, rule: Rule
) -> list[Any]:
    """Return the tokens that each request emits."""
    drafted = metadata.draft_token_ids.tolist()
    params = _params(sampling, len(metadata.num_draft_tokens), rows.shape[-1])
    seeds = _seeds(sampling, params)
    emitted, first = [], 0
    for row, count in enumerate(metadata.num_draft_tokens):
        last = first + count
        # Drafts before request b plus one bonus row for each of the b requests.
        block = rows[first + row : last + row + 1]
        probs = None if draft_probs is None else draft_probs[first:last]
        chain = _chain(drafted[first:last], probs, block)
        num = chain.num_nodes
        try:
            found = verify(chain, block[:num], params[row], rule=rule, seed=seeds[row], position=0)
            emitted.append(found.tokens)
        except NumericsError as error:
            # An exception here would end the engine, and with it all other requests.
            warn_once(f"{error}; the request goes on with token 0")
            emitted.append(np.zeros(1, np.int64))
        first = last
    return emitted


def _chain(tokens: list[int], probs: torch.Tensor | None, block: torch.Tensor) -> Draft:
    """Return the draft of one request, up to the first placeholder.

    vLLM writes a placeholder over a drafted token that the grammar forbids. A chain that is a
    function of the past may end before it. A token that was drawn must be rejected instead, as the
    residual of its row is what makes the step exact; the row does not depend on which of the
    forbidden tokens it was, so any of them stands for it.
    """
    num = next((i for i, token in enumerate(tokens) if token < 0), len(tokens))
    chain = tokens[:num]
    if probs is None or not tokens:
        return Draft.chain(chain)
    if num < len(tokens):
        forbidden = (block[num] == -torch.inf) & (probs[num] > 0)
        if forbidden.any():
            chain.append(int(forbidden.nonzero()[0]))
    return Draft.chain(chain, probs[: len(chain)]) if chain else Draft.chain(chain)


def _params(sampling: Any, num: int, vocab: int) -> list[SamplingParams]:
    """Return the shaping of each request, without what vLLM's processors have already done."""
    if sampling.all_greedy:
        return [_GREEDY] * num
    temperature = sampling.temperature.tolist()
    top_k = [0] * num if sampling.top_k is None else sampling.top_k.tolist()
    top_p = [1.0] * num if sampling.top_p is None else sampling.top_p.tolist()
    # vLLM turns top-k off by the size of the vocabulary.
    return [
        _made(t, k if k < vocab else 0, p)
        for t, k, p in zip(temperature[:num], top_k[:num], top_p[:num], strict=True)
    ]


@functools.lru_cache(maxsize=1024)
def _made(temperature: float, top_k: int, top_p: float) -> SamplingParams:
    return SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, preset="vllm")


def _seeds(sampling: Any, params: Sequence[SamplingParams]) -> list[int]:
    """Draw a seed for each request and step, from the request's own generator if it has one."""
    seeds = [0] * len(params)
    for row, shaping in enumerate(params):
        if not shaping.is_greedy:
            generator = sampling.generators.get(row)
            seeds[row] = int(torch.randint(_SEEDS - 1, (), generator=generator))
    return seeds


def _processed(sampler: Any, metadata: Any, logits: torch.Tensor, sampling: Any) -> torch.Tensor:
    """Apply vLLM's processors to the rows; where none is active, return the same tensor."""
    if not _is_processed(sampling):
        return logits
    rows = logits.to(torch.float32, copy=True)
    bonus, target = metadata.bonus_logits_indices, metadata.target_logits_indices
    # In vLLM's order: the bonus rows' processors bring the state up to date.
    process = sampler.sampler.apply_logits_processors
    rows[bonus] = process(rows[bonus], sampling, predict_bonus_token=True)
    rows[target] = sampler.apply_logits_processors(rows[target], sampling, metadata)
    return rows


def _is_processed(sampling: Any) -> bool:
    holder = getattr(sampling, "thinking_budget_state_holder", None)
    return bool(
        not sampling.no_penalties
        or sampling.bad_words_token_ids
        or sampling.allowed_token_ids_mask is not None
        or (holder is not None and holder.has_tracked_requests())
        # Both built-in processors are always loaded; they say which requests they serve.
        or any(
            getattr(processor, "min_toks", None) or getattr(processor, "biases", None)
            for processor in sampling.logitsprocs.non_argmax_invariant
        )
    )


def _shaped(rows: torch.Tensor, metadata: Any, sampling: Any) -> torch.Tensor:
    """Apply temperature, top-k and top-p, as for processed log-probabilities."""
    if sampling.all_greedy:
        return rows
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    ends = metadata.cu_num_sampled_tokens
    # Told how many rows there are, a device's host does not wait to see it.
    widths = torch.diff(ends, prepend=ends.new_zeros(1))

    def expand(values: Any) -> Any:
        if values is None:
            return None
        return values[: len(widths)].repeat_interleave(widths, output_size=len(rows))

    temperature = expand(sampling.temperature)
    rows = rows / torch.where(temperature == 0, 1.0, temperature)[:, None]
    shaped: torch.Tensor
    shaped = apply_top_k_top_p(rows, expand(sampling.top_k), expand(sampling.top_p))
    return shaped
