"""An independent language model as drafter of trees: the nodes of largest path probability.

References: OPT-Tree, arXiv 2406.17276; EAGLE-2, arXiv 2406.16858.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtp_verify._core import Draft, TokenTree
from mtp_verify.drafters.base import shaping_of
from mtp_verify.drafters.growing import Ranked
from mtp_verify.drafters.independent import Model
from mtp_verify.errors import UnsupportedModelError
from mtp_verify.verifier.cleanup import at_end
from mtp_verify.verifier.growers import Heap
from mtp_verify.verifier.intake import as_count
from mtp_verify.verifier.params import as_params

if TYPE_CHECKING:
    from mtp_verify.drafters.base import DraftParams, Request
    from mtp_verify.drafters.independent import ModelState
    from mtp_verify.drafters.sketch import Sketch
    from mtp_verify.drafters.translation import Translation

__all__ = ["ModelTree"]


class ModelTree(Model):
    """Drafts the best-first tree over a model's rows: law "deterministic".

    The model is run once a level, over all inner nodes grown so far: its cache sees a tree only
    within one forward. Deep trees of a large drafter cost accordingly.

    Args:
        model: as for `Model`; it must be able to attend along a tree.
        max_nodes: most drafted nodes.
        max_depth: most levels, and so forwards of the model a step.
        max_children: most children of a node.
        params: how the model's rows are shaped before candidates are ranked; "target", each
            request's own, ranks best. None is temperature 1, and so is temperature 0, which would
            leave one candidate a node.
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
        params: DraftParams = None,
        translation: Translation | None = None,
    ) -> None:
        limits = {"max_nodes": max_nodes, "max_depth": max_depth, "max_children": max_children}
        for name, value in limits.items():
            as_count(name, value)
        super().__init__(model, num_tokens=max_depth, params=params, translation=translation)
        if self.target.tree_obstacle:
            message = f"the drafter drafts trees, and {self.target.tree_obstacle}"
            raise UnsupportedModelError(message, slug="no_tree_attention")
        self.laws = ("deterministic",)
        self.max_nodes = max_nodes
        self.max_children = max_children

    @torch.inference_mode()
    def _draft(self, request: Request, state: ModelState, budget: int) -> Draft:
        length, pending = self._begin(request, state, budget)
        if length < 1 or not pending or state.root is None:
            return Draft.chain([])
        position, cache, device = state.root, state.cache, self.target.device
        own: dict[str, Any] = {"root": request.tokens[-1], "eos_ids": request.eos_ids}
        own |= {
            "params": shaping_of(self.params, request),
            "vocab": self._vocab,
            "max_children": self.max_children,
        }
        heap = Heap(min(self.max_nodes, budget), max_depth=length, **own)
        heap.frontier()
        row = request.mask_rows(self._run(pending, cache), [[]], self._vocab)
        if not self._extend(heap, row):
            return heap.finish()
        inner: list[int] = []
        with at_end(lambda: cache.crop(position + 1)):
            while nodes := heap.frontier():
                inner += nodes
                # All of them run again, below a root that the cache holds already.
                numbers = {0: 0} | {node: place for place, node in enumerate(inner, 1)}
                tree = TokenTree([-1, *(numbers[int(heap.parents[node])] for node in inner)])
                cache.crop(position + 1)
                tokens = self._own(heap.tokens[inner].tolist())
                positions = (position + torch.from_numpy(tree.depths[1:]).to(device))[None]
                mask = torch.from_numpy(tree.mask()[1:, 1:])
                rows = self._run(tokens, cache, positions, mask, len(nodes))
                paths = (heap.path(node) for node in nodes)
                if not self._extend(heap, request.mask_rows(rows, paths, self._vocab)):
                    break
        return heap.finish()

    @torch.inference_mode()
    def _sketch(self, request: Request, state: ModelState, budget: int) -> Draft | Sketch:
        length, pending = self._begin(request, state, budget)
        if length < 1 or not pending or state.root is None:
            return Draft.chain([])
        state.is_away = True
        position, cache, device = state.root, state.cache, self.target.device
        shaping = as_params(shaping_of(self.params, request))
        given = shaping, request, self._shared[0], device
        form = Ranked(min(self.max_nodes, budget), length, self.max_children, *given)
        ids = torch.tensor(pending, device=device)
        form.extend(request.mask_rows(self._rows(ids, cache), [[]], self._vocab))
        words: list[torch.Tensor] = []
        seen = torch.ones((0, 0), dtype=torch.bool, device=device)  # Places, and those above them.
        depths: list[int] = []
        with at_end(lambda: cache.crop(position + 1)):
            while size := form.size:
                # All levels run again, below a root that the cache holds already.
                words.append(self._renumbered(form.tokens))
                depth = len(words)
                depths += [depth] * size
                last = seen[len(seen) - len(words[-2]) :] if depth > 1 else seen.new_ones((1, 0))
                above = torch.as_tensor(form.above, device=device)
                own = torch.eye(size, dtype=torch.bool, device=device)
                below = torch.cat((last[above], own), dim=1)
                seen = torch.cat((torch.nn.functional.pad(seen, (0, size)), below))
                cache.crop(position + 1)
                positions = torch.tensor(depths, device=device)[None] + position
                form.extend(self._rows(torch.cat(words), cache, positions, seen, size))
        return form.finish()
