"""A sequence: the running state of a request, from its start to its result."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtp_verify._core import Draft, TokenTree
from mtp_verify.decoder.constraints.base import without
from mtp_verify.decoder.drafted import WITHOUT_ROWS
from mtp_verify.decoder.generation import Generation, Stats
from mtp_verify.decoder.options import says_stop
from mtp_verify.decoder.planning import Plan
from mtp_verify.decoder.prompts import check_tokens
from mtp_verify.drafters.base import Request
from mtp_verify.drafters.sketch import Sketch, blank
from mtp_verify.errors import NumericsError, ParamsError
from mtp_verify.verifier.logprobs import TopLogprobs
from mtp_verify.verifier.processors import accept

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mtp_verify._core import Verdict
    from mtp_verify.decoder.constraints import Constraint
    from mtp_verify.decoder.options import Options
    from mtp_verify.decoder.prompts import Prompt
    from mtp_verify.decoder.runners import Output
    from mtp_verify.models.target import Target
    from mtp_verify.verifier.words import FinishReason

__all__ = ["EMPTY", "Sequence"]

# Plain decoding is verification of a draft that has no nodes but the root.
EMPTY = Draft.chain([])
_NO_PLAN = Plan(0)
# Decoders in different threads may share a drafter, which tells requests apart by their number.
_REQUEST_IDS = itertools.count()


@dataclass(eq=False, repr=False)
class Sequence:
    """The running state of a request."""

    request: Request  # what its drafter sees
    options: Options  # what was asked for
    text: torch.Tensor  # (T + max_new_tokens,) int64, the prompt as given first
    filled: int  # how much of `text` is there
    num_padding: int  # of the prompt
    max_total: int  # greatest length of `request.tokens`
    stop_ids: frozenset[int]
    # Greatest length at which the target still reads all tokens in the one way, beyond which in the
    # other; None if it has one way only.
    switch: int | None = None
    past: Any = None  # its cache, where the user gives it or gets it back
    plan: Plan = _NO_PLAN  # of the step under way
    draft: Draft = field(default_factory=lambda: EMPTY)  # of that step
    sketch: Sketch | None = None  # of which `draft` is the form, until the device has been read
    num_spare: int = 0  # places of that sketch that were run and held no node
    is_drafted: bool = False  # a step with this draft has begun and has no verdict yet
    # (N+1, ceil(V/32)) what the constraint, if there is one, allows after each node of the draft,
    # and the nodes after which it allows nothing.
    masks: NDArray[np.int32] | None = None
    dead_ends: frozenset[int] = frozenset()
    output: Output = field(init=False)  # of the target for the draft, until the step ends
    verdict: Verdict = field(init=False)  # of the draft, cut to what was emitted
    finish: FinishReason | None = None
    error: Exception | None = None
    stats: Stats = field(default_factory=Stats)
    logits: list[torch.Tensor] = field(default_factory=list)  # raw rows, where asked for
    logprobs: list[np.ndarray] = field(default_factory=list)
    top: list[TopLogprobs] = field(default_factory=list)

    @classmethod
    def start(
        cls, target: Target, prompt: Prompt, options: Options, index: int, past: Any = None
    ) -> Sequence:
        """Check a prompt, the one at `index` of the call, and return its sequence.

        `max_new_tokens` is cut, with a warning, to what the model's context leaves.

        Raises:
            ParamsError: a token outside the vocabulary, a prompt as long as the context, or a
                constraint made for another model.
        """
        tokens, params, constraint = prompt.tokens, options.params, options.constraint
        check_tokens(tokens, target.vocab_size, prompt.num_padding, index)
        max_total = _limit(len(tokens), options.max_new_tokens, target.max_length, index)
        text = torch.empty(prompt.num_padding + max_total, dtype=torch.int64)
        text[: len(prompt.ids)] = prompt.ids
        stop_ids = frozenset(options.eos_ids) | frozenset(params.stop_ids)
        matcher = None
        if constraint is not None:
            _check_constraint(constraint, target)
            matcher = constraint.start(tuple(tokens))
            stop_ids |= constraint.stop_ids
        if params.min_new_tokens:
            size = max(stop_ids, default=0) + 1 if target.vocab_size is None else target.vocab_size
            params = replace(params, stop_ids=sorted(t for t in stop_ids if 0 <= t < size))
        request = Request(
            id=next(_REQUEST_IDS),
            tokens=tokens,
            prompt_len=len(tokens),
            params=params,
            seed=options.seed,
            # Paths that end early would not have one length.
            eos_ids=frozenset() if options.rule == "gbv" else stop_ids,
            matcher=matcher,
            rule=options.rule,
        )
        return cls(
            request=request,
            options=options,
            text=text,
            filled=len(prompt.ids),
            num_padding=prompt.num_padding,
            max_total=max_total,
            stop_ids=stop_ids,
            switch=getattr(target, "switch_length", None),
            past=past,
            stats=Stats(lossless=options.lossy is None),
        )

    @property
    def budget(self) -> int:
        """Draft tokens that can be of use: the verifier's own token supplies the last one.

        None of them stands beyond the switch while the root does not: one forward reads all of its
        tokens in one way. The first root beyond is run by itself, with the text before it.
        """
        root, switch = self.request.position, self.switch
        useful = 0 if self.options.drafter is None else self.max_total - root - 2
        return useful if switch is None or root > switch else min(useful, max(0, switch - 1 - root))

    @property
    def depends_on_drafts(self) -> bool:
        """Whether the tokens, not their distribution, depend on what was drafted."""
        return self.options.rule != "coupled" and not self.request.params.is_greedy

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """Layers whose hidden states its drafter wants."""
        return () if self.options.drafter is None else self.options.drafter.hidden_layers

    @property
    def history(self) -> list[int] | None:
        """Tokens so far, where its rows depend on them."""
        needed = self.options.processors or self.request.params.needs_history
        return self.request.tokens if needed else None

    def free_output(self) -> None:
        """Release the target's rows and hidden states: they are large."""
        vars(self).pop("output", None)
        self.num_spare = 0

    def fail(self, error: Exception) -> None:
        """End it with an error; what it has emitted stays."""
        self.error, self.finish = error, "error"

    def take(self, draft: Draft | Sketch) -> None:
        """Take what its drafter has drafted."""
        self.sketch = draft if isinstance(draft, Sketch) else None
        self.draft = draft.blank if isinstance(draft, Sketch) else draft
        self.num_spare = 0

    def settle(self, draft: Draft) -> None:
        """Take what its sketch, which has been run, turned out to be."""
        num_run = self.draft.num_nodes
        self.take(draft)
        self.num_spare = num_run - draft.num_nodes
        self.output = self.output.cut(draft.num_nodes)

    @property
    def tree_run(self) -> Draft:
        """A draft of the form that was run: places that held no node hang from the root."""
        if not self.num_spare:
            return self.draft
        return blank(TokenTree([*self.draft.tree.parents.tolist(), *[0] * self.num_spare]))

    def constrain(self, *, is_run: bool = False) -> None:
        """Compute the masks of the draft, and leave out of it what need not be run.

        If it `is_run` already, nothing is left out: what is forbidden has the probability 0. Of a
        sketch there are no masks before that.

        A node after which nothing is allowed keeps its whole row, since rules read rows of nodes
        that they do not accept; what is emitted below it is cut off by `emit`.

        Raises:
            NumericsError: nothing may follow the root.
        """
        matcher = self.request.matcher
        if matcher is None or self.sketch is not None:
            return
        masks, allowed = matcher.masks(self.draft)
        if self.draft.law in WITHOUT_ROWS and not (is_run or allowed.all()):
            self.draft, masks = without(self.draft, ~allowed), masks[allowed]
        dead_ends = [node for node, mask in enumerate(masks) if not mask.any()]
        if 0 in dead_ends:
            emitted = self.request.tokens[self.request.prompt_len :]
            message = (
                f"the constraint allows no token after {emitted}: no string that obeys goes on "
                "from there"
            )
            raise NumericsError(message, slug="dead_end", node=0, sequence=self.request.id)
        masks[dead_ends] = -1
        self.masks, self.dead_ends = masks, frozenset(dead_ends)

    def emit(self, verdict: Verdict) -> None:
        """Append the tokens of the draft's verdict up to the first stop, and keep it cut there.

        A dead end of the constraint stops them, too; the next step finds it at its root.
        """
        request, draft = self.request, self.draft
        path, tokens = verdict.path.tolist(), verdict.tokens.tolist()
        rows = self.output.logits[[0, *path]].float() if self.options.output_logits else None
        ends = path if self.dead_ends else []
        alive = next((i + 1 for i, node in enumerate(ends) if node in self.dead_ends), len(tokens))
        left = self.max_total - len(request.tokens)
        count = min(alive, left)
        reason: FinishReason | None = "length" if count == left else None
        stop = next((i for i, token in enumerate(tokens[:count]) if token in self.stop_ids), None)
        if stop is not None:
            count, reason = stop + 1, "stop"
        self.text[self.filled : self.filled + count] = torch.tensor(tokens[:count])
        judged = self._judge(tokens[:count], rows)
        if judged is not None and (judged < count or reason is None):
            count, reason = judged, "criteria"
        if count < len(tokens):
            tokens, verdict = tokens[:count], verdict.cut(count)
        self.filled += count
        request.tokens.extend(tokens)
        if request.matcher is not None:
            request.matcher.commit(tokens)
        if rows is not None:
            self.logits.append(rows[:count])
        self.logprobs.append(verdict.logprobs)
        if verdict.top_logprobs is not None:
            self.top.append(verdict.top_logprobs)
        depth = int(draft.tree.depths.max())
        self.stats.record(depth, draft.num_nodes - 1, verdict.num_accepted, count)
        self.verdict, self.finish, self.is_drafted = verdict, reason, False

    def _judge(self, tokens: list[int], rows: torch.Tensor | None) -> int | None:
        """Return how many tokens there are when a criterion says stop; None if none does.

        As in plain decoding, a token is judged after the processors have been told of it.
        """
        criteria = self.options.criteria
        past = [row[None] for block in self.logits for row in block] if criteria else []
        for index in range(len(tokens)):
            accept(self.options.processors, tokens[index : index + 1])
            if criteria:
                ids = self.text[None, : self.filled + index + 1]
                seen = None if rows is None else (*past, *rows[: index + 1, None])
                if any(says_stop(criterion(ids, seen)) for criterion in criteria):
                    return index + 1
        return None

    def result(self) -> Generation:
        """Return what was generated."""
        request = self.request
        logprobs = np.concatenate(self.logprobs) if self.logprobs else np.empty(0, np.float32)
        logits = None
        if self.options.output_logits:
            logits = [torch.cat(self.logits) if self.logits else torch.empty(0, 0)]
        return Generation(
            sequences=self.text[None, : self.filled].clone(),
            tokens=[request.tokens[request.prompt_len :]],
            finish_reasons=[self.finish or "length"],
            logprobs=[logprobs],
            stats=self.stats,
            past_key_values=self.past,
            logits=logits,
            top_logprobs=[TopLogprobs.join(self.top)] if self.top else None,
            errors=[self.error],
        )


