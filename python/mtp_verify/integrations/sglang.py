"""SGLang: a plug-in that replaces its tree verification by our verifier.

Installed with the package (entry point group `sglang.srt.plugins`), off unless the environment says
`MTP_VERIFY_SGLANG=1`, or `=coupled` for seed-exact output. It replaces `eagle_sample`, which every
EAGLE, MTP and n-gram worker calls after the target's forward, and keeps the tensors that the
engine's kernels take and give: D rows a request, the root included; links to the first child and
the next sibling, -1 for none; `predicts`, `accept_index` and `accept_token_num` written in place.

What changes for users: sampling is sampling on every device (the engine commits the most likely
token on CPU and XPU), siblings may repeat, `min_p` counts, and drafts that were sampled from a
known row are accepted by block verification. The acceptance thresholds below 1, watermarks and
simulated acceptance are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtp_verify._core import Draft, TokenTree
from mtp_verify.errors import DraftError, ParamsError
from mtp_verify.integrations.gate import ENGINES
from mtp_verify.verifier.batch import verify_batch
from mtp_verify.verifier.kernels import to_host
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mtp_verify.verifier.words import Rule

__all__ = ["eagle_sample", "links_from_tree", "register", "tree_from_links", "verify_trees"]

_GATE = ENGINES["sglang"]
_TARGET = f"sglang.srt.speculative.eagle_utils.{_GATE.function}"
# The engine's "all tokens" for top_k; anything as large means off.
_TOP_K_ALL = 1 << 30


def register() -> None:
    """Register the hook with SGLang if `MTP_VERIFY_SGLANG` says so; the engine calls this at start.

    Raises:
        UnsupportedModelError: Another version of SGLang than those known; nothing was registered.
            (The engine logs what a plug-in raises, and goes on without it.)
        ParamsError: The variable is none of 0, 1 and coupled.
    """
    if _GATE.switch() is None:
        return
    import sglang
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.speculative import eagle_utils

    _GATE.check(str(sglang.__version__), eagle_utils.eagle_sample)
    HookRegistry.register(_TARGET, eagle_sample, HookType.REPLACE)


def tree_from_links(
    next_token: Sequence[int], next_sibling: Sequence[int]
) -> tuple[TokenTree, NDArray[np.int64]]:
    """Read a tree from the engine's links.

    Args:
        next_token: int (D,), the first child of each column, -1 for none.
        next_sibling: int (D,), the next sibling of each column, -1 for none.

    Returns:
        The tree, and int64 (N+1,): the column of each of its nodes. Columns that the root does not
        lead to (the engine leaves out nodes whose parent was not selected) are no nodes. Where the
        links ascend, as the engine's own do, the order of the columns is kept.

    Raises:
        DraftError: A link out of range, or a column that is reached twice; names the column.

    Example:
        >>> tree, columns = tree_from_links([1, 3, -1, -1], [-1, 2, -1, -1])
        >>> tree.parents.tolist(), columns.tolist()
        ([-1, 0, 0, 1], [0, 1, 2, 3])
    """
    width = len(next_token)
    if width == 0 or len(next_sibling) != width:
        found = f"{width} next tokens and {len(next_sibling)} next siblings"
        message = f"links: found {found}, wanted as many of each, and the root at least"
        raise DraftError(message, slug="shape_mismatch")
    parents: dict[int, int] = {0: -1}
    order = [0]  # breadth first: parents before children, siblings as they are linked
    ascending = True
    for node in order:
        child, before = int(next_token[node]), node
        while child != -1:
            if not 0 < child < width or child in parents:
                what = "is linked twice" if child in parents else f"is not in 1 .. {width - 1}"
                place = f"links of column {before}: column {child}"
                message = f"{place} {what}; wanted a tree, -1 for none"
                raise DraftError(message, slug="bad_parent", node=before)
            ascending = ascending and before < child
            parents[child] = node
            order.append(child)
            child, before = int(next_sibling[child]), child
    if ascending:
        order.sort()
    nodes = {column: node for node, column in enumerate(order)}
    tree = TokenTree([-1] + [nodes[parents[column]] for column in order[1:]])
    return tree, np.array(order, np.int64)


def links_from_tree(
    tree: TokenTree, width: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Write a tree as the engine's links, node i in column i.

    Args:
        tree: The tree.
        width: D, at least the number of nodes; columns past the tree have no links to them.

    Returns:
        `next_token` and `next_sibling`, int64 (D,) each.

    Raises:
        DraftError: The tree has more nodes than columns.
    """
    num = len(tree.parents)
    width = num if width is None else width
    if width < num:
        message = f"width: found {width} columns, wanted {num} at least: the root and every node"
        raise DraftError(message, slug="shape_mismatch")
    links = np.full((2, width), -1, np.int64)
    links[0, :num], links[1, :num] = tree.next_token, tree.next_sibling
    return links[0], links[1]


