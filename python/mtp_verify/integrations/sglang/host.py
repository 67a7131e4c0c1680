"""Verify trees of the host: the core's decisions, on several threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtp_verify._core import Draft
from mtp_verify.errors import DraftError
from mtp_verify.integrations.sglang.links import tree_from_links
from mtp_verify.verifier.batch import verify_batch
from mtp_verify.verifier.kernels import to_host

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from mtp_verify._core import TokenTree
    from mtp_verify.integrations.sglang.trees import Trees
    from mtp_verify.verifier.params import SamplingParams
    from mtp_verify.verifier.words import Rule

__all__ = ["verify_on_host"]


def verify_on_host(
    trees: Trees,
    params: Sequence[SamplingParams],
    seeds: Any,
    positions: Any,
    rule: Rule,
) -> None:
    """Do what `verify_trees` does; its tensors fit together."""
    batch, width = trees.candidates.shape
    rows = to_host(trees.logits).reshape(batch, width, -1)
    tokens = to_host(trees.candidates).tolist()
    links = (trees.retrive_next_token, trees.retrive_next_sibling)
    index = to_host(trees.retrive_index).numpy()
    drafts: list[Draft] = []
    columns: list[NDArray[np.int64]] = []
    pairs = zip(*(to_host(own).tolist() for own in links), strict=True)
    for b, (children, siblings) in enumerate(pairs):
        try:
            tree, own = tree_from_links(children, siblings)
            drafts.append(_draft(tree, [tokens[b][i] for i in own], trees.draft_probs, b))
        except DraftError as error:
            message = f"request {b}: {error}"
            raise DraftError(message, slug=error.slug, node=error.node, sequence=b) from error
        columns.append(own)
    in_order = all(np.array_equal(own, np.arange(len(own))) for own in columns)
    own_rows = rows if in_order else [rows[b, own] for b, own in enumerate(columns)]
    found = verify_batch(
        drafts, own_rows, params, rule=rule, seeds=_words(seeds), positions=_words(positions)
    )
    room = trees.accept_index.shape[1]
    verdicts = [found[b].cut(min(found[b].num_accepted + 1, room)) for b in range(batch)]

    accepted = np.full(tuple(trees.accept_index.shape), -1, np.int64)
    for b, verdict in enumerate(verdicts):
        path = columns[b][np.concatenate([[0], verdict.path])]
        accepted[b, : len(path)] = index[b, path]
    emitted = np.concatenate([verdict.tokens for verdict in verdicts])
    predicts = trees.predicts
    written = torch.from_numpy(accepted[accepted >= 0]).to(predicts.device)
    predicts[written] = torch.from_numpy(emitted).to(predicts)
    trees.accept_index.copy_(torch.from_numpy(accepted))
    trees.accept_token_num.copy_(torch.tensor([verdict.num_accepted for verdict in verdicts]))


def _words(values: Any) -> list[int]:
    """Return seeds or positions as integers without a sign."""
    listed = to_host(values).tolist() if isinstance(values, torch.Tensor) else values
    return [int(value) % (1 << 64) for value in listed]


def _draft(tree: TokenTree, tokens: list[int], draft_probs: Tensor | None, request: int) -> Draft:
    """Return the draft of one request, under the law that is known of it."""
    if draft_probs is None:
        # The engine's trees are reranked by what was drafted; only rules that ignore q are right.
        return Draft(tree, tokens, law="unknown")
    if not tree.is_chain:
        message = "links: found a tree that branches, wanted a chain, as draft_probs was given"
        raise DraftError(message, slug="shape_mismatch")
    probs = to_host(draft_probs[request])
    return Draft.chain(tokens[1:], probs[: len(tokens) - 1], root=tokens[0])