def _limit(length: int, max_new_tokens: int, most: int | None, index: int) -> int:
    """Return the most tokens of a prompt and its continuation."""
    total = length + max_new_tokens
    if most is None or total <= most:
        return total
    if length >= most:
        message = (
            f"input_ids[{index}]: found {length} tokens, wanted fewer than the model's context of "
            f"{most}; shorten the prompt"
        )
        raise ParamsError(message, slug="prompt_too_long", sequence=index)
    left = f"leaves {most - length} of the {max_new_tokens} new tokens asked for"
    warnings.warn(f"the model's context of {most} tokens {left}", stacklevel=6)
    return most


def _check_constraint(constraint: Constraint, target: Target) -> None:
    """Refuse a constraint that was made with another tokenizer, as far as that can be seen."""
    if target.vocab_size not in (None, constraint.vocab_size):
        message = (
            f"the constraint is over {constraint.vocab_size} tokens and the model's rows over "
            f"{target.vocab_size}; make it with the model's tokenizer and "
            f"vocab_size={target.vocab_size}"
        )
        raise ParamsError(message, slug="vocab_mismatch")
    if target.eos_ids and not constraint.stop_ids.intersection(target.eos_ids):
        message = (
            f"the constraint ends with {sorted(constraint.stop_ids)} and the model with "
            f"{sorted(target.eos_ids)}; make it with the model's tokenizer, or with the model's "
            "ids as stop_ids"
        )
        raise ParamsError(message, slug="eos_mismatch")
