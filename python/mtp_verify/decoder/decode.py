"""Decoding: whole generations, or requests that join and leave a running batch.

One loop (`mtp_verify.decoder`) serves plain decoding (empty drafts), chains and trees, greedy and
sampled, one request or many. Whatever the drafters propose, each output follows the target's
distribution; with `rule="coupled"` the tokens themselves do not depend on the drafter.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from mtp_verify.caches.settings import (
    CacheKind,
    CacheSettings,
    Growing,
    Paged,
    Static,
    as_settings,
)
from mtp_verify.decoder.generation import Generation, Stats
from mtp_verify.decoder.graphs import Graphs, capture_cuda
from mtp_verify.decoder.options import Options, rule_of_request
from mtp_verify.decoder.planning import MeasuredCosts, Planner
from mtp_verify.decoder.prompts import as_prompts
from mtp_verify.decoder.runners import Each, Together
from mtp_verify.decoder.sequences import Sequence
from mtp_verify.decoder.session import Session
from mtp_verify.decoder.verdicts import DeviceVerdicts, Verdicts
from mtp_verify.drafters.base import check_drafter
from mtp_verify.errors import CacheError, ParamsError, UnsupportedModelError
from mtp_verify.models.target import BatchTarget, as_target
from mtp_verify.verifier.cleanup import at_end
from mtp_verify.verifier.intake import as_count, check_instance, check_type, check_word
from mtp_verify.verifier.kernels import has_graphs, is_host
from mtp_verify.verifier.lossy import Lossy
from mtp_verify.verifier.params import SamplingParams, as_params
from mtp_verify.verifier.words import Batching

if TYPE_CHECKING:
    from collections import abc
    from collections.abc import Callable, Iterable

    from mtp_verify._core import BlockTable
    from mtp_verify.caches.many import Storage
    from mtp_verify.decoder.constraints import Constraint
    from mtp_verify.decoder.prompts import Prompt
    from mtp_verify.decoder.runners import Runner
    from mtp_verify.drafters.base import Drafter
    from mtp_verify.models.target import Target
    from mtp_verify.verifier import lossy
    from mtp_verify.verifier.words import Rule

__all__ = ["Decoder", "Generation", "Paged", "Static", "Stats"]

_MOST_COPIES = 1 << 16  # Of one prompt: more is a mistake.
_GREEDY = SamplingParams(temperature=0.0)
# Says "as the decoder" where None means something else: no drafter.
_OWN: Any = object()


class Decoder:
    """Generates with a target model, sped up by a drafter that does not change the distribution.

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
            to `mtp_verify.models.cpu.fused.fuse`, on CPUs that docs/howto/tune.md names).
        batching: `"each"` runs every request by itself: the same bits as alone, no gain from
            batching. `"together"` runs them in one forward: each follows the target's
            distribution, and its tokens are those that it gets alone but for near-ties that
            kernels round differently. `"auto"` takes `"together"` where the model can.
        max_batch: most requests in one forward; more wait for their turn.
        cache: None lets every sequence's cache grow with it. `"paged"`, or a `Paged` with a pool of
            your own size, keeps all requests in one pool of blocks: equal beginnings share theirs,
            and where the pool is full the youngest request waits and continues later. `"static"`
            runs forwards of few shapes and verifies where the model is, with one read of its device
            a step: what a batch on a GPU does by itself.
        lossy: of `mv.lossy`: gives up the distribution for more accepted tokens; the statistics
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
        cache: CacheKind | CacheSettings | None = None,
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
        settings = as_settings(cache)
        if settings and batching == "each":
            message = 'batching="each" gives every request a cache of its own; leave out cache'
            raise ParamsError(message, slug="bad_batching")
        obstacle: str | None = f"{type(self.target).__name__} has no forward over several sequences"
        if isinstance(self.target, BatchTarget):
            obstacle = self.target.batch_obstacle
        if (batching == "together" or settings) and obstacle:
            message = f"requests cannot share a forward: {obstacle}"
            raise UnsupportedModelError(message, slug="no_batches")
        self._max_batch = as_count("max_batch", max_batch)
        is_there = not is_host(self.target.device)
        # A request alone has a cache of its own, which the user gets back, unless one was chosen.
        self._is_chosen = settings is not None and settings.is_on_device
        self._is_on_device = is_there or self._is_chosen
        self._captures = (
            has_graphs(self.target.device) and isinstance(settings, Static) and settings.graphs
        )
        self._storage: Storage | None = None
        if obstacle is None and batching != "each":
            target: Any = self.target
            default = Static() if is_there else Growing()
            self._storage = (settings or default).open(target.new_kv)
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
        rule_of_request(rule, drafter, _GREEDY if rule == "greedy" else self.params, lossy)
        self._session: Session | None = None
        self._finished: dict[int, Generation] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return what can be used elsewhere; a copy begins without requests.

        Raises:
            TypeError: requests are in flight, or share a cache.
        """
        reason = None
        if self.num_unfinished:
            reason = f"{self.num_unfinished} requests are in flight; run them to their end"
        elif self._storage is not None and self._storage.is_shared:
            reason = "its cache is in the memory of this process"
        if reason:
            message = f"Decoder: cannot be pickled or copied: {reason}"
            raise TypeError(message)
        return {**self.__dict__, "_session": None, "_finished": {}}

    def __repr__(self) -> str:
        """Show the settings, without the model."""
        model = type(getattr(self.target, "model", self.target)).__name__
        settings = f"drafter={self.drafter!r}, params={self.params!r}, rule={self.rule!r}"
        return f"Decoder({model}, {settings})"

    def generate(
        self,
        input_ids: Any,
        attention_mask: Any | None = None,
        *,
        max_new_tokens: int,
        seed: int | abc.Sequence[int] | None = None,
        params: SamplingParams | abc.Sequence[SamplingParams] | None = None,
        constraint: Constraint | abc.Sequence[Constraint | None] | None = None,
        streamer: Any | None = None,
        speculate: bool = True,
        eos_token_id: int | Iterable[int] | None = None,
        pad_token_id: int | None = None,
        stopping_criteria: Callable[..., Any] | Iterable[Callable[..., Any]] | None = None,
        past_key_values: Any | None = None,
        output_logits: bool = False,
        num_return_sequences: int = 1,
        processors: abc.Sequence[Any] = (),
        top_logprobs: int = 0,
    ) -> Generation:
        """Generate until an EOS token, a stopping criterion, `max_new_tokens` or the context's end.

        Args:
            input_ids: (B, T) or (T,) integer tensor or array, a list of token ids, or a list of B
                such rows of any lengths.
            attention_mask: as `input_ids`; zeros on the left mark padding.
            max_new_tokens: at least 1.
            seed: of all noise; None takes one draw from torch's global generator. An int s gives
                sequence r `mv.derive_seed(s, r)`; a list gives one seed each.
            params: instead of the decoder's own; one for all sequences, or one each.
            constraint: of `mv.constraints`: a grammar that the output obeys; one for all sequences,
                or one (or None) each.
            streamer: `put` is called with the prompt, then with each step's tokens; `end` once. For
                a single sequence.
            speculate: False decodes plainly, by the same rule and with the same noise.
            eos_token_id: one or several ids; None takes the model's own, `()` none. The params'
                `stop_ids` end a sequence too.
            pad_token_id: fills `sequences` up where they differ in length; None takes the first
                EOS id, or 0.
            stopping_criteria: callables of (ids (1, n), rows), evaluated after each emitted
                token in order; the first that says yes ends the sequence there. `rows` is None, or
                with `output_logits` a tuple of the raw rows (1, V) behind the emitted tokens. The
                same for all sequences, or one list each.
            past_key_values: a cache that holds the first tokens of the prompt, changed in place.
                For a single sequence.
            output_logits: keep the raw row behind each emitted token.
            num_return_sequences: how often each prompt is continued; those of one prompt stand
                side by side. Requests that share a forward run it once: its entries are copied, or
                shared by a fork where the cache is paged.
            processors: functions over rows, as `mv.verify` takes them, called with the sequence's
                own tokens; the same for all sequences, or one list each. Those that keep state are
                forked for each, and told what was emitted.
            top_logprobs: how many of the most likely tokens to list behind each emitted one.

        Returns:
            The generation, one entry per sequence; `past_key_values` (None for a batch) holds all
            of its tokens but the last.

        Raises:
            ParamsError: arguments that cannot be right (named); nothing has been run.
            RuleError: the rule cannot verify what is drafted, or not at this temperature.
            UnsupportedModelError: the cache cannot be rolled back.
            DraftError: a draft larger than asked for, or of a law that was not declared.
            NumericsError: the target's rows hold NaN or +inf, or the constraint has come to a dead
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
            message = f"{name} serves a single sequence, and {count} are asked for"
            raise ParamsError(message, slug=f"bad_{'past' if streamer is None else 'streamer'}")
        if streamer is not None:
            check_instance("streamer", streamer, ("put", "end"), "a streamer")
        sequences = self._sequences(
            prompts,
            past_key_values,
            drafter=self.drafter,
            speculate=speculate,
            params=params,
            constraint=constraint,
            seed=seed,
            max_new_tokens=max_new_tokens,
            eos_ids=eos_token_id,
            criteria=stopping_criteria,
            output_logits=output_logits,
            processors=processors,
            top_logprobs=top_logprobs,
        )
        session = self._new_session(count)
        with ExitStack() as ends:
            if streamer is not None:
                ends.enter_context(at_end(streamer.end))
            ends.enter_context(at_end(session.close))
            for sequence in sequences:
                session.add(sequence)
            if streamer is not None:
                streamer.put(prompts[0].ids[None])
            while len(session):
                for sequence, emitted in session.step():
                    if sequence.error is not None:
                        raise sequence.error
                    if streamer is not None:
                        streamer.put(torch.tensor(emitted))
        if count == 1:
            return sequences[0].result()
        if pad_token_id is None:
            pad_token_id = next(iter(sequences[0].options.eos_ids), 0)
        return Generation.merge([sequence.result() for sequence in sequences], pad_token_id)

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
        processors: abc.Sequence[Any] = (),
        top_logprobs: int = 0,
    ) -> int:
        """Hand in one request; it joins the batch at the next step that has space.

        `input_ids` are (T,) or (1, T) integers, without padding. `drafter` takes the place of the
        decoder's own; None decodes plainly. The other arguments are those of `generate`. Return the
        request's number, for `step`, `results` and `cancel`.

        Raises:
            ParamsError, RuleError: arguments that cannot be right; the batch goes on as before.
        """
        prompts = as_prompts(input_ids, None)
        if len(prompts) != 1:
            message = f"input_ids: found {len(prompts)} sequences, wanted one"
            raise ParamsError(message, slug="bad_input_ids")
        if drafter is _OWN:
            drafter = self.drafter
        else:
            self._check_drafter(drafter)
        (sequence,) = self._sequences(
            prompts,
            None,
            drafter=drafter,
            params=params,
            constraint=constraint,
            seed=seed,
            max_new_tokens=max_new_tokens,
            eos_ids=eos_token_id,
            criteria=stopping_criteria,
            output_logits=output_logits,
            processors=processors,
            top_logprobs=top_logprobs,
        )
        if self._session is None:
            self._session = self._new_session(self._max_batch)
        self._session.add(sequence)
        return sequence.request.id

    def step(self) -> dict[int, list[int]]:
        """Do one step for every submitted request in flight, and return what each emitted.

        A request that failed by itself (an unusable draft, NaN in its rows) emitted nothing and is
        found among `results` with its error.

        Raises:
            Exception: whatever the model or a drafter raised; the requests stand as before the
                step, which is done again by the next call, with the drafts that it had.
        """
        if self._session is None:
            return {}
        try:
            done = self._session.step()
        finally:
            for sequence in self._session.take_finished():
                self._finished[sequence.request.id] = sequence.result()
        return {sequence.request.id: tokens for sequence, tokens in done}

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
        sequence = None if self._session is None else self._session.cancel(request)
        if sequence is None:
            message = f"request {request} is not in flight: it was never submitted, or has ended"
            raise CacheError(message, slug="unknown_sequence", sequence=request)
        return sequence.result()

    @property
    def block_table(self) -> BlockTable | None:
        """Who holds which blocks of a paged cache; None where it is not paged."""
        return None if self._storage is None else self._storage.table

    @property
    def num_unfinished(self) -> int:
        """Number of submitted requests that are in flight or waiting."""
        return 0 if self._session is None else len(self._session)

    def _sequences(self, prompts: list[Prompt], past: Any, **given: Any) -> list[Sequence]:
        """Check the arguments of a call, and return the sequence of each prompt."""
        if given["params"] is None:
            given["params"] = self.params
        if given["eos_ids"] is None:
            given["eos_ids"] = self.target.eos_ids
        options = Options.each(len(prompts), rule=self.rule, lossy=self.lossy, **given)
        sequences = [
            Sequence.start(self.target, prompt, own, index, past)
            for index, (prompt, own) in enumerate(zip(prompts, options, strict=True))
        ]
        self._refuse_equal_seeds(sequences)
        return sequences

    def _new_session(self, num_sequences: int) -> Session:
        runner: Runner = Each(self.target)
        storage = self._storage
        if storage is not None and (storage.is_shared or self._is_chosen or num_sequences > 1):
            target: Any = self.target
            graphs = Graphs(capture_cuda if self._captures else None)
            runner = Together(target, storage.new_cache(), graphs)
        verdicts = DeviceVerdicts() if self._is_on_device else Verdicts()
        return Session(self.target, runner, verdicts, self._max_batch, self.planner)

    def _refuse_equal_seeds(self, sequences: list[Sequence]) -> None:
        """Refuse requests that share noise as well as what decides on the size of their drafts.

        Greedy requests draw nothing, and what the rule "coupled" emits does not depend on drafts.
        """
        shares_entries = self._storage is not None and self._storage.is_shared
        if not shares_entries and (self.planner is None or self._storage is None):
            return
        holders: dict[int, Sequence] = {}
        in_flight = [] if self._session is None else self._session.sequences
        for sequence in [*in_flight, *sequences]:
            other = holders.setdefault(sequence.request.seed, sequence)
            depend = sequence.depends_on_drafts or other.depends_on_drafts
            if other is not sequence and depend:
                shared = "blocks of the cache" if shares_entries else "plans"
                message = (
                    f"two requests in flight have the seed {sequence.request.seed} and share the "
                    f"{shared}, so that the noise of one would steer the drafts of the other; give "
                    'each a seed of its own (mv.derive_seed), or take rule="coupled"'
                )
                raise ParamsError(message, slug="equal_seeds")

    def _check_drafter(self, drafter: Drafter | None) -> None:
        if drafter is None:
            return
        check_drafter("drafter", drafter)
        if drafter.makes_trees and self.target.tree_obstacle:
            message = f"{type(drafter).__name__} drafts trees, and {self.target.tree_obstacle}"
            raise UnsupportedModelError(message, slug="no_tree_attention")
        drafter.check_vocabulary(self.target.vocab_size)
        drafter.check_rule(self.rule)
