"""What a drafter is: the request that it drafts for, and the calls that the decoder makes."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args
from weakref import WeakValueDictionary

from mtp_verify._core import Draft
from mtp_verify.errors import DraftError
from mtp_verify.verifier.intake import check_word, shown
from mtp_verify.verifier.params import SamplingParams, as_params
from mtp_verify.verifier.words import Law, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch

    from mtp_verify._core import Verdict
    from mtp_verify.decoder.constraints import Matcher
    from mtp_verify.drafters.sketch import Sketch

__all__ = ["DraftParams", "Drafter", "Request", "as_draft_params", "check_drafter", "drafts_of",
           "is_greedy", "is_worth_drawing", "shaping_of", "warn_once"]  # fmt: skip

# How a drafter's rows are shaped: "target" as the target's own, request by request; None: no token
# is drawn.
DraftParams: TypeAlias = SamplingParams | Literal["target"] | None
# Those that were warned of, by number.
_warned: WeakValueDictionary[int, Drafter] = WeakValueDictionary()


@dataclass(eq=False)
class Request:
    """What a user asks for, as drafters see it: the text so far, and how its rows are shaped.

    The decoder's own record of a running request (its cache, its statistics) is a `Sequence`.
    Drafters never see it: a draft may depend on the text and on rows alone.

    Attributes:
        id: a number unique among the requests of a decoder.
        tokens: prompt and emitted tokens so far, padding excluded; the decoder appends in place.
        prompt_len: how many of `tokens` are prompt.
        params: how the target's rows are shaped.
        seed: key of all noise of this request, 0 <= seed < 2**64. Requests that share it share
            their noise, so there is no default.
        eos_ids: tokens that end the text; drafting below one is useless. Empty for the rule "gbv",
            which takes paths of one length alone.
        matcher: where the text stands in its constraint, or None if it has none.
        rule: that verifies its drafts, the same at every step.
    """

    id: int
    tokens: list[int]
    prompt_len: int
    params: SamplingParams = field(default_factory=SamplingParams)
    seed: int = field(kw_only=True)
    eos_ids: frozenset[int] = frozenset()
    matcher: Matcher | None = None
    rule: Rule = "auto"

    @property
    def position(self) -> int:
        """Index of the root, the last token so far, among the request's own tokens."""
        return len(self.tokens) - 1

    def mask_rows(
        self, rows: torch.Tensor, paths: Iterable[Sequence[int]], vocab: Any | None = None
    ) -> torch.Tensor:
        """Return rows without what the constraint forbids, as `Matcher.mask_rows`."""
        return rows if self.matcher is None else self.matcher.mask_rows(rows, [*paths], vocab)


