"""The decoding loop: propose, forward, verify, commit.

One loop serves plain decoding (empty drafts), chains and trees, greedy and sampled. Whatever the
drafter proposes, the law of the output is the target's; with `rule="coupled"` the tokens themselves
do not depend on the drafter.
"""

from __future__ import annotations

import itertools
import operator
import warnings
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import mtp_verify as mv
from mtp_verify.arguments import (
    as_criteria,
    as_ids,
    as_prompt,
    as_seed,
    check_tokens,
    count_padding,
    says_stop,
)
from mtp_verify.drafters.base import Request
from mtp_verify.errors import DraftError, ParamsError, UnsupportedModelError
from mtp_verify.generation import Generation, Stats
from mtp_verify.params import SamplingParams
from mtp_verify.target import as_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mtp_verify.drafters.base import Drafter
    from mtp_verify.target import Target, TargetCache

__all__ = ["Decoder", "Generation", "Stats"]

# Decoders in different threads may share a drafter, which tells requests apart by their number.
_REQUEST_IDS = itertools.count()


@dataclass(eq=False)
class _Row:
    """Everything that belongs to one sequence while it is decoded."""

    request: Request
    cache: TargetCache
    sequence: torch.Tensor  # (1, T + max_new_tokens), the prompt as given first
    filled: int
    max_total: int  # of `request.tokens`
    rule: str
    criteria: list[Callable[..., Any]]
    stats: Stats = field(default_factory=Stats)
    logprobs: list[np.ndarray] = field(default_factory=list)
    logits: list[torch.Tensor] | None = None
    finish: str | None = None


