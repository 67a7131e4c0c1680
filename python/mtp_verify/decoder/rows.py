"""A row: one sequence while it is decoded, how it is admitted, extended and ended."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtp_verify.decoder.arguments import check_tokens, says_stop
from mtp_verify.decoder.constraints.base import without
from mtp_verify.decoder.generation import Generation, Stats
from mtp_verify.drafters.base import Request
from mtp_verify.errors import DraftError, NumericsError, ParamsError, UnsupportedModelError
from mtp_verify.verifier.logprobs import TopLogprobs
from mtp_verify.verifier.processors import accept

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from mtp_verify._core import Draft, Verdict
    from mtp_verify.decoder.arguments import Prompt
    from mtp_verify.decoder.constraints import Constraint
    from mtp_verify.decoder.planning import Plan
    from mtp_verify.drafters.base import Drafter
    from mtp_verify.models.target import Target
    from mtp_verify.verifier.lossy import Lossy
    from mtp_verify.verifier.params import SamplingParams
    from mtp_verify.verifier.words import FinishReason, Rule

__all__ = ["Row", "admit", "check_draft"]

# Decoders in different threads may share a drafter, which tells requests apart by their number.
_REQUEST_IDS = itertools.count()
# Laws whose rules hold no token against a drafter's row.
_WITHOUT_ROWS = ("deterministic", "coupled", "unknown")


@dataclass(eq=False)
class Row:
    """Everything that belongs to one sequence while it is decoded.

    Attributes:
        request: what its drafter sees.
        drafter: None decodes plainly.
        rule: of verification.
        lossy: of `mv.lossy`, or None.
        sequence: (T + max_new_tokens,) int64, the prompt as given first.
        filled: how much of `sequence` is there.
        num_padding: of the prompt.
        max_total: greatest length of `request.tokens`.
        switch: greatest length at which the target still reads all tokens in the one way, beyond
            which in the other; None if it has one way only.
        criteria: called after each token.
        logits: the raw row behind each emitted token, or None if not asked for.
        stop_ids: tokens that end it.
        masks: (N+1, ceil(V/32)) int32, what the constraint allows after each node of the step's
            draft; None without a constraint.
        dead_ends: the nodes of the step's draft after which the constraint allows nothing.
        processors: functions over its rows.
        top_logprobs: how many of the most likely tokens to list behind each emitted one.
        unfinished: the plan and the draft of its step, until it has a verdict.
        finish: why it ended; None while it has not.
        error: what it failed with, if it did.
        past: its cache, where the user gets it back.
    """

    request: Request
    drafter: Drafter | None
    rule: Rule
    lossy: Lossy | None
    sequence: torch.Tensor
    filled: int
    num_padding: int
    max_total: int
    criteria: list[Callable[..., Any]]
    stop_ids: frozenset[int] = frozenset()
    switch: int | None = None
    logits: list[torch.Tensor] | None = None
    masks: NDArray[np.int32] | None = None
    dead_ends: frozenset[int] = frozenset()
    processors: list[Any] = field(default_factory=list)
    top_logprobs: int = 0
    top: list[TopLogprobs] = field(default_factory=list)
    stats: Stats = field(default_factory=Stats)
    logprobs: list[np.ndarray] = field(default_factory=list)
    unfinished: tuple[Plan, Draft] | None = None
    finish: FinishReason | None = None
    error: Exception | None = None
    past: Any = None

    @property
    def budget(self) -> int:
        """Draft tokens that can be of use: the verifier's own token supplies the last one.

        None of them stands beyond the switch while the root does not: one forward reads all of its
        tokens in one way. The first root beyond is run by itself, with the text before it.
        """
        if self.drafter is None:
            return 0
        root, switch = self.request.position, self.switch
        useful = self.max_total - root - 2
        if switch is None or root > switch:
            return useful
        return min(useful, max(0, switch - 1 - root))

    @property
    def depends_on_drafts(self) -> bool:
        """Whether the tokens, not their law, depend on what was drafted."""
        return self.rule != "coupled" and not self.request.params.is_greedy

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """Layers whose hidden states its drafter wants."""
        return () if self.drafter is None else self.drafter.hidden_layers

    def constrain(self, draft: Draft) -> Draft:
        """Compute the masks of a draft, and leave out of it what need not be run.

        A node after which nothing is allowed keeps its whole row: what the rule then emits below it
        is cut off by `emit`, so that it may be anything. It must not be an empty row, since rules
        read rows of nodes that they do not accept.

        Raises:
            NumericsError: nothing may follow the root.
        """
        matcher = self.request.matcher
        if matcher is None:
            return draft
        self.masks, allowed = matcher.masks(draft)
        if draft.law in _WITHOUT_ROWS and not allowed.all():
            draft, self.masks = without(draft, ~allowed), self.masks[allowed]
        dead_ends = [node for node, mask in enumerate(self.masks) if not mask.any()]
        if 0 in dead_ends:
            emitted = self.request.tokens[self.request.prompt_len :]
            msg = (
                f"the constraint allows no token after {emitted}: no string that obeys goes on "
                "from there"
            )
            raise NumericsError(msg, slug="dead_end", node=0, sequence=self.request.id)
        self.masks[dead_ends] = -1
        self.dead_ends = frozenset(dead_ends)
        return draft

    @property
    def history(self) -> list[int] | None:
        """Tokens so far, where its rows depend on them."""
        needed = self.processors or self.request.params.needs_history
        return self.request.tokens if needed else None

    def emit(self, verdict: Verdict, rows: torch.Tensor | None = None) -> Verdict:
        """Append the verdict's tokens up to the first stop, and return it cut there.

        Args:
            verdict: of the step's draft.
            rows: (n, V) raw, what each of its tokens comes from, where they are kept.

        A dead end of the constraint stops them, too; the next step finds it at its root, as plain
        decoding does.
        """
        request = self.request
        tokens: list[int] = verdict.tokens.tolist()
        path = verdict.path.tolist() if self.dead_ends else []
        alive = next((i + 1 for i, node in enumerate(path) if node in self.dead_ends), len(tokens))
        room = self.max_total - len(request.tokens)
        count = min(alive, room)
        reason: FinishReason | None = "length" if count == room else None
        if self.stop_ids:
            for index in range(count):
                if tokens[index] in self.stop_ids:
                    count, reason = index + 1, "stop"
                    break
        self.sequence[self.filled : self.filled + count] = torch.tensor(tokens[:count])
        past = [row[None] for block in self.logits or () for row in block] if self.criteria else []
        for index in range(count):
            # As plain decoding: the row was processed, then the token is judged.
            accept(self.processors, tokens[index : index + 1])
            if self.criteria:
                ids = self.sequence[None, : self.filled + index + 1]
                seen = None if rows is None else (*past, *rows[: index + 1, None])
                if any(says_stop(criterion(ids, seen)) for criterion in self.criteria):
                    if index + 1 < count or reason is None:
                        count, reason = index + 1, "criteria"
                    break
        if count < len(tokens):
            tokens, verdict = tokens[:count], verdict.cut(count)
        self.filled += count
        request.tokens.extend(tokens)
        if request.matcher is not None:
            request.matcher.commit(tokens)
        if self.logits is not None and rows is not None:
            self.logits.append(rows[:count])
        self.logprobs.append(verdict.logprobs)
        if verdict.top_logprobs is not None:
            self.top.append(verdict.top_logprobs)
        self.finish = reason
        return verdict

    def result(self) -> Generation:
        """Return what came of it."""
        request = self.request
        logprobs = np.concatenate(self.logprobs) if self.logprobs else np.empty(0, np.float32)
        logits = None
        if self.logits is not None:
            logits = [torch.cat(self.logits) if self.logits else torch.empty(0, 0)]
        return Generation(
            sequences=self.sequence[None, : self.filled].clone(),
            tokens=[request.tokens[request.prompt_len :]],
            finish_reasons=[self.finish or "length"],
            logprobs=[logprobs],
            stats=self.stats,
            past_key_values=self.past,
            logits=logits,
            top_logprobs=[TopLogprobs.join(self.top)] if self.top else None,
            errors=[self.error],
        )


def admit(
    target: Target,
    prompt: Prompt,
    index: int,
    *,
    drafter: Drafter | None,
    rule: Rule,
    lossy: Lossy | None,
    params: SamplingParams,
    constraint: Constraint | None,
    seed: int,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    criteria: list[Callable[..., Any]],
    output_logits: bool,
    processors: list[Any],
    top_logprobs: int,
) -> Row:
    """Check one sequence against the target, and set up its row.

    Args:
        target: what will run it.
        prompt: its tokens.
        index: its place in the call, for messages.
        drafter: its drafter.
        rule: of verification.
        lossy: of `mv.lossy`, or None.
        params: how its rows are shaped.
        constraint: what its tokens obey, or None.
        seed: of its noise.
        max_new_tokens: at least 1; cut, with a warning, to what the context has room for.
        eos_ids: tokens that end it.
        criteria: called after each token.
        output_logits: keep the raw row behind each token.
        processors: functions over its rows, its own where they keep state.
        top_logprobs: how many of the most likely tokens to list behind each one.

    Raises:
        ParamsError: a token outside the vocabulary, a prompt as long as the context, or a
            constraint made for another model.
    """
    tokens = prompt.tokens
    check_tokens(tokens, target.vocab_size, prompt.num_padding, index)
    max_total = len(tokens) + max_new_tokens
    if target.max_length is not None and max_total > target.max_length:
        if len(tokens) >= target.max_length:
            msg = (
                f"the prompt has {len(tokens)} tokens and the model's context is "
                f"{target.max_length}; shorten the prompt"
            )
            raise ParamsError(msg, slug="prompt_too_long", sequence=index)
        warnings.warn(
            f"the model's context of {target.max_length} tokens leaves room for "
            f"{target.max_length - len(tokens)} of the {max_new_tokens} new tokens asked for",
            stacklevel=4,
        )
        max_total = target.max_length
    sequence = torch.empty(prompt.num_padding + max_total, dtype=torch.int64)
    sequence[: len(prompt.ids)] = prompt.ids
    stop_ids = frozenset(eos_ids) | frozenset(params.stop_ids)
    matcher = None
    if constraint is not None:
        _check_constraint(constraint, target)
        matcher = constraint.start(tuple(tokens))
        stop_ids |= constraint.stop_ids
    if params.min_new_tokens:
        limit = max(stop_ids, default=0) + 1 if target.vocab_size is None else target.vocab_size
        params = replace(params, stop_ids=sorted(t for t in stop_ids if 0 <= t < limit))
    # Plain decoding keeps the target's law: nothing is drafted that could be accepted.
    lossy = None if drafter is None else lossy
    return Row(
        request=Request(
            id=next(_REQUEST_IDS),
            tokens=tokens,
            prompt_len=len(tokens),
            params=params,
            seed=seed,
            # Paths that end early would not have one length.
            eos_ids=frozenset() if rule == "gbv" else stop_ids,
            matcher=matcher,
        ),
        drafter=drafter,
        rule=rule,
        lossy=lossy,
        sequence=sequence,
        filled=len(prompt.ids),
        num_padding=prompt.num_padding,
        max_total=max_total,
        criteria=criteria,
        stop_ids=stop_ids,
        switch=getattr(target, "switch_length", None),
        logits=[] if output_logits else None,
        processors=processors,
        top_logprobs=top_logprobs,
        stats=Stats(lossless=lossy is None),
    )


def _check_constraint(constraint: Constraint, target: Target) -> None:
    """Refuse a constraint that was made with another tokenizer, as far as that can be seen.

    Raises:
        ParamsError: another number of tokens, or none of the tokens that end the model's output.
    """
    if target.vocab_size not in (None, constraint.vocab_size):
        msg = (
            f"the constraint is over {constraint.vocab_size} tokens and the model's rows over "
            f"{target.vocab_size}; make it with the model's tokenizer and "
            f"vocab_size={target.vocab_size}"
        )
        raise ParamsError(msg, slug="vocab_mismatch")
    if target.eos_ids and not constraint.stop_ids.intersection(target.eos_ids):
        msg = (
            f"the constraint ends with {sorted(constraint.stop_ids)} and the model with "
            f"{sorted(target.eos_ids)}; make it with the model's tokenizer, or with the model's "
            "ids as stop_ids"
        )
        raise ParamsError(msg, slug="eos_mismatch")


def check_draft(draft: Draft, row: Row, target: Target, budget: int) -> None:
    """Refuse what a row's drafter was not asked for, or what the target could not be run on.

    Raises:
        DraftError: more nodes than the budget, a law that the drafter does not say it has, or a
            token outside the target's vocabulary.
        UnsupportedModelError: a tree, and the target cannot attend along one.
    """
    num_drafted = draft.num_nodes - 1
    if not num_drafted:
        return
    name, number = type(row.drafter).__name__, row.request.id
    if num_drafted > budget:
        msg = (
            f"{name} drafted {num_drafted} nodes, and was asked for {budget} at most; a draft is "
            "kept within its budget before it is drawn, since one that is dropped for its size "
            "would bias what is emitted"
        )
        raise DraftError(msg, slug="draft_too_large", sequence=number)
    if not draft.tree.is_chain and target.tree_obstacle:
        msg = f"the draft is a tree, and {target.tree_obstacle}"
        raise UnsupportedModelError(msg, slug="no_tree_attention")
    if draft.law == "coupled" and row.rule == "auto" and row.lossy is None:
        msg = (
            f'{name} drafted by the law "coupled", and its `laws` does not name it; a request '
            'with such drafts is verified by rule="coupled" at every step'
        )
        raise DraftError(msg, slug="undeclared_law", sequence=number)
    tokens = draft.tokens[1:]
    if target.vocab_size is not None and int(tokens.max()) >= target.vocab_size:
        node = 1 + int(tokens.argmax())
        msg = (
            f"node {node}: token {int(tokens.max())} is outside the target's vocabulary of "
            f"{target.vocab_size}; the drafter must share it"
        )
        raise DraftError(msg, slug="token_out_of_vocab", node=node, sequence=number)
