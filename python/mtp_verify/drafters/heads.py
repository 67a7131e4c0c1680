"""A draft head as drafter: it reads the target's hidden states and guesses what follows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
import torch

from mtp_verify._core import Draft, TokenTree, Verdict
from mtp_verify.drafters.base import as_draft_params, is_greedy, is_worth_drawing, shaping_of
from mtp_verify.drafters.growing import FixedForm, Ranked
from mtp_verify.drafters.states import StateDrafter
from mtp_verify.errors import ParamsError, RuleError, UnsupportedModelError
from mtp_verify.heads.base import ContextTokens
from mtp_verify.verifier import growers
from mtp_verify.verifier.intake import as_count, as_float, check_instance, check_type, shown
from mtp_verify.verifier.kernels import to_host
from mtp_verify.verifier.kernels.device.arena import sent
from mtp_verify.verifier.params import as_params
from mtp_verify.verifier.tree_shape import TreeShape
from mtp_verify.verifier.words import HeadLaw

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtp_verify.drafters.base import DraftParams, Request
    from mtp_verify.drafters.growing import Form
    from mtp_verify.drafters.sketch import Sketch
    from mtp_verify.heads.base import Head
    from mtp_verify.verifier.params import SamplingParams
    from mtp_verify.verifier.words import Law, Rule

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


class _Growth:
    """A draft that grows: which of the head's nodes the grower's are."""

    def __init__(self, request: Request, state: _State, grower: growers.Grower) -> None:
        self.request, self.state, self.grower = request, state, grower
        self._numbers = {0: 0}
        self.nodes = grower.frontier()

    def take(self) -> tuple[list[int], torch.Tensor]:
        """Return parents and tokens of the frontier's nodes, as the head takes them."""
        grower, state = self.grower, self.state
        above = [self._numbers[int(grower.parents[node])] for node in self.nodes]
        first, rows = state.head.num_nodes, cast("torch.Tensor", state.rows)
        self._numbers.update(zip(self.nodes, range(first, first + len(self.nodes)), strict=True))
        return above, torch.from_numpy(grower.tokens[self.nodes]).to(rows.device)

    def extend(self, rows: Any, extend: Callable[[growers.Grower, Any], bool]) -> None:
        """Grow by the rows of the frontier, if any, until `extend` says that the draft ends."""
        if not self.nodes:
            return
        paths = (self.grower.path(node) for node in self.nodes)
        shown = self.request.mask_rows(rows, paths, self.state.vocab)
        self.nodes = self.grower.frontier() if extend(self.grower, shown) else []


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
        params: how the head's rows are shaped before tokens are drawn from them. "target" takes
            each request's own, by which drafts are accepted best. It drafts greedily at temperature
            0 and, unless `law` is given, under the rules "coupled" and "target_only", which ask
            whether a token is the target's own. None drafts greedily.
        max_nodes: grow a best-first tree of that many nodes (EAGLE-2's way of growing), whatever
            `params` is: it shapes the rows that rank the nodes.
        max_children: of a node of the best-first tree.
        shape: fill this fixed shape instead.
        law: of the fixed shape: "swor", "iid", "chain", "top_plus_one", "deterministic" or
            "coupled"; None is "swor". For a request that is drafted greedily it is "deterministic".
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
        params: DraftParams = "target",
        max_nodes: int | None = None,
        max_children: int = 8,
        shape: TreeShape | None = None,
        law: HeadLaw | None = None,
        min_path: float = 0.0,
    ) -> None:
        super().__init__()
        calls = ("new_state", "read_batch", "step_batch")
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
        self.params = as_draft_params(params)
        self.max_nodes = max_nodes
        self.max_children = max_children
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
        # Of drafts for requests that are not drafted greedily.
        self.law: HeadLaw = law or ("deterministic" if is_greedy(self.params) else "swor")
        if shape is None:
            is_drawn = max_nodes is None and not is_greedy(self.params)
            self.law = "chain" if is_drawn else "deterministic"
        self._is_law_given = law is not None
        self.laws: tuple[Law, ...] = (self.law,)
        if self.params == "target":
            self.laws = tuple(dict.fromkeys(("deterministic", *self.laws)))

    def laws_for(self, params: SamplingParams, rule: Rule) -> tuple[Law, ...]:
        """See `Drafter.laws_for`."""
        return (self._law_for(params, rule),)

    def _law_for(self, params: SamplingParams, rule: Rule) -> HeadLaw:
        """Return the law of a request's drafts."""
        if self.params != "target":
            return self.law
        if params.is_greedy or not (self._is_law_given or is_worth_drawing(params, rule)):
            return "deterministic"
        return self.law

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

    def _draft(self, request: Request, state: _State, budget: int) -> Draft:
        return self._drafts([request], [state], [budget])[0]

    def propose(self, requests: Sequence[Request], budgets: Sequence[int]) -> list[Draft]:
        """See `Drafter.propose`. The drafts of all requests share the head's forwards."""
        self._proposed = list(requests)
        return self._drafts(requests, [self._state_of(request) for request in requests], budgets)

    def _read(
        self, requests: Sequence[Request], states: Sequence[_State], budgets: Sequence[int]
    ) -> list[int]:
        """Read what was committed; return which requests have a row after the root."""
        wanted = [index for index, budget in enumerate(budgets) if budget > 0]
        fresh = [index for index in wanted if states[index].pending]
        if fresh:
            read = [
                [torch.cat(layer) for layer in zip(*states[index].pending, strict=True)]
                for index in fresh
            ]
            tokens: list[Any] = []
            for index, hidden in zip(fresh, read, strict=True):
                own: Any = requests[index].tokens[-hidden[0].shape[0] :]
                if not self.head.spec.context_tokens:  # Else it looks them up on the host.
                    own = torch.tensor(own, device=hidden[0].device)
                tokens.append(own)
            rows = self.head.read_batch([states[index].head for index in fresh], read, tokens)
            for index, row in zip(fresh, rows, strict=True):
                state = states[index]
                state.rows = row
                state.pending.clear()
                state.update_vocab(self._vocab)
        return [index for index in wanted if states[index].rows is not None]

    @torch.inference_mode()
    def _drafts(
        self, requests: Sequence[Request], states: Sequence[_State], budgets: Sequence[int]
    ) -> list[Draft]:
        drafts = [Draft.chain([]) for _ in requests]
        grown = {
            index: _Growth(
                requests[index],
                states[index],
                self._grower(requests[index], budgets[index], states[index].vocab),
            )
            for index in self._read(requests, states, budgets)
        }
        for growth in grown.values():
            growth.extend(growth.state.rows, self._extend)
        while going := [growth for growth in grown.values() if growth.nodes]:
            parents, tokens = zip(*(growth.take() for growth in going), strict=True)
            heads = [growth.state.head for growth in going]
            for growth, rows in zip(
                going, self.head.step_batch(heads, parents, tokens), strict=True
            ):
                growth.extend(rows, self._extend)
        for index, growth in grown.items():
            growth.state.rows = None
            drafts[index] = growth.grower.finish()
        return drafts

    def sketch(self, requests: Sequence[Request], budgets: Sequence[int]) -> list[Draft | Sketch]:
        """See `Drafter.sketch`. A constraint is held against the first level alone."""
        self._proposed = list(requests)
        return self._sketches(requests, [self._state_of(request) for request in requests], budgets)

    @torch.inference_mode()
    def _sketches(
        self, requests: Sequence[Request], states: Sequence[_State], budgets: Sequence[int]
    ) -> list[Draft | Sketch]:
        drafts: list[Draft | Sketch] = [Draft.chain([]) for _ in requests]
        grown: list[tuple[int, Any, Form]] = []
        for index in self._read(requests, states, budgets):
            request, state = requests[index], states[index]
            rows: Any = state.rows
            vocab = self._vocab_on(rows.device, state)
            form = self._form(request, budgets[index], vocab, rows.device)
            form.extend(request.mask_rows(rows, [[]], state.vocab))
            grown.append((index, vocab, form))
        firsts = [0] * len(grown)  # The number of each frontier's first place.
        while going := [place for place, (_, _, form) in enumerate(grown) if form.size]:
            heads = [states[grown[place][0]].head for place in going]
            forms = [grown[place][2] for place in going]
            parents = [
                form.above
                if isinstance(form.above, torch.Tensor)
                else [firsts[place] + above for above in form.above]
                for place, form in zip(going, forms, strict=True)
            ]
            for place, head in zip(going, heads, strict=True):
                firsts[place] = head.num_nodes
            found = self.head.step_batch(heads, parents, [form.tokens for form in forms])
            for form, rows in zip(forms, found, strict=True):
                form.extend(rows)
        for index, vocab, form in grown:
            drafts[index] = self._whole(form.finish(), vocab)
            states[index].rows = None
        return drafts

    def _whole(self, sketch: Sketch, vocab: torch.Tensor | None) -> Sketch:
        """Bring a sketch's rows to the vocabulary that all requests have in common."""
        spec = self.head.spec
        if vocab is None or sketch.logits is None or not spec.context_tokens:
            return replace(sketch, vocab=self._vocab)
        # Requests whose vocabularies differ are verified over the one that they have in common.
        width = spec.known_sizes.vocab_size
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
        own = as_params(shaping_of(self.params, request)), request, vocab, device
        depth = min(self.num_tokens, budget)
        if self.max_nodes is not None:
            nodes, least = min(self.max_nodes, budget), self.min_path
            return Ranked(nodes, depth, self.max_children, *own, min_score=least)
        law = self._law_for(request.params, request.rule)
        if self._shape is None:
            return FixedForm(TokenTree(range(-1, depth)), law, *own, min_path=self.min_path)
        return FixedForm(level_by_level(self._cut_shape(budget).tree), law, *own)

    def _grower(self, request: Request, budget: int, vocab: Any | None) -> growers.Grower:
        own: dict[str, Any] = {"root": request.tokens[-1], "eos_ids": request.eos_ids}
        own |= {"params": shaping_of(self.params, request), "vocab": vocab}
        depth = min(self.num_tokens, budget)
        if self.max_nodes is not None:
            own |= {"max_children": self.max_children, "min_score": self.min_path}
            return growers.Heap(min(self.max_nodes, budget), max_depth=depth, **own)
        own |= {"seed": request.seed, "position": request.position}
        law = self._law_for(request.params, request.rule)
        if self._shape is None:
            is_greedy = law == "deterministic"
            return growers.Chain(depth, greedy=is_greedy, min_path=self.min_path, **own)
        shape = self._cut_shape(budget)
        if law == "coupled":
            return growers.Coupled(shape, **own)
        return growers.Fixed(shape, law, **own)

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
