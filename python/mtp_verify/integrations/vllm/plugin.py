"""vLLM: this package's rules instead of its rejection sampler, where it is switched on.

vLLM loads `register` through the entry point `vllm.general_plugins` in every process. It does
nothing unless the environment variable `MTP_VERIFY_VLLM` is set: to 1 (the best rule), or to the
name of a rule for drafts with probabilities. Then `RejectionSampler.forward` is replaced. The rows
are taken as vLLM has them: those of one request lie together, the bonus row last, which is the form
that a drafted chain is verified in; nothing is copied unless vLLM's own processors (penalties, bad
words, allowed and minimal tokens) change them. Temperature, top-k and top-p are applied lazily, to
the rows that a decision reaches.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify._core import Draft
from mtp_verify.errors import MtpVerifyError, UnsupportedModelError
from mtp_verify.integrations.gate import ENGINES
from mtp_verify.verifier.api import verify
from mtp_verify.verifier.kernels import is_on_host
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.verifier.words import Rule

__all__ = ["GATE", "RULES", "forward", "install", "is_installed", "register", "uninstall"]

GATE = ENGINES["vllm"]
# For drafts with probabilities; without them every rule samples from the target and compares.
RULES = ("auto", *GATE.choices)
_PLACEHOLDER = -1
# vLLM's own limit between greedy and sampled; such requests arrive with temperature 0.
_GREEDY = SamplingParams(temperature=0, preset="vllm")
_SEEDS = 1 << 63
_MARK = "_mtp_verify_original"


def register() -> None:
    """Install what `MTP_VERIFY_VLLM` asks for; this is the entry point.

    What cannot be installed leaves the engine as it is, with a warning: vLLM would not start after
    an error.
    """
    try:
        rule = GATE.switch()
        if rule is not None:
            install(rule)  # type: ignore[arg-type]
    except MtpVerifyError as error:
        warnings.warn(f"{GATE.variable}: {error}", RuntimeWarning, stacklevel=2)


def install(rule: Rule = "auto") -> None:
    """Replace the rejection sampler of the vLLM in this process; a second call changes the rule.

    Args:
        rule: One of `RULES`, for drafts with probabilities.

    Raises:
        UnsupportedModelError: No such rule, or a vLLM whose sampler this module does not know;
            says what is supported. The engine is then untouched.
        ImportError: vLLM is not installed.
    """
    if rule not in RULES:
        message = f"rule: found {rule!r}, wanted one of: {', '.join(RULES)}"
        raise UnsupportedModelError(message, slug="unknown_rule")
    sampler = _sampler_class()
    original = getattr(sampler.forward, _MARK, sampler.forward)

    @functools.wraps(original)
    def replaced(
        self: Any, metadata: Any, draft_probs: Any, logits: Any, sampling_metadata: Any
    ) -> Any:
        # Synthetic acceptance is not sampling, and device rows need device kernels.
        if self.synthetic_mode or not is_on_host(logits):
            return original(self, metadata, draft_probs, logits, sampling_metadata)
        return forward(self, metadata, draft_probs, logits, sampling_metadata, rule=rule)

    setattr(replaced, _MARK, original)
    sampler.forward = replaced


def uninstall() -> None:
    """Give vLLM its own sampler back."""
    sampler = _sampler_class()
    sampler.forward = getattr(sampler.forward, _MARK, sampler.forward)


def is_installed() -> bool:
    """Return whether the vLLM in this process verifies with this package."""
    try:
        return hasattr(_sampler_class().forward, _MARK)
    except UnsupportedModelError:
        return False


def _sampler_class() -> Any:
    """Return the class whose `forward` is replaced; refuse another version or signature."""
    import vllm
    from vllm.v1.sample import rejection_sampler

    sampler: Any = rejection_sampler.RejectionSampler
    GATE.check(str(vllm.__version__), sampler.forward)
    return sampler


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
    width = max(metadata.num_draft_tokens, default=0) + 1
    tokens = torch.full((len(metadata.num_draft_tokens), width), _PLACEHOLDER, dtype=torch.int32)
    for row, emitted in enumerate(_verify(metadata, draft_probs, rows, sampling, rule)):
        tokens[row, : len(emitted)] = torch.from_numpy(emitted)
    logprobs = None
    if sampling.max_num_logprobs is not None:
        source = logits
        if sampler.is_processed_logprobs_mode:
            source = _shaped(rows.float(), metadata.num_draft_tokens, sampling)
        indices = (metadata.target_logits_indices, metadata.bonus_logits_indices)
        parts = [source[each] for each in indices]
        most = sampling.max_num_logprobs
        logprobs = sampler._get_logprobs_tensors(most, metadata, logits, *parts, tokens)
    from vllm.v1.outputs import SamplerOutput

    return SamplerOutput(sampled_token_ids=tokens, logprobs_tensors=logprobs)


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
        verdict = verify(chain, block[:num], params[row], rule=rule, seed=seeds[row], position=0)
        emitted.append(verdict.tokens)
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


def _shaped(rows: torch.Tensor, counts: Sequence[int], sampling: Any) -> torch.Tensor:
    """Apply temperature, top-k and top-p, as for processed log-probabilities."""
    if sampling.all_greedy:
        return rows
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    widths = torch.tensor(counts) + 1

    def expand(values: Any) -> Any:
        return None if values is None else values[: len(widths)].repeat_interleave(widths)

    temperature = expand(sampling.temperature)
    rows = rows / torch.where(temperature == 0, 1.0, temperature)[:, None]
    shaped: torch.Tensor
    shaped = apply_top_k_top_p(rows, expand(sampling.top_k), expand(sampling.top_p))
    return shaped
