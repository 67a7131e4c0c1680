"""The samplers of vLLM's V2 model runner, on the device: `RejectionSampler._verify`.

That method shapes the target's rows by vLLM's own processors, and hands them with the drafts to
`rejection_sample`; here the rows go to `ChainVerifier`. Nothing is read on the host: how many
drafts a request has, where it stands, its seed and temperature are tensors of the device, as
asynchronous scheduling and adaptive verification leave them there. Rows arrive divided by their
temperature and truncated, so they are read at temperature 1 and shaped once.

The seam is the method and not `rejection_sample`, whose arguments do not tell a draft that a
grammar forbids (it was drawn, so it is rejected and the residual of its row drawn from) from a
place that holds no draft (where the target's row is).

The drafter's noise is a hash of seed and position, this package's Philox of other numbers: they are
independent. vLLM 0.32 draws the drafts of one position from one noise in every step. Where a
decision depends on drafts behind the emitted tokens they are then no new draws: under block
verification, and where drafts are trimmed by what they are. Such steps use a rule that does not.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mtp_verify.integrations.vllm import on_device
from mtp_verify.integrations.vllm.seams import warn_once
from mtp_verify.verifier.kernels.device.chains import Chains, Drawn, core_of
from mtp_verify.verifier.kernels.device.layout import LIFTED, TOPDOWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from mtp_verify.verifier.words import Rule

__all__ = ["objection", "rule_of", "sampling", "verify", "verifying"]

_GUMBEL = "vllm.v1.worker.gpu.sample.gumbel"


def objection(rule: Rule) -> str | None:
    """Return why a rule is none of this runner's; None if it is."""
    reason = on_device.objection(rule)
    return None if reason is None else f"{reason}: vLLM's sampler runs"


def verifying(original: Callable[..., Any], rule: Rule) -> Callable[..., Any]:
    """Return what takes the place of `RejectionSampler._verify`."""

    def replaced(self: Any, logits: Tensor, *args: Any, **kwargs: Any) -> Any:
        reason = _reason(self, logits)
        if reason is not None:
            warn_once(f"{reason}: vLLM's sampler runs")
            return original(self, logits, *args, **kwargs)
        return verify(self, logits, *args, rule=rule, **kwargs)

    return replaced


def sampling(original: Callable[..., Any], owner: Any) -> Callable[..., Any]:
    """Return what takes the place of `owner.sample`, for "coupled": the same noise."""

    def replaced(self: Any, logits: Tensor, *args: Any, **kwargs: Any) -> Any:
        reason = on_device.objection("coupled", logits.dtype)
        if type(self) is not owner:
            reason = f"{type(self).__name__} draws by its own noise"
        if reason is None:
            return _sample(self, logits, *args, **kwargs)
        warn_once(f"{reason}: vLLM's sampler runs")
        return original(self, logits, *args, **kwargs)

    return replaced


def _reason(sampler: Any, logits: Tensor) -> str | None:
    """Return why vLLM's own sampler runs; None if it does not."""
    if sampler.synthetic_conditional_rates is not None:
        return "rejection_sample_method synthetic is no sampling"
    if getattr(sampler, "fly_window_size", 0):
        return "rejection_sample_method fly is not lossless, and asked for"
    if getattr(sampler, "watermark_key", None) is not None:
        return "watermarks are drawn by vLLM's own noise"
    if getattr(sampler.sampler, "trace_replay_state", None) is not None:
        return "recorded tokens are replayed in place of sampled ones"
    return on_device.objection("token", logits.dtype)


def rule_of(sampler: Any, rule: Rule) -> Rule:
    """Return the rule of a step with drawn drafts: "auto" is the engine's own method.

    Args:
        sampler: The `RejectionSampler`.
        rule: What was installed.
    """
    if rule == "auto":
        rule = "block" if sampler.use_block_verification else "token"
    repeats_noise = not hasattr(sys.modules.get(_GUMBEL), "spec_step_seed")
    core, _ = core_of(rule, "chain")
    if not repeats_noise or core < TOPDOWN:
        return rule
    if getattr(sampler, "enable_adaptive_verification", False):
        warn_once("this vLLM trims drafts that it draws again: they are compared with samples")
        return "target_only"
    if core == LIFTED:
        warn_once(f"this vLLM draws drafts again from one noise: {rule} is replaced by token")
        return "token"
    return rule