def verify_trees(
    *,
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    logits: torch.Tensor,
    params: Sequence[SamplingParams],
    seeds: Sequence[int],
    positions: Sequence[int],
    draft_probs: torch.Tensor | None = None,
    rule: Rule = "auto",
) -> None:
    """Verify one tree a request, on the tensors of the engine's own kernels (and their spelling).

    The emitted tokens of request b are `predicts[accept_index[b, : accept_token_num[b] + 1]]`.
    Nothing is written where an error is raised.

    Args:
        predicts: int32 (B * D,), out: the token emitted after a row; only rows of the accepted path
            are written.
        accept_index: int32 (B, W), out: the rows of the accepted path, the root's first, then -1.
            A path longer than W - 1 nodes is cut, which keeps the law.
        accept_token_num: int32 (B,), out: accepted drafts, the last token not counted.
        candidates: int64 (B, D): the tokens; column 0 is the last committed one.
        retrive_index: int64 (B, D): the row of each column.
        retrive_next_token: int64 (B, D): the first child, -1 for none.
        retrive_next_sibling: int64 (B, D): the next sibling, -1 for none.
        logits: (B * D, V) float32, float16 or bfloat16, the target's, penalised and masked but not
            shaped; borrowed, not modified.
        params: One for each request.
        seeds: One for each request.
        positions: The absolute index of each root.
        draft_probs: None: the drafts were chosen somehow, and are verified by a rule that ignores
            how. Else (B, D - 1, V): the trees are chains, node i + 1 was sampled from row i.
        rule: As `verify`. With "coupled" the tokens are a function of the seed and their positions,
            whatever was drafted.

    Raises:
        DraftError: Tensors that do not fit together, or links that are no tree; names the request.
        NumericsError: A row that was read is no distribution.
    """
    batch, width = candidates.shape
    shapes = {
        "predicts": (predicts, (batch * width,)),
        "accept_index": (accept_index, (batch, *accept_index.shape[1:2])),
        "accept_token_num": (accept_token_num, (batch,)),
        "retrive_index": (retrive_index, (batch, width)),
        "retrive_next_token": (retrive_next_token, (batch, width)),
        "retrive_next_sibling": (retrive_next_sibling, (batch, width)),
        "logits": (logits, (batch * width, *logits.shape[1:2])),
        "draft_probs": (draft_probs, (batch, width - 1, *logits.shape[1:2])),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            message = f"{name}: found shape {tuple(tensor.shape)}, wanted {shape}"
            raise DraftError(message, slug="shape_mismatch")
    for name, count in (("params", len(params)), ("seeds", len(seeds)), ("positions", batch)):
        if count != batch:
            message = f"{name}: found {count}, wanted {batch}, one for each request"
            raise DraftError(message, slug="shape_mismatch")

    rows = to_host(logits).reshape(batch, width, -1)
    tokens = candidates.tolist()
    links = zip(retrive_next_token.tolist(), retrive_next_sibling.tolist(), strict=True)
    index = to_host(retrive_index).numpy()
    drafts: list[Draft] = []
    columns: list[NDArray[np.int64]] = []
    for b, (children, siblings) in enumerate(links):
        try:
            tree, own = tree_from_links(children, siblings)
            drafts.append(_draft(tree, [tokens[b][i] for i in own], draft_probs, b))
        except DraftError as error:
            message = f"request {b}: {error}"
            raise DraftError(message, slug=error.slug, node=error.node, sequence=b) from error
        columns.append(own)
    in_order = all(np.array_equal(own, np.arange(len(own))) for own in columns)
    own_rows = rows if in_order else [rows[b, own] for b, own in enumerate(columns)]
    found = verify_batch(drafts, own_rows, params, rule=rule, seeds=seeds, positions=positions)
    room = accept_index.shape[1]
    verdicts = [found[b].cut(min(found[b].num_accepted + 1, room)) for b in range(batch)]

    accepted = np.full(tuple(accept_index.shape), -1, np.int64)
    for b, verdict in enumerate(verdicts):
        path = columns[b][np.concatenate([[0], verdict.path])]
        accepted[b, : len(path)] = index[b, path]
    # One write each: on a device every one of them is a launch.
    emitted = np.concatenate([verdict.tokens for verdict in verdicts])
    written = torch.from_numpy(accepted[accepted >= 0]).to(predicts.device)
    predicts[written] = torch.from_numpy(emitted).to(predicts)
    accept_index.copy_(torch.from_numpy(accepted))
    accept_token_num.copy_(torch.tensor([verdict.num_accepted for verdict in verdicts]))


def _draft(
    tree: TokenTree, tokens: list[int], draft_probs: torch.Tensor | None, request: int
) -> Draft:
    """Return the draft of one request, under the law that is known of it."""
    if draft_probs is None:
        # The engine's trees are reranked by what was drafted; only rules that ignore q are right.
        return Draft(tree, tokens, law="unknown")
    if not tree.is_chain:
        message = "links: found a tree that branches, wanted a chain, as draft_probs was given"
        raise DraftError(message, slug="shape_mismatch")
    probs = to_host(draft_probs[request])
    return Draft.chain(tokens[1:], probs[: len(tokens) - 1], root=tokens[0])


def eagle_sample(
    verify_input: Any,
    batch: Any,
    logits_output: Any,
    grammar_mask: Any = None,
    uno_target_max_top_k: int | None = None,  # noqa: ARG001 - the engine's signature
    *,
    watermark_state: Any = None,
    watermark_full_mask: bool = True,  # noqa: ARG001 - the engine's signature
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Take the place of SGLang's function of that name, exactly.

    Penalties are applied as the engine does, one vector a request, and the grammar's mask on top.
    A request with a seed (`sampling_seed`) gives the same tokens in every batch.

    Returns:
        `predict` int32 (B * D,), `accept_lens` int32 (B,) (the last token counted) and
        `accept_index` int32 (B, depth).

    Raises:
        ParamsError: A lossy threshold, a watermark or simulated acceptance; names it.
        DraftError: As `verify_trees`.
    """
    device = batch.device
    if batch.forward_mode.is_idle():
        empty = torch.empty((3, 0), dtype=torch.int32, device=device)
        return empty[0], empty[1], empty[2]
    info = batch.sampling_info
    settings = _settings()
    probs = verify_input.draft_probs if settings.speculative_use_rejection_sampling else None
    _refuse_lossy(settings, info, watermark_state)
    num, width = len(batch.seq_lens), verify_input.draft_token_num
    logits = logits_output.next_token_logits
    _penalise(logits, info, width)
    if grammar_mask is not None:
        grammar_mask.apply(logits)

    kind: dict[str, Any] = {"dtype": torch.int32, "device": device}
    predict, accepted = torch.zeros(num * width, **kind), torch.zeros(num, **kind)
    accept_index = torch.full((num, verify_input.max_tree_depth), -1, **kind)
    verify_trees(
        predicts=predict,
        accept_index=accept_index,
        accept_token_num=accepted,
        candidates=verify_input.draft_token.reshape(num, width),
        retrive_index=verify_input.retrieve_index,
        retrive_next_token=verify_input.retrieve_next_token,
        retrive_next_sibling=verify_input.retrieve_next_sibling,
        logits=logits,
        params=_params(info, num),
        seeds=_seeds(info, num),
        positions=[int(length) for length in batch.seq_lens.tolist()],
        draft_probs=probs,
        rule=_GATE.switch() or "auto",  # type: ignore[arg-type]
    )
    _synchronise(predict, accept_index, accepted)
    return predict, accepted + 1, accept_index


def _settings() -> Any:
    """Return the engine's speculative settings."""
    from sglang.srt.runtime_context import get_spec

    return get_spec()


def _refuse_lossy(settings: Any, info: Any, watermark_state: Any) -> None:
    from sglang.srt.speculative.spec_utils import SIMULATE_ACC_LEN

    refused = {
        "--speculative-accept-threshold-single below 1": (
            settings.speculative_accept_threshold_single < 1
        ),
        "--speculative-accept-threshold-acc below 1": settings.speculative_accept_threshold_acc < 1,
        "a watermark": watermark_state is not None and info.has_watermark_candidates,
        "simulated acceptance": SIMULATE_ACC_LEN > 0,
    }
    if names := " and ".join(name for name, is_set in refused.items() if is_set):
        message = (
            f"{names}: changes the distribution of the output, and mtp-verify is exact; unset it, "
            f"or {_GATE.variable}"
        )
        raise ParamsError(message, slug="unsupported_setting")


def _penalise(logits: torch.Tensor, info: Any, width: int) -> None:
    """Apply penalties and biases, one row for each request, in place as the engine does."""
    if info.acc_additive_penalties is not None:
        logits.add_(info.acc_additive_penalties.repeat_interleave(width, dim=0))
    if info.acc_scaling_penalties is not None:
        scale = info.acc_scaling_penalties.repeat_interleave(width, dim=0)
        logits.copy_(torch.where(logits > 0, logits / scale, logits * scale))
    if info.logit_bias is not None:
        logits.add_(info.logit_bias.repeat_interleave(width, dim=0))


def _params(info: Any, num: int) -> list[SamplingParams]:
    """Return the parameters of each request; for the engine, top_k = 1 means greedy."""
    settings = (info.temperatures, info.top_ks, info.top_ps, info.min_ps)
    columns = [setting.reshape(-1).tolist()[:num] for setting in settings]
    return [
        SamplingParams(temperature=0.0)
        if info.is_all_greedy or top_k == 1
        else SamplingParams(temperature, 0 if top_k >= _TOP_K_ALL else int(top_k), top_p, min_p)
        for temperature, top_k, top_p, min_p in zip(*columns, strict=True)
    ]


def _seeds(info: Any, num: int) -> list[int]:
    """Return the requests' own seeds, or fresh ones, so that no step repeats another's noise."""
    if info.sampling_seed is not None:
        return [int(seed) % (1 << 64) for seed in info.sampling_seed.tolist()]
    return list(torch.randint(1 << 62, (num,)).tolist())


def _synchronise(*tensors: torch.Tensor) -> None:
    """Give all ranks of a tensor-parallel group the first one's result: their logits may differ."""
    from sglang.srt.layers.dp_attention import is_dp_attention_enabled
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    group = parallel.attn_tp_group if is_dp_attention_enabled() else parallel.tp_group
    if group.world_size > 1:
        for tensor in tensors:
            group.broadcast(tensor, src=0)
