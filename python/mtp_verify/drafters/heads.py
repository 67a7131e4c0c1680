"""A draft head as drafter: it reads the target's hidden states and guesses what follows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch

from mtp_verify._core import Draft, TokenTree, Verdict
from mtp_verify.drafters.growing import FixedForm, Ranked
from mtp_verify.drafters.states import StateDrafter
from mtp_verify.errors import ParamsError, RuleError, UnsupportedModelError
from mtp_verify.heads.base import ContextTokens
from mtp_verify.verifier import growers
from mtp_verify.verifier.intake import as_count, as_float, check_instance, check_type, shown
from mtp_verify.verifier.kernels import to_host
from mtp_verify.verifier.kernels.device.arena import sent
from mtp_verify.verifier.params import SamplingParams, as_params
from mtp_verify.verifier.tree_shape import TreeShape
from mtp_verify.verifier.words import HeadLaw

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.drafters.base import Request
    from mtp_verify.drafters.growing import Form
    from mtp_verify.drafters.sketch import Sketch
    from mtp_verify.heads.base import Head
    from mtp_verify.verifier.words import Law

__all__ = ["Heads"]


@dataclass
class _State:
    """What the drafter keeps of a request: the head's state, and hidden states not read yet."""

    head: Any  # the head's own state
    pending: list[tuple[torch.Tensor, ...]] = field(default_factory=list)  # of committed tokens
    # The head's row after the root, from when it has read them until the draft is made: a draft
    # that failed midway can be made again.
    rows: torch.Tensor | None = None
    vocab: Any | None = None  # the token of each column, where rows are over a sub-vocabulary

    def update_vocab(self, base: Any | None) -> None:
        """Let the tokens of the context follow those that the head always drafts."""
        if base is not None:
            context = self.head.context_tokens.ids
            if self.vocab is None or len(self.vocab) != len(base) + len(context):
                self.vocab = np.concatenate((base, np.fromiter(context, np.int64, len(context))))


