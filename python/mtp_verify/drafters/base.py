"""What a drafter is: the request it drafts for and the four calls that the decoder makes."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, get_args, runtime_checkable

from mtp_verify.errors import DraftError
from mtp_verify.verifier.intake import check_instance, shown
from mtp_verify.verifier.params import SamplingParams
from mtp_verify.verifier.words import Law

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify._core import Draft, Verdict
    from mtp_verify.decoder.constraints import Matcher

__all__ = ["Drafter", "Request", "check_drafter", "drafts_of", "laws_of"]


@dataclass(eq=False)
class Request:
    """One sequence while it is being decoded.

    Attributes:
        id: a number unique among the requests of a decoder.
        tokens: prompt and emitted tokens so far, padding excluded; the decoder appends in place.
        prompt_len: how many of `tokens` are prompt.
        params: how the target's rows are shaped.
        seed: key of all noise of this sequence, 0 <= seed < 2**64. Sequences that share it share
            their noise, so there is no default.
        eos_ids: tokens that end the sequence; drafting below one is useless. Empty for the rule
            "gbv", which takes paths of one length alone.
        matcher: where the sequence stands in its constraint, or None if it has none.
    """

    id: int
    tokens: list[int]
    prompt_len: int
    params: SamplingParams = field(default_factory=SamplingParams)
    seed: int = field(kw_only=True)
    eos_ids: frozenset[int] = frozenset()
    matcher: Matcher | None = None

    @property
    def position(self) -> int:
        """Index of the root, the last token so far, among the sequence's own tokens."""
        return len(self.tokens) - 1


@runtime_checkable
class Drafter(Protocol):
    """A source of drafts.

    Any object with these four methods is one; a class that derives from this one needs `propose`
    alone. docs/howto/drafters.md writes three, and `mv.testing.assert_drafter` tries one.

    The calls of a request's life, in order: `start`; then per step `propose` and, after the decoder
    has appended what was emitted to `request.tokens`, `commit`; at the end (an error included)
    `release`. A drafter that learns from the target's rows may also have `observe(requests, drafts,
    logits)`, called after each forward with the (N+1, V) raw rows of each draft.

    **Append-only.** What a drafter decides may depend on all that it knows, but a token that it has
    drawn stays where it was drawn: budgets are kept by drawing less, never by dropping what came
    out too large (docs/explanation/lossless-loops.md has the theorem, and what a loop may share).

    Attributes that a drafter may have, and what their absence means:

    - `laws`: the laws that its drafts may have. A rule that is not lossless for one of them is
      refused before generation starts. With "coupled" among them `rule="auto"` means "coupled" at
      every step, since such drafts show noise that this rule has still to use. Without: any law
      but "coupled", which "auto" then refuses.
    - `makes_trees = True`: a draft can have siblings; a model that cannot attend along a tree is
      then refused before generation starts. Without: chains.
    - `is_pure = True`: `propose` is a cheap function of what it knows and leaves nothing behind, so
      that a planner may ask for drafts that are never run. Without: it is not.
    - `hidden_layers`: the layers of the target whose hidden states it drafts from, as
      `mtp_verify.models.hidden` numbers them. Without: none.

    A drafter that draws from rows should let `request.matcher` mask them first. One that does not
    stays lossless: forbidden nodes of a deterministic draft are left out before it is run, drawn
    ones are rejected.
    """

    def start(self, request: Request) -> None:
        """Take a new request; `request.tokens` is the prompt."""
        del request

    @abstractmethod
    def propose(self, requests: Sequence[Request], budgets: Sequence[int]) -> list[Draft]:
        """Return one draft per request, each with its true law.

        Args:
            requests: the sequences of this step; `tokens[-1]` is the root.
            budgets: the most draft nodes, and so the greatest depth: what the length, the planner
                and the cache leave room for, known before anything is drawn. 0 asks for the empty
                draft; a larger draft than that is an error.

        Returns:
            Drafts in the order of `requests`. A step that failed is done again with the drafts that
            it had, without another call.
        """

    def commit(self, verdicts: Sequence[Verdict], hidden: Any | None) -> None:
        """Learn what became of the last drafts, in the order of `propose`.

        A request that was released since (it failed) has no verdict.

        Args:
            verdicts: cut to what was really emitted.
            hidden: per request, one (n, d) tensor for each of `hidden_layers`: the states of the n
                tokens that this step committed (the first time the whole prompt, then the root and
                the accepted path). None if none were asked for.
        """
        del verdicts, hidden

    def release(self, request: Request) -> None:
        """Forget a request; unknown ones are ignored."""
        del request


def check_drafter(name: str, drafter: Any) -> None:
    """Refuse what is no drafter, such as a drafter's class or its name.

    Raises:
        TypeError: names the argument.
        DraftError: its `laws` are none.
    """
    calls = ("start", "propose", "commit", "release")
    check_instance(name, drafter, calls, "a drafter, such as mv.drafters.NGram()")
    laws = getattr(drafter, "laws", ())
    if isinstance(laws, str) or not all(law in get_args(Law) for law in laws):
        msg = (
            f"{type(drafter).__name__}.laws: found {shown(laws)}, wanted a tuple of some of: "
            f"{', '.join(get_args(Law))}"
        )
        raise DraftError(msg, slug="bad_drafter")


def laws_of(drafter: Drafter | None) -> tuple[Law, ...]:
    """The laws that a drafter says its drafts may have; none where it does not say."""
    return tuple(getattr(drafter, "laws", ()))


def drafts_of(drafter: Drafter, requests: Sequence[Request], budgets: Sequence[int]) -> list[Draft]:
    """What a drafter proposes.

    Raises:
        DraftError: it is not a list of one draft for each request; names the method.
    """
    from mtp_verify._core import Draft

    found: Any = drafter.propose(requests, budgets)
    says = f"{type(drafter).__name__}.propose: found"
    if not isinstance(found, list | tuple) or len(found) != len(requests):
        seen = f"{len(found)} drafts" if isinstance(found, list | tuple) else shown(found)
        msg = f"{says} {seen}, wanted a list of {len(requests)}, one mv.Draft for each request"
        raise DraftError(msg, slug="bad_drafter")
    for index, draft in enumerate(found):
        if not isinstance(draft, Draft):
            msg = f"{says} {shown(draft)} in place {index} of its list, wanted a mv.Draft"
            raise DraftError(msg, slug="bad_drafter")
    return list(found)