def verify(
    sampler: Any,
    logits: Tensor,
    draft_logits: Any | None,
    draft_sampled: Tensor,
    pos: Tensor,
    cu_num_logits: Tensor,
    idx_mapping: Tensor,
    idx_mapping_np: Any,
    expanded_idx_mapping: Tensor,
    expanded_local_pos: Tensor,
    seq_lens_upper_bound_np: Any,
    verify_draft_sampled: Tensor | None = None,
    *,
    rule: Rule = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Verify one step: what `RejectionSampler._verify` does, with vLLM's own tensors.

    Args:
        sampler: The `RejectionSampler`: its processors and states are used.
        logits: (rows, V) float32, float16 or bfloat16; not modified.
        draft_logits: (states, K, V_draft), the drafter's rows before the temperature, or the
            `DraftLogitsCache` that keeps them since vLLM 0.34; None for drafts that are a function
            of the past.
        draft_sampled: (rows,), draft i of request r at ``cu_num_logits[r] + i + 1``; -1 for none.
        pos: (rows,), the position of each row's token.
        cu_num_logits: (B + 1,), where the rows of each request begin.
        idx_mapping: (B,), the state of each request.
        idx_mapping_np: The same on the host.
        expanded_idx_mapping: (rows,), the state of each row.
        expanded_local_pos: (rows,), the number of each row in its request.
        seq_lens_upper_bound_np: For vLLM's processors.
        verify_draft_sampled: As `draft_sampled`, -1 too for drafts that the grammar forbids. vLLM
            0.34 tells those by the target's rows alone.
        rule: For drafts with rows; "coupled" for all.

    Returns:
        The processed rows, int64 (B, K + 1) tokens, and how many of them, int32 (B,).
    """
    processed: Tensor = sampler.sampler.apply_sampling_params(
        logits, expanded_idx_mapping, idx_mapping, idx_mapping_np, pos, draft_sampled,
        expanded_local_pos, seq_lens_upper_bound_np,
    )  # fmt: skip
    depth, vocab = sampler.num_speculative_steps, processed.shape[-1]
    roots = cu_num_logits[:-1].clamp(max=len(processed) - 1)
    tokens, drawn = verify_draft_sampled, None
    if tokens is None:
        tokens = draft_sampled
    states = sampler.sampler.sampling_states
    chains = _chains(states, idx_mapping, cu_num_logits, tokens, pos[roots])
    rows = None if draft_logits is None else _Rows.of(draft_logits, idx_mapping)
    # Drafts over more tokens than the target's were not drawn from rows over those.
    if rows is not None and rows.values.shape[-1] <= vocab:
        rule = rule_of(sampler, rule)
        if core_of(rule, "chain")[0] >= TOPDOWN:
            drawn = _drawn(states, rows, idx_mapping)
            tokens = _tokens(draft_sampled, tokens, processed)
            tokens = _possible(tokens, drawn, cu_num_logits, rows.is_there)
            chains = chains._replace(tokens=tokens)
    verifier = on_device.verifier_of(vocab, depth, processed.device)
    found, count = on_device.emitted(verifier.verify(processed, chains, rule, drawn))
    return processed, found.long(), count


def _sample(
    sampler: Any,
    logits: Tensor,
    expanded_idx_mapping: Tensor,
    idx_mapping: Tensor,
    idx_mapping_np: Any,
    pos: Tensor,
    input_ids: Tensor,
    expanded_local_pos: Tensor,
    seq_lens_upper_bound_np: Any,
    return_logprobs: bool = False,  # noqa: FBT001, FBT002  # As vLLM has it.
) -> tuple[Tensor, Tensor]:
    """Draw a token after each row: what `Sampler.sample` does, by the noise of "coupled"."""
    del return_logprobs  # Nothing is fused here: processed rows are always there.
    processed: Tensor = sampler.apply_sampling_params(
        logits, expanded_idx_mapping, idx_mapping, idx_mapping_np, pos, input_ids,
        expanded_local_pos, seq_lens_upper_bound_np,
    )  # fmt: skip
    offsets = torch.arange(len(processed) + 1, device=processed.device)
    states = sampler.sampling_states
    chains = _chains(states, expanded_idx_mapping, offsets, input_ids, pos)
    verifier = on_device.verifier_of(processed.shape[-1], 0, processed.device)
    found, _ = on_device.emitted(verifier.verify(processed, chains, "coupled"))
    return found[:, 0].long(), processed


def _chains(
    states: Any, idx_mapping: Tensor, offsets: Tensor, tokens: Tensor, positions: Tensor
) -> Chains:
    """Return the chains of requests whose states are `idx_mapping`; their rows are shaped."""
    own = idx_mapping.clamp(min=0).long()
    temperature = states.temperature.gpu[own]
    return Chains(
        offsets=offsets,
        tokens=tokens,
        seeds=states.seeds.gpu[own],
        positions=positions,
        temperature=(temperature != 0).float(),
    )


class _Rows(NamedTuple):
    """Where the drafter's rows of a batch lie: those of request r are ``values[places[r]]``."""

    values: Tensor  # (N, K, V_draft)
    places: Tensor  # (B,)
    is_there: Tensor | None  # (B,) bool: whether they are the request's own; None: all are

    @classmethod
    def of(cls, draft_logits: Any, idx_mapping: Tensor) -> _Rows:
        """Return the rows of requests whose states are `idx_mapping`.

        A `DraftLogitsCache` of one rank among several holds those of its own requests, and gives
        the rows of a request that the scheduler skips to another one.
        """
        own = idx_mapping.clamp(min=0).long()
        if isinstance(draft_logits, torch.Tensor):
            return cls(draft_logits, own, None)
        if draft_logits.row_mapping is None:
            return cls(draft_logits.values, own, None)
        places = draft_logits.row_mapping[own].long()
        held = draft_logits.inverse_row_mapping[places.clamp(min=0)]
        return cls(draft_logits.values, places.clamp(min=0), (places >= 0) & (held == own))


def _drawn(states: Any, rows: _Rows, idx_mapping: Tensor) -> Drawn:
    """Return the drafter's rows of the batch, K of each request, where they lie."""
    own = idx_mapping.clamp(min=0).long()
    depth = rows.values.shape[1]
    numbers = torch.arange(depth, device=own.device)
    return Drawn(
        rows=rows.values.flatten(0, 1),
        first=torch.arange(0, len(own) * depth, depth, device=own.device),
        temperature=states.temperature.gpu[own].repeat_interleave(depth),
        place=(rows.places[:, None] * depth + numbers).flatten(),
    )


def _tokens(real: Tensor, given: Tensor, rows: Tensor) -> Tensor:
    """Return `given` with the drafts that the row above forbids in their places again.

    Such a draft has no probability, so it is rejected and the residual drawn from. A draft that was
    taken out although it is possible is as if it had not been drawn.
    """
    above = torch.arange(-1, len(rows) - 1, device=rows.device).clamp(min=0)
    token = real.clamp(0, rows.shape[-1] - 1).long()
    is_forbidden = rows[above, token] == -torch.inf
    return torch.where((given < 0) & is_forbidden, real, given)


def _possible(tokens: Tensor, drawn: Drawn, offsets: Tensor, is_there: Tensor | None) -> Tensor:
    """Return the tokens, -1 for those whose rows are not there or cannot have given them."""
    numbers = torch.arange(len(tokens), device=tokens.device)
    request = torch.searchsorted(offsets.long(), numbers, right=True) - 1
    request = request.clamp(max=len(drawn.first) - 1)
    # The row behind the root is that of the first draft, one behind it in the logits.
    row = drawn.first[request] + numbers - offsets[request] - 1
    assert drawn.place is not None
    place = drawn.place[row.clamp(0, len(drawn.place) - 1)]
    columns = drawn.rows.shape[1]
    column = tokens.clamp(0, columns - 1).long()
    is_drawn = (tokens < columns) & (drawn.rows[place, column] > -torch.inf)
    if is_there is not None:
        is_drawn &= is_there[request]
    return torch.where(is_drawn, tokens, -1)
