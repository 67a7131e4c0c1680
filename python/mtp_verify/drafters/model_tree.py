"""An independent language model as drafter of trees: the nodes of largest path probability.

References: OPT-Tree, arXiv 2406.17276; EAGLE-2, arXiv 2406.16858.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtp_verify._core import Draft
from mtp_verify.drafters.independent import Model
from mtp_verify.errors import UnsupportedModelError
from mtp_verify.verifier.cleanup import at_end
from mtp_verify.verifier.growers import Heap
from mtp_verify.verifier.intake import as_count
from mtp_verify.verifier.params import SamplingParams, as_params

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mtp_verify.drafters.base import Request
    from mtp_verify.drafters.independent import ModelState
    from mtp_verify.drafters.translation import Translation

__all__ = ["ModelTree"]


class ModelTree(Model):
    """Drafts the best-first tree over a model's rows: law "deterministic".

    The model is run once a level, over all inner nodes grown so far: its cache sees a tree only
    within one forward. Deep trees of a large drafter cost accordingly.

    Args:
        model: a transformers causal language model in evaluation mode, or a `Target`; it must be
            able to attend along a tree.
        max_nodes: most drafted nodes.
        max_depth: most levels, and so forwards of the model a step.
        max_children: most children of a node.
        params: how the model's rows are shaped before candidates are ranked; the target's own
            params rank best, save that temperature 0 leaves one candidate a node. None is
            temperature 1.
        translation: for a model whose tokenizer is not the target's; see `Model`.

    Raises:
        UnsupportedModelError: the model cannot draft trees; says why.
        ParamsError: a limit below 1.

    Example:
        >>> drafter = ModelTree(small, max_nodes=12)  # doctest: +SKIP
        >>> mv.Decoder(large, drafter).generate(ids, max_new_tokens=64)  # doctest: +SKIP
    """

    makes_trees = True

    def __init__(
        self,
        model: Any,
        *,
        max_nodes: int = 16,
        max_depth: int = 6,
        max_children: int = 4,
        params: SamplingParams | None = None,
        translation: Translation | None = None,
    ) -> None:
        limits = {"max_nodes": max_nodes, "max_depth": max_depth, "max_children": max_children}
        for name, value in limits.items():
            as_count(name, value)
        params = as_params(params)
        super().__init__(model, num_tokens=max_depth, params=params, translation=translation)
        if self.target.tree_obstacle:
            message = f"the drafter drafts trees, and {self.target.tree_obstacle}"
            raise UnsupportedModelError(message, slug="no_tree_attention")
        self.laws = ("deterministic",)
        self.max_nodes = max_nodes
        self.max_children = max_children

    @torch.inference_mode()
    def _draft(self, request: Request, state: ModelState, budget: int) -> Draft:
        state.root = None
        length = min(self.num_tokens, budget)
        if length < 1:
            return Draft.chain([])
        target, matcher = self.target, request.matcher
        device = target.device
        position, pending = state.read(request.tokens)
        cache = state.cache
        if target.max_length is not None:
            # The deepest inner node runs at position + length - 1, which must lie in the context.
            length = min(length, target.max_length - position)
        if length < 1 or not pending:
            return Draft.chain([])
        heap = Heap(
            min(self.max_nodes, budget),
            max_depth=length,
            max_children=self.max_children,
            root=request.tokens[-1],
            eos_ids=request.eos_ids,
            params=self.params,
            vocab=self._vocab,
        )
        heap.frontier()
        ids = torch.tensor([pending], device=device)
        rows = self._shared(target.forward(ids, None, None, cache, num_logits=1)[0]).cpu()
        heap.extend(rows if matcher is None else matcher.mask_rows(rows, [[]], self._vocab))
        inner: list[int] = []
        with at_end(lambda: cache.crop(position + 1)):
            while nodes := heap.frontier():
                inner += nodes
                ids = torch.tensor([self._own(heap.tokens[inner].tolist())], device=device)
                mask, depths = _ancestors(heap.parents, inner)
                cache.crop(position + 1)
                rows, _ = target.forward(
                    ids,
                    (position + torch.from_numpy(depths).to(device))[None],
                    torch.from_numpy(mask),
                    cache,
                    num_logits=len(nodes),
                )
                rows = self._shared(rows).cpu()
                if matcher is not None:
                    paths = [heap.path(node) for node in nodes]
                    rows = matcher.mask_rows(rows, paths, self._vocab)
                heap.extend(rows)
        return heap.finish()


def _ancestors(
    parents: NDArray[np.int64], nodes: list[int]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return which of `nodes` are ancestors of which, or equal, and the depth of each.

    Args:
        parents: (n,) of the whole tree.
        nodes: all ancestors of each but the root stand before it.
    """
    index = {node: row for row, node in enumerate(nodes)}
    mask = np.eye(len(nodes), dtype=bool)
    depths = np.ones(len(nodes), dtype=np.int64)
    for row, node in enumerate(nodes):
        above = index.get(int(parents[node]))
        if above is not None:
            mask[row] |= mask[above]
            depths[row] = depths[above] + 1
    return mask, depths
