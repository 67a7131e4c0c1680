"""What takes the place of the engine's `eagle_sample`."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtp_verify.integrations.gate import ENGINES
from mtp_verify.integrations.sglang.trees import verify_trees
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["eagle_sample"]

_GATE = ENGINES["sglang"]
# The engine's "all tokens" for top_k; anything as large means off.
_TOP_K_ALL = 1 << 30


def eagle_sample(
    verify_input: Any,
    batch: Any,
    logits_output: Any,
    grammar_mask: Any = None,
    uno_target_max_top_k: int | None = None,  # noqa: ARG001 - the engine's signature
    *,
    watermark_state: Any = None,  # noqa: ARG001 - left to the engine before
    watermark_full_mask: bool = True,  # noqa: ARG001 - the engine's signature
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the place of SGLang's function of that name.

    NaN is replaced where the engine is told to, penalties are applied as it does, one vector a
    request, and the grammar's mask on top. A request with a seed (`sampling_seed`) gives the same
    tokens in every batch. On a device nothing is read back: sizes and sampling parameters are those
    that the batch's requests hold on the host; tokens, links, lengths and seeds stay where they
    are.

    Returns:
        `predict` int32 (B * D,), `accept_lens` int32 (B,) (the last token counted) and
        `accept_index` int32 (B, depth).

    Raises:
        DraftError: As `verify_trees`.
    """
    device = batch.device
    if batch.forward_mode.is_idle():
        empty = torch.empty((3, 0), dtype=torch.int32, device=device)
        return empty[0], empty[1], empty[2]
    info = batch.sampling_info
    num, width = len(batch.seq_lens), verify_input.draft_token_num
    logits = logits_output.next_token_logits
    _sanitise(logits)
    _penalise(logits, info, width)
    if grammar_mask is not None:
        grammar_mask.apply(logits)

    depth = verify_input.max_tree_depth
    kind: dict[str, Any] = {"dtype": torch.int32, "device": device}
    predict, accepted = torch.zeros(num * width, **kind), torch.zeros(num, **kind)
    accept_index = torch.full((num, depth), -1, **kind)
    verify_trees(
        predicts=predict,
        accept_index=accept_index,
        accept_token_num=accepted,
        candidates=verify_input.draft_token.reshape(num, width),
        retrive_index=verify_input.retrieve_index,
        retrive_next_token=verify_input.retrieve_next_token,
        retrive_next_sibling=verify_input.retrieve_next_sibling,
        logits=logits,
        params=[_params(request.sampling_params) for request in batch.reqs],
        seeds=_seeds(info, num),
        positions=batch.seq_lens,
        draft_probs=verify_input.draft_probs if _samples_drafts() else None,
        rule=_GATE.switch() or "auto",  # type: ignore[arg-type]
        # One child a level, as many levels as there are columns.
        is_chain=verify_input.tree_topk == 1 and depth == width,
    )
    _synchronise(predict, accept_index, accepted)
    return predict, accepted + 1, accept_index


def _samples_drafts() -> bool:
    from sglang.srt.runtime_context import get_spec

    return bool(get_spec().speculative_use_rejection_sampling)


def _sanitise(logits: Tensor) -> None:
    """Replace NaN and infinities, in place, where the engine's variable says so."""
    from sglang.srt.utils.async_probe import sanitize_nan_logits

    sanitize_nan_logits(logits, "verify: target model logits")


def _penalise(logits: Tensor, info: Any, width: int) -> None:
    """Apply penalties and biases, one row for each request, in place as the engine does."""
    if info.acc_additive_penalties is not None:
        logits.add_(info.acc_additive_penalties.repeat_interleave(width, dim=0))
    if info.acc_scaling_penalties is not None:
        scale = info.acc_scaling_penalties.repeat_interleave(width, dim=0)
        logits.copy_(torch.where(logits > 0, logits / scale, logits * scale))
    if info.logit_bias is not None:
        logits.add_(info.logit_bias.repeat_interleave(width, dim=0))


def _params(own: Any) -> SamplingParams:
    """Return the parameters of a request; for the engine, top_k = 1 means greedy."""
    return _shaped(own.temperature, own.top_k, own.top_p, own.min_p)


@lru_cache(maxsize=1024)
def _shaped(temperature: float, top_k: int, top_p: float, min_p: float) -> SamplingParams:
    if top_k <= 1:
        return SamplingParams(temperature=0.0)
    # As the engine's tensors hold them.
    top_p, min_p = float(np.float32(top_p)), float(np.float32(min_p))
    return SamplingParams(temperature, 0 if top_k >= _TOP_K_ALL else top_k, top_p, min_p)


def _seeds(info: Any, num: int) -> Any:
    """Return the requests' own seeds, or fresh ones, so that no step repeats another's noise."""
    if info.sampling_seed is not None:
        return info.sampling_seed
    return torch.randint(1 << 62, (num,), device="cpu").tolist()


def _synchronise(*tensors: Tensor) -> None:
    """Give all ranks of a tensor-parallel group the first one's result: their logits may differ."""
    from sglang.srt.layers.dp_attention import is_dp_attention_enabled
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    group = parallel.attn_tp_group if is_dp_attention_enabled() else parallel.tp_group
    if group.world_size > 1:
        for tensor in tensors:
            group.broadcast(tensor, src=0)