class Drafter(ABC):
    """A source of drafts: derive from this class and define `propose`.

    Every other method and attribute has a default. docs/howto/drafters.md writes three drafters,
    and `mv.testing.assert_drafter` tests one.

    The calls for a request, in order: `start`; then per step `propose`, `observe` after the
    target's forward and, after the decoder has appended what was emitted to `request.tokens`,
    `commit`; at the end (also after an error) `release`.

    **Append-only.** A token that a drafter has drawn stays where it was drawn: budgets are kept by
    drawing less, never by dropping what came out too large (docs/explanation/lossless-loops.md).

    A drafter that draws from rows should let `request.mask_rows` mask them first, but need not:
    forbidden nodes of a deterministic draft are left out before it is run, drawn ones are rejected.

    Attributes:
        laws: the laws that its drafts may have (law: the joint distribution of the proposal). A
            rule that is not lossless for one of them is refused before generation starts. With
            "coupled" among them `rule="auto"` means "coupled" at every step, since such drafts show
            noise that this rule has still to use. Empty: any law but "coupled", which "auto" then
            refuses.
        makes_trees: a draft can have siblings; a model that cannot attend along a tree is then
            refused before generation starts. Default: chains only.
        is_pure: `propose` is a cheap function of what the drafter knows and changes nothing, so
            that a planner may ask for drafts that are never run.
        checks_rows: nothing in its drafts was drawn from a row that is no distribution; growers see
            to that. Else the rows are looked at before a draft is run, and nothing of it stays
            below the first level with such a row.
        hidden_layers: the layers of the target whose hidden states it drafts from, as
            `mtp_verify.models.hidden` numbers them.
    """

    laws: tuple[Law, ...] = ()
    makes_trees: bool = False
    is_pure: bool = False
    checks_rows: bool = False
    hidden_layers: tuple[int, ...] = ()

    @property
    def reads_rows(self) -> bool:
        """Whether `observe` has to be called: the rows are then brought to the host."""
        return type(self).observe is not Drafter.observe

    def __init_subclass__(cls, **options: Any) -> None:
        """Let a class that drafts in its own way not sketch in that of its base."""
        super().__init_subclass__(**options)
        own = vars(cls).keys()
        if not own & {"sketch", "_sketch"} and own & {"propose", "_draft"}:
            cls.sketch = Drafter.sketch  # type: ignore[method-assign]

    def laws_for(self, params: SamplingParams, rule: Rule) -> tuple[Law, ...]:
        """Return those of `laws` that drafts may have for a request; all unless said otherwise.

        A drafter may choose its law by what the request asks for: how its rows are shaped, and the
        rule that verifies its drafts.
        """
        del params, rule
        return self.laws

    def check_vocabulary(self, vocab_size: int | None) -> None:  # noqa: B027
        """Refuse a target whose rows have another width; called when a decoder is made.

        `vocab_size` is V of the target, or None where only a forward tells.

        Raises:
            UnsupportedModelError: the vocabularies do not fit.
        """

    def check_rule(self, rule: str) -> None:  # noqa: B027
        """Refuse a rule that the form of its trees does not allow; called when a decoder is made.

        Raises:
            RuleError: names what the rule wants.
        """

    def start(self, request: Request) -> None:  # noqa: B027
        """Take a new request; `request.tokens` is the prompt."""

    def choose(self, request: Request, limit: int) -> Drafter:
        """Return the drafter that drafts next for a request: itself, or one of its parts.

        A planner keeps what each of them has earned apart. `limit` nodes at most are of use.
        """
        del request, limit
        return self

    @abstractmethod
    def propose(self, requests: Sequence[Request], budgets: Sequence[int]) -> list[Draft]:
        """Return one draft per request, in their order, each with its true law.

        A step that failed is done again with the same drafts, without another call.

        Args:
            requests: those of this step; `tokens[-1]` is the root.
            budgets: the most draft nodes, and so the greatest depth: what the length, the planner
                and the cache leave, known before anything is drawn. 0 asks for the empty draft; a
                draft larger than its budget is an error.
        """

    def sketch(self, requests: Sequence[Request], budgets: Sequence[int]) -> list[Draft | Sketch]:
        """Draft as `propose` does, with tokens that may stay on the target's device.

        Called in its place where the decoder runs on a device. Nothing but the target sees the
        tokens before they are verified; where a constraint has to, they are run first, and its
        masks are made behind that. Default: `propose`.
        """
        return [*drafts_of(self, requests, budgets)]

    def observe(  # noqa: B027
        self, requests: Sequence[Request], drafts: Sequence[Draft], logits: Sequence[Any]
    ) -> None:
        """Learn from the target's rows of a step.

        `drafts` are what was run for each request, `logits` the (N+1, V) raw rows for each, row i
        after node i, on the host; borrowed.
        """

    def commit(self, verdicts: Sequence[Verdict], hidden: Any | None) -> None:  # noqa: B027
        """Learn what became of the last drafts, in the order of `propose`.

        A request that was released since (it failed) has no verdict.

        Args:
            verdicts: cut to what was really emitted.
            hidden: per request, one (n, d) tensor for each of `hidden_layers`: the states of the n
                tokens that this step committed (the first time the whole prompt, then the root and
                the accepted path). None if none were asked for.
        """

    def release(self, request: Request) -> None:  # noqa: B027
        """Forget a request; unknown ones are ignored."""