class Decoder:
    """Generates with a target model, sped up by a drafter without changing the output's law.

    Args:
        model: a transformers causal language model in evaluation mode, or a `Target`.
        drafter: where guesses come from; None decodes plainly.
        params: how rows are shaped; None is `SamplingParams()`, that is, temperature 1.
        rule: of `mv.rules()`. `"auto"` takes the best legal one for each draft; `"coupled"` makes
            the tokens a function of model, prompt and seed alone, equal with and without a drafter
            (to rounding: forwards of different widths may round a near-tie differently, in bfloat16
            often, in float32 rarely).
        lossy: of `mv.lossy`: gives up the target's law for more accepted tokens; the statistics
            then say `lossless=False`.

    Raises:
        RuleError: `lossy` with another rule than "auto", or at temperature 0.
        UnsupportedModelError: the model cannot decode speculatively, or cannot attend along the
            trees that the drafter makes.

    Example:
        >>> decoder = Decoder(model, mv.drafters.NGram())  # doctest: +SKIP
        >>> decoder.generate(input_ids, max_new_tokens=64, seed=1).tokens  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        drafter: Drafter | None = None,
        params: SamplingParams | None = None,
        rule: str = "auto",
        *,
        lossy: mv.lossy.Lossy | None = None,
    ) -> None:
        self.target: Target = as_target(model)
        self.drafter = drafter
        self.params = SamplingParams() if params is None else params
        self.rule = rule
        self.lossy = lossy
        if getattr(drafter, "makes_trees", False) and self.target.tree_obstacle:
            msg = f"{type(drafter).__name__} drafts trees, and {self.target.tree_obstacle}"
            raise UnsupportedModelError(msg, slug="no_tree_attention")
        check_vocabulary = getattr(drafter, "check_vocabulary", None)
        if check_vocabulary is not None:
            check_vocabulary(self.target.vocab_size)
        # Plain decoding is verification of a draft that has no nodes but the root.
        self._empty = mv.Draft(mv.TokenTree([-1]), [-1])
        if lossy is not None:
            # What cannot be combined is refused before anything runs.
            row = np.zeros((1, 2), np.float32)
            mv.verify(self._empty, row, self.params, rule=rule, seed=0, position=0, lossy=lossy)

    def generate(
        self,
        input_ids: Any,
        attention_mask: Any | None = None,
        *,
        max_new_tokens: int,
        seed: int | Sequence[int] | None = None,
        streamer: Any | None = None,
        speculate: bool = True,
        eos_token_id: int | Iterable[int] | None = None,
        stopping_criteria: Callable[..., Any] | Iterable[Callable[..., Any]] | None = None,
        past_key_values: Any | None = None,
        output_logits: bool = False,
    ) -> Generation:
        """Generate until an EOS token, a stopping criterion, `max_new_tokens` or the context's end.

        Args:
            input_ids: (1, T) or (T,) int64 tensor or array, or a list of token ids, or a list of
                one such list. Batches are not supported yet.
            attention_mask: (1, T), zeros on the left mark padding.
            max_new_tokens: at least 1.
            seed: of all noise; None takes one draw from torch's global generator. An int s gives
                row r `mv.derive_seed(s, r)`; a sequence gives one seed per row.
            streamer: `put` is called with the prompt, then with each step's tokens; `end` once.
            speculate: False decodes plainly, by the same rule and with the same noise.
            eos_token_id: one or several ids; None takes the model's own, `()` none.
            stopping_criteria: callables of (ids (1, n), None), evaluated after each emitted token
                in order; the first that says yes ends the sequence there.
            past_key_values: a dynamic cache that holds the first tokens of the prompt, changed in
                place.
            output_logits: keep the raw row behind each emitted token.

        Returns:
            The generation; `past_key_values` holds all of its tokens but the last.

        Raises:
            ParamsError: arguments that cannot be right (named); nothing has been run.
            UnsupportedModelError: the cache cannot be rolled back.
            DraftError: a draft deeper than asked for, or with tokens out of the vocabulary.
            NumericsError: the model's rows hold NaN or +inf.
        """
        row, prompt, num_padding = self._admit(
            input_ids,
            attention_mask,
            max_new_tokens=max_new_tokens,
            seed=seed,
            eos_token_id=eos_token_id,
            stopping_criteria=stopping_criteria,
            past_key_values=past_key_values,
            output_logits=output_logits,
        )
        start = perf_counter()
        past = None
        try:
            if streamer is not None:
                streamer.put(prompt)
            with torch.inference_mode():
                for emitted in self._steps(row, self.drafter if speculate else None):
                    if streamer is not None:
                        streamer.put(torch.tensor(emitted))
        finally:
            past = row.cache.finish(num_padding)
            if streamer is not None:
                streamer.end()
        row.stats.total_seconds = perf_counter() - start
        request = row.request
        return Generation(
            sequences=row.sequence[:, : row.filled].clone(),
            tokens=[request.tokens[request.prompt_len :]],
            finish_reasons=[row.finish or "length"],
            logprobs=[np.concatenate(row.logprobs)],
            stats=row.stats,
            past_key_values=past,
            logits=None if row.logits is None else [torch.cat(row.logits)],
        )

    def _steps(self, row: _Row, drafter: Drafter | None) -> Iterator[list[int]]:
        """Decode one row, yielding the tokens of each step."""
        request, cache, stats, seconds = row.request, row.cache, row.stats, row.stats.seconds
        params, seed, rule = request.params, request.seed, row.rule
        # Plain decoding keeps the target's law: nothing is drafted that could be accepted.
        lossy = None if drafter is None else self.lossy
        stats.lossless = lossy is None
        observe = getattr(drafter, "observe", None)
        try:
            if drafter is not None:
                drafter.start(request)
            while row.finish is None:
                began = perf_counter()
                position = request.position
                draft = self._empty
                if drafter is not None:
                    # The verifier's own token supplies the last one, so the draft may be one
                    # shorter.
                    budget = row.max_total - position - 2
                    draft = drafter.propose([request], [budget])[0]
                drafted = perf_counter()
                logits, depth = self._forward(row, draft)
                forwarded = perf_counter()
                if observe is not None:
                    observe([request], [draft], [logits])
                verdict = mv.verify(
                    draft, logits, params, rule=rule, seed=seed, position=position, lossy=lossy
                )
                emitted, verdict = self._emit(row, verdict)
                verified = perf_counter()
                cache.commit(mv.commit_plan(draft.tree, verdict.path, position))
                if drafter is not None:
                    drafter.commit([verdict], None)
                if row.logits is not None:
                    nodes = [0, *verdict.path.tolist()]
                    row.logits.append(logits[nodes].float())
                stats.record(depth, draft.num_nodes - 1, verdict.num_accepted, len(emitted))
                seconds["draft"] += drafted - began
                seconds["target"] += forwarded - drafted
                seconds["verify"] += verified - forwarded
                seconds["commit"] += perf_counter() - verified
                yield emitted
        except Exception:
            # A user's cache is left with tokens of the sequence alone, not with a draft's.
            cache.crop(min(cache.length, request.position))
            raise
        finally:
            if drafter is not None:
                drafter.release(request)

    def _forward(self, row: _Row, draft: mv.Draft) -> tuple[torch.Tensor, int]:
        """Run the target over the draft and what is not cached; return a row per node, depth."""
        target, cache, tokens = self.target, row.cache, row.request.tokens
        start = cache.length
        pending = tokens[start:]
        num_nodes = draft.num_nodes
        positions = mask = None
        depth = 0
        if num_nodes > 1:
            nodes = draft.tokens[1:].tolist()
            depth = self._check_draft(row, draft, nodes)
            if depth != num_nodes - 1:
                if len(pending) > 1:
                    # The prompt is causal; only the tree itself needs a mask.
                    self._run(pending[:-1], cache, None, None, 1, row)
                    pending = pending[-1:]
                depths = torch.from_numpy(np.asarray(draft.tree.depths)).to(target.device)
                positions = (row.request.position + depths)[None]
                mask = torch.from_numpy(np.asarray(draft.tree.mask()))
            pending = pending + nodes
        logits = self._run(pending, cache, positions, mask, num_nodes, row)
        # The verifier runs on the host; one copy of N+1 rows, none on the CPU.
        return logits.cpu(), depth

    def _run(
        self,
        tokens: list[int],
        cache: TargetCache,
        positions: torch.Tensor | None,
        mask: torch.Tensor | None,
        num_logits: int,
        row: _Row,
    ) -> torch.Tensor:
        target = self.target
        row.stats.forwards += 1
        logits, _ = target.forward(
            torch.tensor([tokens], device=target.device),
            positions,
            mask,
            cache,
            num_logits=num_logits,
        )
        return logits

    def _check_draft(self, row: _Row, draft: mv.Draft, nodes: list[int]) -> int:
        """Return the draft's depth; refuse what the model could not be run on."""
        num_nodes = draft.num_nodes
        depth = int(draft.tree.depths[-1])
        if depth != num_nodes - 1:
            depth = int(np.max(draft.tree.depths))
            if self.target.tree_obstacle:
                msg = f"the draft is a tree, and {self.target.tree_obstacle}"
                raise UnsupportedModelError(msg, slug="no_tree_attention")
        budget = row.max_total - row.request.position - 2
        if depth > budget:
            msg = f"the draft has depth {depth}, and {budget} was asked for"
            raise DraftError(msg, slug="draft_too_deep", sequence=row.request.id)
        vocab_size = self.target.vocab_size
        if vocab_size is not None and max(nodes) >= vocab_size:
            node = 1 + nodes.index(max(nodes))
            msg = (
                f"node {node}: token {max(nodes)} is outside the target's vocabulary of "
                f"{vocab_size}; the drafter must share it"
            )
            raise DraftError(msg, slug="token_out_of_vocab", node=node, sequence=row.request.id)
        return depth

    def _emit(self, row: _Row, verdict: mv.Verdict) -> tuple[list[int], mv.Verdict]:
        """Append the verdict's tokens up to the first stop, and cut the verdict there."""
        request = row.request
        tokens: list[int] = verdict.tokens.tolist()
        room = row.max_total - len(request.tokens)
        count = min(len(tokens), room)
        reason = "length" if count == room else None
        if request.eos_ids:
            for index in range(count):
                if tokens[index] in request.eos_ids:
                    count, reason = index + 1, "stop"
                    break
        row.sequence[0, row.filled : row.filled + count] = torch.tensor(tokens[:count])
        if row.criteria:
            for index in range(count):
                ids = row.sequence[:, : row.filled + index + 1]
                if any(says_stop(criterion(ids, None)) for criterion in row.criteria):
                    if index + 1 < count or reason is None:
                        count, reason = index + 1, "criteria"
                    break
        if count < len(tokens):
            tokens, verdict = tokens[:count], verdict.cut(count)
        row.filled += count
        request.tokens.extend(tokens)
        row.logprobs.append(verdict.logprobs)
        row.finish = reason
        return tokens, verdict

    def _admit(
        self,
        input_ids: Any,
        attention_mask: Any | None,
        *,
        max_new_tokens: int,
        seed: int | Sequence[int] | None,
        eos_token_id: int | Iterable[int] | None,
        stopping_criteria: Callable[..., Any] | Iterable[Callable[..., Any]] | None,
        past_key_values: Any | None,
        output_logits: bool,
    ) -> tuple[_Row, torch.Tensor, int]:
        """Check everything that can be checked before the first forward, and set up the row."""
        target = self.target
        prompt = as_prompt(input_ids)
        num_padding = count_padding(attention_mask, prompt.shape[1])
        tokens = prompt[0, num_padding:].tolist()
        check_tokens(tokens, target.vocab_size, num_padding)
        try:
            max_new_tokens = operator.index(max_new_tokens)
        except TypeError:
            max_new_tokens = 0
        if max_new_tokens < 1:
            msg = "max_new_tokens must be an integer of at least 1"
            raise ParamsError(msg, slug="bad_max_new_tokens")
        max_total = len(tokens) + max_new_tokens
        if target.max_length is not None and max_total > target.max_length:
            if len(tokens) >= target.max_length:
                msg = (
                    f"the prompt has {len(tokens)} tokens and the model's context is "
                    f"{target.max_length}; shorten the prompt"
                )
                raise ParamsError(msg, slug="prompt_too_long", sequence=0)
            warnings.warn(
                f"the model's context of {target.max_length} tokens leaves room for "
                f"{target.max_length - len(tokens)} of the {max_new_tokens} new tokens asked for",
                stacklevel=3,
            )
            max_total = target.max_length
        cache = target.new_cache(past_key_values)
        if cache.length and (num_padding or cache.length >= len(tokens)):
            length = cache.length
            cache.finish()
            msg = (
                f"past_key_values holds {length} entries, and the prompt has {len(tokens)} tokens; "
                "it may hold all of the prompt but its last token, and no padding"
            )
            raise ParamsError(msg, slug="bad_past", sequence=0)
        eos_ids = target.eos_ids if eos_token_id is None else as_ids(eos_token_id)
        request = Request(
            id=next(_REQUEST_IDS),
            tokens=tokens,
            prompt_len=len(tokens),
            params=self.params,
            seed=as_seed(seed),
            eos_ids=frozenset(eos_ids),
        )
        sequence = torch.empty((1, num_padding + max_total), dtype=torch.int64)
        sequence[0, : prompt.shape[1]] = prompt[0]
        row = _Row(
            request=request,
            cache=cache,
            sequence=sequence,
            filled=prompt.shape[1],
            max_total=max_total,
            rule=self.rule,
            criteria=as_criteria(stopping_criteria),
            logits=[] if output_logits else None,
        )
        return row, prompt, num_padding
