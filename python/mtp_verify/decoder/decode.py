"""Decoding: whole generations, or requests that join and leave a running batch.

One loop (`mtp_verify.decoder`) serves plain decoding (empty drafts), chains and trees, greedy and
sampled, one request or many. Whatever the drafters propose, the law of each output is the
target's; with `rule="coupled"` the tokens themselves do not depend on the drafter.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from mtp_verify.caches.settings import Paged
from mtp_verify.decoder.arguments import (
    as_criteria,
    as_ids,
    as_prompts,
    as_seeds,
    criteria_of_rows,
    per_row,
    processors_of_rows,
)
from mtp_verify.decoder.constraints import Constraint
from mtp_verify.decoder.generation import Generation, Stats
from mtp_verify.decoder.planning import MeasuredCosts, Planner
from mtp_verify.decoder.rows import Row, admit
from mtp_verify.decoder.rules import settle
from mtp_verify.decoder.runners import Each, Together
from mtp_verify.decoder.session import Session
from mtp_verify.drafters.base import check_drafter
from mtp_verify.errors import CacheError, ParamsError, UnsupportedModelError
from mtp_verify.models.target import BatchTarget, as_target
from mtp_verify.verifier.cleanup import at_end
from mtp_verify.verifier.intake import as_count, check_instance, check_type, check_word, shown
from mtp_verify.verifier.lossy import Lossy
from mtp_verify.verifier.params import SamplingParams, as_params
from mtp_verify.verifier.words import Batching

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mtp_verify._core import BlockTable
    from mtp_verify.caches.paged import PagePool
    from mtp_verify.decoder.runners import Runner
    from mtp_verify.drafters.base import Drafter
    from mtp_verify.models.target import Target
    from mtp_verify.verifier import lossy
    from mtp_verify.verifier.words import Rule

__all__ = ["Decoder", "Generation", "Paged", "Stats"]

_MOST_TOKENS = (1 << 63) - 1
_MOST_COPIES = 1 << 16  # Of one prompt: more is a mistake.
_GREEDY = SamplingParams(temperature=0.0)
# Says "as the decoder" where None means something else: no drafter.
_OWN: Any = object()


class Decoder:
    """Generates with a target model, sped up by a drafter without changing the output's law.

    `generate` runs one sequence or a batch to its end. `submit`, `step` and `results` let requests
    join and leave at any step, each with its own parameters, seed, stops and drafter.

    Args:
        model: a transformers causal language model in evaluation mode, or a `Target`.
        drafter: where guesses come from; None decodes plainly.
        params: how rows are shaped; None is `SamplingParams()`, that is, temperature 1.
        rule: of `mv.rules()`. `"auto"` takes the best legal one for each draft, and `"coupled"` at
            every step where the drafter may hand out coupled drafts. `"coupled"` makes the tokens a
            function of model, prompt and seed alone, equal with and without a drafter (to
            rounding: forwards of different widths may round a near-tie differently, in bfloat16
            often, in float32 rarely, and not at all for chains in bfloat16 once the model is given
            to `mtp_verify.models.cpu.fused.fuse`, on CPUs that docs/forwards.md names).
        batching: how many requests are run. `"each"` runs every one by itself: the same bits as
            alone, no gain from batching. `"together"` runs them in one forward: the law of each is
            the target's, and its tokens are those that it gets alone but for near-ties that kernels
            round differently. `"auto"` takes `"together"` where the model can.
        max_batch: most requests in one forward; more wait for their turn.
        cache: None gives every sequence room as it grows. `"paged"`, or a `Paged` with a pool of
            one's own size, keeps all requests in one pool of blocks: equal beginnings share theirs,
            and where the pool is full the youngest request waits and goes on later.
        lossy: of `mv.lossy`: gives up the target's law for more accepted tokens; the statistics
            then say `lossless=False`.
        planner: chooses the size of drafts from what they cost and what they have earned, down to
            none. "auto" measures what this model's forward costs at the first use (seconds; kept on
            disk); or a `mv.Planner` of your own. None: drafts are as large as the drafter makes
            them, and sampled output repeats for a seed whatever the machine.

    Raises:
        RuleError: a rule that is not lossless for what the drafter drafts; `lossy` with another
            rule than "auto", or at temperature 0.
        UnsupportedModelError: the model cannot decode speculatively, cannot attend along the trees
            that the drafter makes, or cannot run requests together or paged when asked to.

    Example:
        >>> decoder = Decoder(model, mv.drafters.NGram())  # doctest: +SKIP
        >>> decoder.generate(input_ids, max_new_tokens=64, seed=1).tokens  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        drafter: Drafter | None = None,
        params: SamplingParams | None = None,
        rule: Rule = "auto",
        *,
        batching: Batching = "auto",
        max_batch: int = 32,
        cache: Literal["paged"] | Paged | None = None,
        lossy: lossy.Lossy | None = None,
        planner: Planner | Literal["auto"] | None = None,
    ) -> None:
        self.target: Target = as_target(model)
        self.drafter = drafter
        self.params = as_params(params)
        check_type("rule", rule, str)
        self.rule = rule
        self._check_drafter(drafter)
        check_word("batching", batching, get_args(Batching))
        if not (cache is None or isinstance(cache, Paged) or shown(cache) == "'paged'"):
            msg = f'cache: found {shown(cache)}, wanted None, "paged" or a Paged'
            raise ParamsError(msg, slug="param_out_of_range")
        if cache and batching == "each":
            msg = 'batching="each" gives every request a cache of its own; leave out cache'
            raise ParamsError(msg, slug="bad_batching")
        obstacle = self._find_batch_obstacle()
        if (batching == "together" or cache) and obstacle:
            msg = f"requests cannot share a forward: {obstacle}"
            raise UnsupportedModelError(msg, slug="no_batches")
        self._together = batching != "each" and obstacle is None
        self._max_batch = as_count("max_batch", max_batch)
        self._pool: PagePool | None = None
        if cache:
            target: Any = self.target
            self._pool = target.new_pool(cache if isinstance(cache, Paged) else Paged())
        if isinstance(planner, str):
            check_word("planner", planner, ("auto",))
            planner = Planner(MeasuredCosts(self.target))
        elif planner is not None:
            check_type("planner", planner, Planner)
        if lossy is not None:
            check_type("lossy", lossy, Lossy)
        self.planner = planner
        self.lossy = lossy
        # What cannot be combined is refused before anything runs; temperatures may come later.
        settle(rule, drafter, _GREEDY if rule == "greedy" else self.params, lossy)
        self._session: Session | None = None
        self._finished: dict[int, Generation] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What can be used elsewhere; a copy begins without requests.

        Raises:
            TypeError: requests are in flight, or share a pool of blocks.
        """
        if self.num_unfinished or self._pool is not None:
            reason = "its pool of blocks lives here"
            if self.num_unfinished:
                reason = f"{self.num_unfinished} requests are in flight; run them to their end"
            msg = f"Decoder: cannot be pickled or copied: {reason}"
            raise TypeError(msg)
        return {**self.__dict__, "_session": None, "_finished": {}}

    def __repr__(self) -> str:
        """The settings, without the model."""
        model = type(getattr(self.target, "model", self.target)).__name__
        settings = f"drafter={self.drafter!r}, params={self.params!r}, rule={self.rule!r}"
        return f"Decoder({model}, {settings})"

    def generate(
        self,
        input_ids: Any,
        attention_mask: Any | None = None,
        *,
        max_new_tokens: int,
        seed: int | Sequence[int] | None = None,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        constraint: Constraint | Sequence[Constraint | None] | None = None,
        streamer: Any | None = None,
        speculate: bool = True,
        eos_token_id: int | Iterable[int] | None = None,
        pad_token_id: int | None = None,
        stopping_criteria: Callable[..., Any] | Iterable[Callable[..., Any]] | None = None,
        past_key_values: Any | None = None,
        output_logits: bool = False,
        num_return_sequences: int = 1,
        processors: Sequence[Any] = (),
        top_logprobs: int = 0,
    ) -> Generation:
        """Generate until an EOS token, a stopping criterion, `max_new_tokens` or the context's end.

        Args:
            input_ids: (B, T) or (T,) integer tensor or array, a list of token ids, or a list of B
                such rows of any lengths.
            attention_mask: as `input_ids`; zeros on the left mark padding.
            max_new_tokens: at least 1.
            seed: of all noise; None takes one draw from torch's global generator. An int s gives
                row r `mv.derive_seed(s, r)`; a sequence gives one seed per row. Equal ones draw
                with the same numbers.
            params: instead of the decoder's own; one for all rows, or one per row.
            constraint: of `mv.constraints`: a grammar that the output obeys; one for all rows, or
                one (or None) per row.
            streamer: `put` is called with the prompt, then with each step's tokens; `end` once. For
                a single sequence.
            speculate: False decodes plainly, by the same rule and with the same noise.
            eos_token_id: one or several ids; None takes the model's own, `()` none. The params'
                `stop_ids` end a sequence too.
            pad_token_id: fills `sequences` up where rows differ in length; None takes the first
                EOS id, or 0.
            stopping_criteria: callables of (ids (1, n), rows), evaluated per row after each emitted
                token in order; the first that says yes ends the row there. `rows` is None, or with
                `output_logits` a tuple of the raw rows (1, V) behind the emitted tokens. The same
                for all rows, or one list per row.
            past_key_values: a cache that holds the first tokens of the prompt, changed in place.
                For a single sequence.
            output_logits: keep the raw row behind each emitted token.
            num_return_sequences: how often each prompt is continued; the rows of one prompt stand
                side by side. Requests that share a forward run it once: its entries are copied, or
                shared by a fork where the cache is paged.
            processors: functions over rows, as `mv.verify` takes them, called with the sequence's
                own tokens; the same for all rows, or one list per row. Those that keep state are
                forked for each row, and told what was emitted.
            top_logprobs: how many of the most likely tokens to list behind each emitted one.

        Returns:
            The generation, one entry per row; `past_key_values` (None for a batch) holds all of its
            tokens but the last.

        Raises:
            ParamsError: arguments that cannot be right (named); nothing has been run.
            RuleError: the rule cannot verify what is drafted, or not at this temperature.
            UnsupportedModelError: the cache cannot be rolled back.
            DraftError: a draft larger than asked for, or with tokens out of the vocabulary.
            NumericsError: the model's rows hold NaN or +inf, or the constraint has come to a dead
                end; names the tokens before it.
        """
        copies = as_count("num_return_sequences", num_return_sequences, most=_MOST_COPIES)
        if pad_token_id is not None:
            # Any number of a tensor: -100 marks what a loss leaves out.
            pad_token_id = as_count("pad_token_id", pad_token_id, -(2**63), 2**63 - 1)
        prompts = [p for p in as_prompts(input_ids, attention_mask) for _ in range(copies)]
        count = len(prompts)
        if count > 1 and (streamer is not None or past_key_values is not None):
            name = "streamer" if streamer is not None else "past_key_values"
            msg = f"{name} serves a single sequence, and {count} are asked for"
            raise ParamsError(msg, slug=f"bad_{'past' if streamer is None else 'streamer'}")
        if streamer is not None:
            check_instance("streamer", streamer, ("put", "end"), "a streamer")
        limit = as_count("max_new_tokens", max_new_tokens, most=_MOST_TOKENS)
        shaping = per_row(
            self.params if params is None else params, SamplingParams, count, "params"
        )
        constraints = per_row(constraint, Constraint | None, count, "constraint")
        eos_ids = self.target.eos_ids if eos_token_id is None else as_ids(eos_token_id)
        seeds = as_seeds(seed, count)
        functions = processors_of_rows(processors, count)
        criteria = criteria_of_rows(stopping_criteria, count)
        rows = [
            admit(
                self.target,
                prompt,
                index,
                drafter=self.drafter if speculate else None,
                rule=settle(self.rule, self.drafter, shaping[index], self.lossy),
                lossy=self.lossy,
                params=shaping[index],
                constraint=constraints[index],
                seed=seeds[index],
                max_new_tokens=limit,
                eos_ids=eos_ids,
                criteria=criteria[index],
                output_logits=output_logits,
                processors=functions[index],
                top_logprobs=top_logprobs,
            )
            for index, prompt in enumerate(prompts)
        ]
        self._refuse_equal_seeds(rows)
        session = self._new_session(count)
        with ExitStack() as ends:
            if streamer is not None:
                ends.enter_context(at_end(streamer.end))
            ends.enter_context(at_end(session.close))
            for row in rows:
                session.add(row, past_key_values)
            if streamer is not None:
                streamer.put(prompts[0].ids[None])
            while len(session):
                for row, emitted in session.step():
                    if row.error is not None:
                        raise row.error
                    if streamer is not None:
                        streamer.put(torch.tensor(emitted))
        if count == 1:
            return rows[0].result()
        if pad_token_id is None:
            pad_token_id = next(iter(eos_ids), 0)
        return Generation.merge([row.result() for row in rows], prompts, pad_token_id)

    def submit(
        self,
        input_ids: Any,
        *,
        max_new_tokens: int,
        seed: int | None = None,
        params: SamplingParams | None = None,
        constraint: Constraint | None = None,
        drafter: Drafter | None = _OWN,
        eos_token_id: int | Iterable[int] | None = None,
        stopping_criteria: Callable[..., Any] | Iterable[Callable[..., Any]] | None = None,
        output_logits: bool = False,
        processors: Sequence[Any] = (),
        top_logprobs: int = 0,
    ) -> int:
        """Hand in one request; it joins the batch at the next step that has room.

        Args:
            input_ids: (T,) or (1, T) integers, without padding.
            max_new_tokens: as `generate`.
            seed: as `generate`.
            params: as `generate`.
            constraint: as `generate`.
            drafter: instead of the decoder's own; None decodes plainly.
            eos_token_id: as `generate`.
            stopping_criteria: as `generate`.
            output_logits: as `generate`.
            processors: as `generate`.
            top_logprobs: as `generate`.

        Returns:
            The request's number, for `step`, `results` and `cancel`.

        Raises:
            ParamsError, RuleError: arguments that cannot be right; the batch goes on as if it had
                not been.
        """
        prompts = as_prompts(input_ids, None)
        if len(prompts) != 1:
            msg = f"submit takes one sequence, and input_ids holds {len(prompts)}"
            raise ParamsError(msg, slug="bad_input_ids")
        if drafter is _OWN:
            drafter = self.drafter
        else:
            self._check_drafter(drafter)
        shaping = self.params if params is None else as_params(params)
        row = admit(
            self.target,
            prompts[0],
            0,
            drafter=drafter,
            rule=settle(self.rule, drafter, shaping, self.lossy),
            lossy=self.lossy,
            params=shaping,
            constraint=per_row(constraint, Constraint | None, 1, "constraint")[0],
            seed=as_seeds(seed, 1)[0],
            max_new_tokens=as_count("max_new_tokens", max_new_tokens, most=_MOST_TOKENS),
            eos_ids=self.target.eos_ids if eos_token_id is None else as_ids(eos_token_id),
            criteria=as_criteria(stopping_criteria),
            output_logits=output_logits,
            processors=processors_of_rows(processors, 1)[0],
            top_logprobs=top_logprobs,
        )
        self._refuse_equal_seeds([row])
        if self._session is None:
            self._session = self._new_session(self._max_batch)
        self._session.add(row)
        return row.request.id

    def step(self) -> dict[int, list[int]]:
        """Do one step for every submitted request that is in flight.

        Returns:
            What each emitted. A request that failed by itself (an unusable draft, NaN in its rows)
            emitted nothing and is found among `results` with its error.

        Raises:
            Exception: whatever the model or a drafter raised; the requests stand as before the
                step. It is done again by the next call, with the drafts that it had: others, made
                because of what these were, would be a bias.
        """
        if self._session is None:
            return {}
        emitted = {}
        for row, tokens in self._session.step():
            emitted[row.request.id] = tokens
            if row.finish is not None:
                self._finished[row.request.id] = row.result()
        return emitted

    def results(self) -> dict[int, Generation]:
        """Return the requests that have finished since the last call, by number."""
        finished, self._finished = self._finished, {}
        return finished

    def cancel(self, request: int) -> Generation:
        """End a submitted request where it is, and return what it has emitted so far.

        Raises:
            CacheError: there is no such request in flight or waiting.
        """
        request = as_count("request", request, 0, 2**64)
        row: Row | None = None if self._session is None else self._session.cancel(request)
        if row is None:
            msg = f"request {request} is not in flight: it was never submitted, or has ended"
            raise CacheError(msg, slug="unknown_sequence", sequence=request)
        return row.result()

    @property
    def block_table(self) -> BlockTable | None:
        """Who holds which blocks of a paged cache; None where it is not paged."""
        return None if self._pool is None else self._pool.table

    @property
    def num_unfinished(self) -> int:
        """Number of submitted requests that are in flight or waiting."""
        return 0 if self._session is None else len(self._session)

    def _new_session(self, num_requests: int) -> Session:
        target: Any = self.target
        runner: Runner
        if self._pool is not None:
            runner = Together(target, self._pool.new_cache())
        elif self._together and num_requests > 1:
            runner = Together(target, target.new_slots())
        else:
            runner = Each(target)
        return Session(self.target, runner, self._max_batch, self.planner)

    def _find_batch_obstacle(self) -> str | None:
        if not isinstance(self.target, BatchTarget):
            return f"{type(self.target).__name__} has no forward over several sequences"
        return self.target.batch_obstacle

    def _refuse_equal_seeds(self, rows: Sequence[Row]) -> None:
        """Refuse requests that share noise as well as what decides on the size of their drafts.

        Raises:
            ParamsError: two in flight have one seed, and the cache's blocks or the plans are common
                to all; names the seed. Greedy requests draw nothing, and what the rule "coupled"
                emits does not depend on drafts.
        """
        plans_together = self.planner is not None and self._together
        if self._pool is None and not plans_together:
            return
        holders: dict[int, Row] = {}
        for row in [*(() if self._session is None else self._session.rows), *rows]:
            other = holders.setdefault(row.request.seed, row)
            if other is not row and (row.depends_on_drafts or other.depends_on_drafts):
                shared = "plans" if self._pool is None else "blocks of the cache"
                msg = (
                    f"two requests in flight have the seed {row.request.seed} and share the "
                    f"{shared}, so that the noise of one would steer the drafts of the other; give "
                    'each a seed of its own (mv.derive_seed), or take rule="coupled"'
                )
                raise ParamsError(msg, slug="equal_seeds")

    def _check_drafter(self, drafter: Drafter | None) -> None:
        if drafter is None:
            return
        check_drafter("drafter", drafter)
        if drafter.makes_trees and self.target.tree_obstacle:
            msg = f"{type(drafter).__name__} drafts trees, and {self.target.tree_obstacle}"
            raise UnsupportedModelError(msg, slug="no_tree_attention")
        drafter.check_vocabulary(self.target.vocab_size)
        drafter.check_rule(self.rule)