def as_draft_params(params: Any) -> DraftParams:
    """Return how a drafter's rows are shaped, as a user said it.

    Raises:
        ParamsError: another word than "target".
        TypeError: neither a word nor `SamplingParams`.
    """
    if isinstance(params, str):
        check_word("params", params, ("target",))
        return "target"
    return None if params is None else as_params(params)


def is_greedy(params: DraftParams) -> bool:
    """Return whether no draft is drawn, whatever the request."""
    return params is None or (params != "target" and params.is_greedy)


def shaping_of(params: DraftParams, request: Request) -> SamplingParams | None:
    """Return how rows are shaped for a request, None where its draft is greedy."""
    chosen = request.params if params == "target" else params
    return None if chosen is None or chosen.is_greedy else chosen


def is_worth_drawing(params: SamplingParams, rule: Rule) -> bool:
    """Return whether drawn drafts of a request are accepted more often than greedy ones.

    They are where the rule holds them against the drafter's rows. Where it only looks whether a
    drafted token is the target's, the likeliest one is the best guess.
    """
    return not params.is_greedy and rule not in ("greedy", "target_only", "coupled")


def check_drafter(name: str, drafter: Any) -> None:
    """Refuse what is no drafter, such as a drafter's class or its name.

    Raises:
        TypeError: names the argument, and says what to do.
        DraftError: its `laws` or its `hidden_layers` are none.
    """
    if isinstance(drafter, type):
        kind = drafter.__name__
        message = f"{name}: found the class {kind}, wanted an object of it: {kind}(...)"
        raise TypeError(message)
    if not isinstance(drafter, Drafter):
        message = (
            f"{name}: found {shown(drafter)}, wanted a drafter such as mv.drafters.NGram(); derive "
            "a class of your own from mv.Drafter and define propose"
        )
        raise TypeError(message)
    laws = get_args(Law)
    given: Any = drafter  # Whatever it was declared to be.
    for name, found, is_right, wanted in (
        ("laws", given.laws, laws.__contains__, f"some of: {', '.join(laws)}"),
        ("hidden_layers", given.hidden_layers, lambda n: isinstance(n, Integral), "layer numbers"),
    ):
        if not isinstance(found, tuple) or not all(map(is_right, found)):
            kind = type(drafter).__name__
            message = f"{kind}.{name}: found {shown(found)}, wanted a tuple of {wanted}"
            raise DraftError(message, slug="bad_drafter")


def warn_once(drafter: Drafter, found: object) -> None:
    """Warn that a drafter's drafts are cut short, the first time that this happens to it."""
    if _warned.get(id(drafter)) is not drafter:
        _warned[id(drafter)] = drafter
        message = (
            f"{type(drafter).__name__}: {found}; nothing is drafted there, which costs speed and "
            "changes no output (said once for each drafter)"
        )
        warnings.warn(message, stacklevel=2)


def drafts_of(drafter: Drafter, requests: Sequence[Request], budgets: Sequence[int]) -> list[Draft]:
    """Return what a drafter proposes.

    Raises:
        DraftError: it is not a list of one draft for each request; names the method.
    """
    found: Any = drafter.propose(requests, budgets)
    is_list = isinstance(found, list | tuple)
    if not is_list or len(found) != len(requests):
        seen = f"{len(found)} drafts" if is_list else shown(found)
        wanted = f"a list of {len(requests)}, one mv.Draft for each request"
    else:
        index = next((i for i, draft in enumerate(found) if not isinstance(draft, Draft)), None)
        if index is None:
            return list(found)
        seen, wanted = f"{shown(found[index])} in place {index} of its list", "a mv.Draft"
    message = f"{type(drafter).__name__}.propose: found {seen}, wanted {wanted}"
    raise DraftError(message, slug="bad_drafter")
