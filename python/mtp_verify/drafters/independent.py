"""An independent language model as drafter: the original scheme of speculative decoding.

References: Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify._core import Draft, TokenTree, Verdict
from mtp_verify.drafters.base import (
    as_draft_params,
    is_greedy,
    is_worth_drawing,
    shaping_of,
    warn_once,
)
from mtp_verify.drafters.growing import FixedForm, confidence
from mtp_verify.drafters.states import StateDrafter
from mtp_verify.drafters.translation import Transcript, Translation
from mtp_verify.errors import CacheError, NumericsError, ParamsError, UnsupportedModelError
from mtp_verify.models.target import as_target
from mtp_verify.verifier import kernels
from mtp_verify.verifier.intake import as_count, as_float, check_type
from mtp_verify.verifier.kernels import to_host
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.drafters.base import DraftParams, Request
    from mtp_verify.drafters.sketch import Sketch
    from mtp_verify.models.target import Target, TargetCache
    from mtp_verify.verifier.words import Law, Rule

__all__ = ["Model", "ModelState"]


@dataclass
class ModelState:
    """What the drafter keeps of a request: its cache, and where its last draft hangs."""

    target: Target
    cache: TargetCache
    transcript: Transcript | None = None  # where the drafter's tokens are not the target's
    # Of the cache's entries, and maybe more. Of a draft that stays on a device those come when the
    # verdict names them.
    ids: list[int] = field(default_factory=list)
    is_away: bool = False
    root: int | None = None  # position, among its tokens, of this step's root; None: no draft

    def read(self, tokens: list[int]) -> tuple[int, list[int]]:
        """Keep in the cache what still holds; return the root and what is not in the cache yet."""
        ids = tokens if self.transcript is None else self.transcript.update(tokens)
        # A text that grew may be cut otherwise near its end, and a step that failed after drafting
        # leaves entries of tokens that were never accepted.
        kept = min(_num_equal(self.ids[: self.cache.length], ids), len(ids) - 1)
        self.keep(max(kept, 0))
        self.ids = list(ids)
        self.root = len(ids) - 1
        return self.root, ids[self.cache.length :]

    def keep(self, length: int) -> None:
        """Drop the entries after the first `length`."""
        try:
            self.cache.crop(length)
        except CacheError:
            # A recurrent state that cannot be taken back so far: everything is run again.
            self.cache = self.target.new_cache()


def _check_width(whose: str, last: int, vocab_size: int | None) -> None:
    if vocab_size is not None and last >= vocab_size:
        message = (
            f"the translation knows token {last} of the {whose}, whose vocabulary has "
            f"{vocab_size} tokens: it was made for another tokenizer, or with the two exchanged"
        )
        raise UnsupportedModelError(message, slug="vocab_mismatch")


def _num_equal(held: list[int], ids: list[int]) -> int:
    """Return how many tokens of `held` stand at the beginning of `ids`."""
    if ids[: len(held)] == held:
        return len(held)
    pairs = enumerate(zip(held, ids, strict=False))
    return next((place for place, (a, b) in pairs if a != b), len(ids))


_GREEDY = SamplingParams(temperature=0.0)


class Model(StateDrafter[ModelState]):
    """Drafts a chain with a second, smaller model.

    With `params=None` or temperature 0 the chain is greedy, a function of the past (law
    "deterministic"). Otherwise each token is sampled from the model's row shaped by `params` (law
    "chain"); these rows go into the draft, so the verifier sees exactly what was drawn from. The
    shaping need not be the target's. The noise is the request's own, under a purpose that no
    verification rule uses.

    Args:
        model: a transformers causal language model in evaluation mode, or a `Target`.
        num_tokens: length of the chain; a step runs the model that many times.
        params: how the drafter's rows are shaped; "target": as the request's. The chain is then
            greedy where that is, and under the rules "coupled" and "target_only", which ask whether
            a token is the target's own.
        min_confidence: stop before drawing from a row whose largest probability (at the drafter's
            temperature, before truncation) is below this; 0 never stops. A stop that looks at the
            row but not at the token drawn from it keeps the chain's law.
        translation: for a model whose tokenizer is not the target's. Its rows are then restricted
            to the tokens that both know, before anything else is done to them.
        mask_token: of a model that was trained to draft in parallel (PARD's `pard_token`), by the
            model's own numbering: one forward over the text and `num_tokens - 1` such tokens gives
            all rows, each of which depends on no drafted token.

    Raises:
        UnsupportedModelError: the model cannot draft; says why.
        ParamsError: num_tokens below 1, min_confidence outside [0, 1], or a mask_token that the
            model does not know.

    Example:
        >>> drafter = Model(small, num_tokens=4, params=mv.SamplingParams())  # doctest: +SKIP
        >>> mv.Decoder(large, drafter).generate(ids, max_new_tokens=64)  # doctest: +SKIP

    References:
        arXiv 2211.17192, algorithm 1; PARD, arXiv 2504.18583; which stops are safe: docs of the
        draft laws.
    """

    def __init__(
        self,
        model: Any,
        *,
        num_tokens: int = 4,
        params: DraftParams = None,
        min_confidence: float = 0.0,
        translation: Translation | None = None,
        mask_token: int | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= as_float("min_confidence", min_confidence) <= 1.0:
            message = f"min_confidence: found {min_confidence}, wanted a probability"
            raise ParamsError(message, slug="bad_min_confidence")
        self.target: Target = as_target(model)
        self.num_tokens = as_count("num_tokens", num_tokens)
        self.params = as_draft_params(params)
        self.min_confidence = min_confidence
        self.translation = translation
        self.mask_token: int | None = None
        if mask_token is not None:
            size = self.target.vocab_size
            most = None if size is None else size - 1
            self.mask_token = as_count("mask_token", mask_token, 0, most)
        self._vocab = None
        if translation is not None:
            check_type("translation", translation, Translation)
            self._vocab = translation.target_ids
            _check_width("drafter", translation.draft_ids.max(), self.target.vocab_size)
        self.laws = ("deterministic",) if is_greedy(self.params) else ("chain",)
        if self.params == "target":
            self.laws = "deterministic", "chain"

    def laws_for(self, params: SamplingParams, rule: Rule) -> tuple[Law, ...]:
        """See `Drafter.laws_for`."""
        if len(self.laws) == 1:
            return self.laws
        return ("chain",) if is_worth_drawing(params, rule) else ("deterministic",)

    def _shaping(self, request: Request) -> SamplingParams:
        """Return how rows are shaped that a chain's tokens are drawn from; greedy: none is."""
        is_drawn = "chain" in self.laws_for(request.params, request.rule)
        return (shaping_of(self.params, request) if is_drawn else None) or _GREEDY

    def check_vocabulary(self, vocab_size: int | None) -> None:
        """Refuse a target whose rows have another width, or lack a token of the translation."""
        if self.translation is not None:
            _check_width("target", self.translation.target_ids.max(), vocab_size)
            return
        mine = self.target.vocab_size
        if mine is not None and vocab_size is not None and mine != vocab_size:
            message = (
                f"the drafter's vocabulary has {mine} tokens and the target's {vocab_size}; "
                "give translation=Translation(draft_tokenizer, target_tokenizer), or use a drafter "
                "that was trained with the target's tokenizer"
            )
            raise UnsupportedModelError(message, slug="vocab_mismatch")

    @torch.inference_mode()
    def commit(self, verdicts: Sequence[Verdict], hidden: Any | None) -> None:
        """Keep the cache entries of accepted tokens, where this step has drafted.

        The last token of a chain was never run through the model: the next draft begins with it.
        """
        del hidden
        for request, verdict in zip(self._proposed, verdicts, strict=True):
            state = self._states[request.id]
            if state.root is not None:
                state.keep(min(state.root + 1 + verdict.num_accepted, state.cache.length))
                if state.is_away:
                    accepted = verdict.tokens[: verdict.num_accepted].tolist()
                    state.ids = [*state.ids[: state.root + 1], *self._own(accepted)]

    def _new_state(self, request: Request) -> ModelState:
        del request
        transcript = None if self.translation is None else self.translation.start()
        return ModelState(self.target, self.target.new_cache(), transcript)

    @torch.inference_mode()
    def _draft(self, request: Request, state: ModelState, budget: int) -> Draft:
        length, pending = self._begin(request, state, budget)
        params = self._shaping(request)
        seed = 0 if params.is_greedy else request.seed
        tokens: list[int] = []
        rows: list[torch.Tensor] = []
        found = self._ahead(state, pending, length) if pending else None
        ahead = None if found is None else to_host(found)
        while pending and len(tokens) < length:
            row = self._run(pending, state.cache) if ahead is None else ahead[len(tokens), None]
            row = request.mask_rows(row, [tokens], self._vocab)
            if self.min_confidence and float(confidence(row, params)) < self.min_confidence:
                break
            try:
                place = request.position, len(tokens) + 1
                column = kernels.select(row).draw(row, params, seed, *place)
            except NumericsError as error:  # Before it has drawn: the chain ends above.
                warn_once(self, error)
                break
            tokens.append(column if self._vocab is None else int(self._vocab[column]))
            rows.append(row)
            if tokens[-1] in request.eos_ids:
                break
            if ahead is None:
                pending = self._own(tokens[-1:])
                state.ids += pending
        if not tokens:
            return Draft.chain([])
        tree = TokenTree(range(-1, len(tokens)))
        nodes = [request.tokens[-1], *tokens]
        if params.is_greedy:
            return Draft(tree, nodes)
        logits = torch.cat(rows)
        return Draft(tree, nodes, law="chain", logits=logits, params=params, vocab=self._vocab)

    def sketch(self, requests: Sequence[Request], budgets: Sequence[int]) -> list[Draft | Sketch]:
        """See `Drafter.sketch`. A constraint is held against the first level alone."""
        self._proposed = list(requests)
        return [
            self._sketch(request, self._state_of(request), budget)
            for request, budget in zip(requests, budgets, strict=True)
        ]

    @torch.inference_mode()
    def _sketch(self, request: Request, state: ModelState, budget: int) -> Draft | Sketch:
        length, pending = self._begin(request, state, budget)
        if length < 1 or not pending:
            return Draft.chain([])
        state.is_away = True
        params = self._shaping(request)
        law: Law = "deterministic" if params.is_greedy else "chain"
        tree = TokenTree(range(-1, length))
        own = params, request, self._shared[0], self.target.device
        form = FixedForm(tree, law, *own, min_confidence=self.min_confidence)
        ahead = self._ahead(state, pending, length)
        ids = torch.tensor(pending, device=self.target.device)
        first = self._rows(ids, state.cache) if ahead is None else ahead[:1]
        form.extend(request.mask_rows(first, [[]], self._vocab))
        depth = 1
        while form.size:
            if ahead is None:
                form.extend(self._rows(self._renumbered(form.tokens), state.cache))
            else:
                form.extend(ahead[depth, None])
            depth += 1
        return replace(form.finish(), vocab=self._vocab)

    def _begin(self, request: Request, state: ModelState, budget: int) -> tuple[int, list[int]]:
        """Return the most levels of a draft, and what has to be run first."""
        state.root, state.is_away = None, False
        length = min(self.num_tokens, budget)
        if length < 1:
            return 0, []
        root, pending = state.read(request.tokens)
        if self.target.max_length is not None:
            # The last node that is run stands at root + length - 1, which must lie in the context.
            length = min(length, self.target.max_length - root)
        return length, pending

    def _ahead(self, state: ModelState, pending: list[int], length: int) -> Any | None:
        """Return the rows (length, V) of all levels, where the model drafts at masks."""
        if self.mask_token is None:
            return None
        masks = [self.mask_token] * (length - 1)
        ids = torch.tensor([*pending, *masks], device=self.target.device)
        rows = self._rows(ids, state.cache, num_logits=length)
        state.keep(len(state.ids))
        return rows

    def _run(
        self,
        tokens: list[int],
        cache: TargetCache,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        num_logits: int = 1,
    ) -> torch.Tensor:
        """Return rows on the host, as `_rows`."""
        ids = torch.tensor(tokens, device=self.target.device)
        rows: torch.Tensor = to_host(self._rows(ids, cache, positions, mask, num_logits))
        return rows

    def _rows(
        self,
        ids: torch.Tensor,
        cache: TargetCache,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        num_logits: int = 1,
    ) -> torch.Tensor:
        """Return rows of the tokens that both know; one of these stays possible."""
        rows = self.target.forward(ids[None], positions, mask, cache, num_logits=num_logits)[0]
        if self.translation is not None:
            rows = rows[:, self._shared[1]]
            rows = rows.masked_fill(rows.amax(dim=1, keepdim=True) == -torch.inf, 0.0)
        return rows

    @cached_property
    def _shared(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The tokens that both know, on the model's device: by the target's numbers, by its own."""
        if self.translation is None:
            return None, None
        ids = self.translation.target_ids, self.translation.draft_ids
        words, columns = (torch.from_numpy(own).to(self.target.device) for own in ids)
        return words, columns

    def _renumbered(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return drafted tokens as `_own`, on the device."""
        words, columns = self._shared
        if words is None or columns is None:
            return tokens
        return columns[torch.searchsorted(words, tokens)]

    def _own(self, tokens: list[int]) -> list[int]:
        """Return drafted tokens as the drafter numbers them."""
        return tokens if self.translation is None else self.translation.to_draft(tokens)