class Heads(StateDrafter[_State]):
    """Drafts with a head: a chain, a best-first tree, or a fixed shape.

    The head reads the hidden states that the target computed anyway when it verified the last
    draft. Before the target's first forward there is nothing to read: a generation's first draft is
    empty.

    The law of a draft is that of its grower: greedy chains and best-first trees are
    "deterministic", sampled ones carry the rows that they were drawn from.

    Args:
        head: a `mtp_verify.heads` head, attached to the target.
        num_tokens: greatest depth of a draft.
        params: how the head's rows are shaped before tokens are drawn from them; None drafts
            greedily. They need not be the target's.
        max_nodes: grow a best-first tree of that many nodes (EAGLE-2's way of growing), whatever
            `params` is: it shapes the rows that rank the nodes.
        max_children: of a node of the best-first tree.
        shape: fill this fixed shape instead.
        law: of the fixed shape: "swor", "iid", "chain", "top_plus_one", "deterministic" or
            "coupled"; None is "swor", or "deterministic" where `params` is None.
        min_path: of a chain or a best-first tree; nothing is drafted below a path that the head
            gives less than this probability, and a tree leaves such nodes out.

    Raises:
        ParamsError: settings that contradict each other or the head.

    Example:
        >>> drafter = mv.drafters.Heads(head, max_nodes=8)  # doctest: +SKIP
        >>> mv.Decoder(model, drafter).generate(ids, max_new_tokens=64)  # doctest: +SKIP

    References:
        EAGLE-2, arXiv 2406.16858 (best-first trees); Hu et al., arXiv 2502.18779 (top-plus-one).
    """

    def __init__(
        self,
        head: Head,
        *,
        num_tokens: int = 4,
        params: SamplingParams | None = None,
        max_nodes: int | None = None,
        max_children: int = 8,
        shape: TreeShape | None = None,
        law: HeadLaw | None = None,
        min_path: float = 0.0,
    ) -> None:
        super().__init__()
        calls = ("new_state", "read", "step")
        check_instance("head", head, calls, "a head, such as mv.heads.load(path, model)")
        limits = {"num_tokens": num_tokens, "max_nodes": max_nodes, "max_children": max_children}
        for name, value in limits.items():
            as_count(name, 1 if value is None and name == "max_nodes" else value)
        if shape is not None:
            check_type("shape", shape, TreeShape)
        as_float("min_path", min_path)
        message = None
        if shape is not None and max_nodes is not None:
            message = "shape and max_nodes: found both, wanted one of these ways to grow a tree"
        elif law is not None and (shape is None or law not in get_args(HeadLaw)):
            laws = ", ".join(get_args(HeadLaw))
            message = f"law {shown(law)} goes with a shape, and is one of: {laws}"
        elif min_path and shape is not None:
            message = "min_path is of chains and best-first trees; a fixed shape is drafted whole"
        if message:
            raise ParamsError(message, slug="bad_draft_settings")
        if not 0.0 <= min_path <= 1.0:
            message = f"min_path: found {min_path}, wanted a probability"
            raise ParamsError(message, slug="param_out_of_range")
        self.head = head
        self.hidden_layers = head.hidden_layers
        self.num_tokens = min(num_tokens, head.max_depth or num_tokens)
        self.params = None if params is None else as_params(params)
        self.max_nodes = max_nodes
        self.max_children = max_children
        self.law: HeadLaw = law or ("deterministic" if params is None else "swor")
        self.min_path = min_path
        # What the head has levels for, and by budget the shapes cut to it.
        self._shape: TreeShape | None = None
        self._cut_shapes: dict[int, TreeShape] = {}
        if shape is not None:
            self._shape = shape.cut(shape.tree.num_nodes, head.max_depth)
            self.num_tokens = int(max(self._shape.tree.depths))
        is_chain = self._shape is None or self._shape.tree.is_chain
        self.makes_trees = max_nodes is not None or not is_chain
        self._vocab = None if head.vocab is None else to_host(head.vocab).numpy()
        if head.spec.context_tokens:
            head.observe_tokens(ContextTokens(), [])  # It looks its vocabulary up here, not later.
        grown: Law = "deterministic" if self.params is None or max_nodes is not None else "chain"
        self.laws = (grown if self._shape is None else self.law,)

    def check_vocabulary(self, vocab_size: int | None) -> None:
        """Refuse a target that does not know the head's tokens."""
        mine = self.head.spec.known_sizes.vocab_size
        if vocab_size is not None and mine > vocab_size:
            message = (
                f"the head drafts from {mine} tokens and the target knows {vocab_size}; load the "
                "head that was trained for it"
            )
            raise UnsupportedModelError(message, slug="vocab_mismatch")

    def check_rule(self, rule: str) -> None:
        """Refuse "gbv" where the shape is not paths of one length."""
        if rule == "gbv" and self._shape is not None and not self._shape.num_paths:
            message = (
                f"rule gbv: found a shape of parents {self._shape.tree.parents.tolist()}, wanted "
                "paths of one length that part at the root; take TreeShape.paths"
            )
            raise RuleError(message, slug="rule_shape")

    def commit(self, verdicts: Sequence[Verdict], hidden: Any | None) -> None:
        """Keep the hidden states of what was committed; they are read at the next `propose`."""
        if hidden is None:
            message = (
                "the target gives no hidden states, which a head drafts from; use a transformers "
                "model, or a Target whose forward returns those of hidden_layers"
            )
            raise UnsupportedModelError(message, slug="no_hidden_states")
        for request, _, states in zip(self._proposed, verdicts, hidden, strict=True):
            kept = self._states[request.id]
            if kept.head.num_nodes == 0 and not kept.pending:
                # Entries that a user's cache brought along have no hidden states: start behind.
                kept.head.first = request.position - states[0].shape[0]
            kept.pending.append(states)

    def _new_state(self, request: Request) -> _State:
        del request
        return _State(self.head.new_state())

    def _read(self, request: Request, state: _State) -> torch.Tensor | None:
        """Read what was committed; return the row after the root, None if nothing was read."""
        if state.pending:
            hidden = [torch.cat(layer) for layer in zip(*state.pending, strict=True)]
            count = hidden[0].shape[0]
            tokens: Any = request.tokens[-count:]
            if not self.head.spec.context_tokens:  # Else it looks them up on the host.
                tokens = torch.tensor(tokens, device=hidden[0].device)
            state.rows = self.head.read(state.head, hidden, tokens)
            state.pending.clear()
            state.update_vocab(self._vocab)
        return state.rows

    @torch.inference_mode()
    def _draft(self, request: Request, state: _State, budget: int) -> Draft:
        head, rows = self.head, self._read(request, state) if budget > 0 else None
        if rows is None:
            return Draft.chain([])
        grower = self._grower(request, budget, state.vocab)
        numbers = {0: 0}
        while nodes := grower.frontier():
            if nodes != [0]:
                parents, words = grower.parents, grower.tokens
                above = [numbers[int(parents[node])] for node in nodes]
                first = state.head.num_nodes
                rows = head.step(state.head, above, torch.from_numpy(words[nodes]).to(rows.device))
                numbers.update(zip(nodes, range(first, first + len(nodes)), strict=True))
            paths = (grower.path(node) for node in nodes)
            if not self._extend(grower, request.mask_rows(rows, paths, state.vocab)):
                break
        state.rows = None
        return grower.finish()

    def sketch(self, requests: Sequence[Request], budgets: Sequence[int]) -> list[Draft | Sketch]:
        """See `Drafter.sketch`. A constraint is held against the first level alone."""
        self._proposed = list(requests)
        return [
            self._sketch(request, self._state_of(request), budget)
            for request, budget in zip(requests, budgets, strict=True)
        ]

    @torch.inference_mode()
    def _sketch(self, request: Request, state: _State, budget: int) -> Draft | Sketch:
        rows = self._read(request, state) if budget > 0 else None
        if rows is None:
            return Draft.chain([])
        head, kept = self.head, state.head
        vocab = self._vocab_on(rows.device, state)
        form = self._form(request, budget, vocab, rows.device)
        form.extend(request.mask_rows(rows, [[]], state.vocab))
        first = 0  # The number of the frontier's first place.
        while form.size:
            above = form.above
            if not isinstance(above, torch.Tensor):
                above = [first + place for place in above]
            first = kept.num_nodes
            form.extend(head.step(kept, above, form.tokens))
        state.rows = None
        sketch = form.finish()
        if vocab is None or sketch.logits is None or not head.spec.context_tokens:
            return replace(sketch, vocab=self._vocab)
        # Requests whose vocabularies differ are verified over the one that they have in common.
        width = head.spec.known_sizes.vocab_size
        whole = sketch.logits.new_full((len(sketch.logits), width), -torch.inf)
        return replace(sketch, logits=whole.index_copy(1, vocab, sketch.logits))

    def _vocab_on(self, device: torch.device, state: _State) -> torch.Tensor | None:
        """Return the token of each column, on a device."""
        context = state.head.context_tokens.ids
        if self.head.vocab is None or not context:
            return self.head.vocab
        shown = torch.tensor(list(context), dtype=torch.int64)
        return torch.cat((self.head.vocab, sent(shown, device)))

    def _form(
        self, request: Request, budget: int, vocab: torch.Tensor | None, device: torch.device
    ) -> Form:
        """Return what grows a draft on a device, as `_grower` does on the host."""
        own = as_params(self.params), request, vocab, device
        depth = min(self.num_tokens, budget)
        if self.max_nodes is not None:
            nodes, least = min(self.max_nodes, budget), self.min_path
            return Ranked(nodes, depth, self.max_children, *own, min_score=least)
        law = self.laws[0]
        if self._shape is None:
            return FixedForm(TokenTree(range(-1, depth)), law, *own, min_path=self.min_path)
        return FixedForm(level_by_level(self._cut_shape(budget).tree), law, *own)

    def _grower(self, request: Request, budget: int, vocab: Any | None) -> growers.Grower:
        own: dict[str, Any] = {"root": request.tokens[-1], "eos_ids": request.eos_ids}
        own |= {"params": self.params, "vocab": vocab}
        depth = min(self.num_tokens, budget)
        if self.max_nodes is not None:
            own |= {"max_children": self.max_children, "min_score": self.min_path}
            return growers.Heap(min(self.max_nodes, budget), max_depth=depth, **own)
        own |= {"seed": request.seed, "position": request.position}
        if self._shape is None:
            return growers.Chain(depth, greedy=self.params is None, min_path=self.min_path, **own)
        shape = self._cut_shape(budget)
        if self.law == "coupled":
            return growers.Coupled(shape, **own)
        return growers.Fixed(shape, self.law, **own)

    def _cut_shape(self, budget: int) -> TreeShape:
        """Return the fixed shape, cut to a budget."""
        shape: Any = self._shape
        budget = min(budget, shape.tree.num_nodes - 1)
        if budget not in self._cut_shapes:
            self._cut_shapes[budget] = shape.cut(budget, budget)
        return self._cut_shapes[budget]


def level_by_level(tree: TokenTree) -> TokenTree:
    """Return the same form with its nodes in the order in which growers fill it."""
    order = [0]
    for node in order:  # Grows while it is read.
        order += tree.children(node)
    places = {node: place for place, node in enumerate(order)}
    return TokenTree([-1, *(places[int(tree.parents[node])] for node in order[1:])])
