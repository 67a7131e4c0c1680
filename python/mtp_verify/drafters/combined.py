"""Several drafters as one: copying where the text repeats itself, a model or a head elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, get_args

from mtp_verify import _core
from mtp_verify._core import Draft, TokenTree
from mtp_verify.drafters.base import Drafter, check_drafter, drafts_of
from mtp_verify.errors import ParamsError
from mtp_verify.verifier.intake import as_count, as_list, check_word, shown
from mtp_verify.verifier.words import Combination

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtp_verify._core import Verdict
    from mtp_verify.drafters.base import Request
    from mtp_verify.drafters.sketch import Sketch
    from mtp_verify.verifier.params import SamplingParams
    from mtp_verify.verifier.words import Law, Rule

__all__ = ["Combined"]

_Drafted = TypeVar("_Drafted", "Draft", "Draft | Sketch")


class Combined(Drafter):
    """Asks several drafters.

    With mode "first", each step takes the draft of the first drafter that has one, with its law:
    put the one that is right when it speaks (`Suffix`) before the one that always speaks (`Heads`).
    With mode "merge", the drafts of all become one tree: nodes of the first, then what each further
    one adds; all must be deterministic. On a CPU, where a forward's time grows with its width,
    "first" is the faster one.

    Args:
        drafters: in the order of their precedence, two or more; at most one may read hidden states.
        mode: "first" or "merge".
        max_nodes: most drafted nodes of a merged tree; None is no limit.

    Raises:
        ParamsError: settings that cannot be right.

    Example:
        >>> from mtp_verify.drafters import Combined, NGram, Request, Suffix
        >>> request = Request(id=0, tokens=[5, 6, 7, 8, 6], prompt_len=5, seed=1)
        >>> drafter = Combined([Suffix(), NGram(num_tokens=2)])
        >>> drafter.start(request)
        >>> drafter.propose([request], [8])[0].tokens.tolist()  # Suffix wants a match of two tokens
        [6, 7, 8]
    """

    def __init__(
        self,
        drafters: Sequence[Drafter],
        mode: Combination = "first",
        *,
        max_nodes: int | None = None,
    ) -> None:
        drafters = tuple(as_list("drafters", drafters))
        for index, drafter in enumerate(drafters):
            check_drafter(f"drafters[{index}]", drafter)
        check_word("mode", mode, get_args(Combination))
        if max_nodes is not None:
            max_nodes = as_count("max_nodes", max_nodes)
        readers = [drafter.hidden_layers for drafter in drafters if drafter.hidden_layers]
        laws = dict.fromkeys(law for drafter in drafters for law in drafter.laws)
        message = None
        if len(drafters) < 2:
            message = f"drafters: found {len(drafters)}, wanted two or more"
        elif max_nodes is not None and mode != "merge":
            message = f"max_nodes: found {shown(max_nodes)}, wanted None: mode is not 'merge'"
        elif len(readers) > 1:
            message = f"drafters: found {len(readers)} that read hidden states, wanted one at most"
        elif mode == "merge" and set(laws) - {"deterministic"}:
            found = ", ".join(laws)
            message = (
                f"mode merge: found drafts of law {found}, wanted deterministic ones; a head or a "
                "model makes them with params=None"
            )
        if message:
            raise ParamsError(message, slug="bad_draft_settings")
        self.laws: tuple[Law, ...] = ("deterministic",) if mode == "merge" else tuple(laws)
        self.drafters: tuple[Drafter, ...] = drafters
        self.mode = mode
        self.max_nodes = max_nodes
        self.hidden_layers: tuple[int, ...] = readers[0] if readers else ()
        self.makes_trees = mode == "merge" or any(drafter.makes_trees for drafter in drafters)
        self.is_pure = all(drafter.is_pure for drafter in drafters)
        self.checks_rows = all(drafter.checks_rows for drafter in drafters)
        self._is_away = False  # Whether the last drafts were merged where their tokens are.

    def __repr__(self) -> str:
        """Show the drafters, in the order in which they are asked."""
        return f"Combined({list(self.drafters)!r}, mode={self.mode!r})"

    def laws_for(self, params: SamplingParams, rule: Rule) -> tuple[Law, ...]:
        """See `Drafter.laws_for`: those of all parts."""
        if self.mode == "merge":
            return self.laws
        found = [law for drafter in self.drafters for law in drafter.laws_for(params, rule)]
        return tuple(dict.fromkeys(found))

    @property
    def reads_rows(self) -> bool:
        """See `Drafter.reads_rows`."""
        return any(drafter.reads_rows for drafter in self.drafters)

    def check_vocabulary(self, vocab_size: int | None) -> None:
        """Let each drafter refuse the target's vocabulary."""
        for drafter in self.drafters:
            drafter.check_vocabulary(vocab_size)

    def check_rule(self, rule: str) -> None:
        """Let each drafter refuse the rule."""
        for drafter in self.drafters:
            drafter.check_rule(rule)

    def start(self, request: Request) -> None:
        """Begin a request with every drafter."""
        for drafter in self.drafters:
            drafter.start(request)

    def propose(self, requests: Sequence[Request], budgets: Sequence[int]) -> list[Draft]:
        """See `Drafter.propose`; a draft to be merged that is not deterministic is an error."""
        self._is_away = False
        found = self._ask(drafts_of, requests, budgets)
        return [self._join(*each) for each in zip(found, requests, budgets, strict=True)]

    def sketch(self, requests: Sequence[Request], budgets: Sequence[int]) -> list[Draft | Sketch]:
        """See `Drafter.sketch`.

        Whether a drafter that stays on the device has nothing to say is not known here: the next
        one is asked where it says so at once.
        """

        def ask(
            drafter: Drafter, requests: Sequence[Request], budgets: Sequence[int]
        ) -> list[Draft | Sketch]:
            return drafter.sketch(requests, budgets)

        found = self._ask(ask, requests, budgets)
        self._is_away = self.mode == "merge"
        return [self._join_away(*each) for each in zip(found, requests, budgets, strict=True)]

    def _ask(
        self,
        ask: Callable[[Drafter, Sequence[Request], Sequence[int]], list[_Drafted]],
        requests: Sequence[Request],
        budgets: Sequence[int],
    ) -> list[list[_Drafted]]:
        """Return for each request what the drafters have for it, in their order."""
        found: list[list[_Drafted]] = [[] for _ in requests]
        open_budgets = list(budgets)
        for drafter in self.drafters:
            # All drafters see all requests, so that `commit` finds them in one order; a budget of 0
            # asks for nothing.
            for index, draft in enumerate(ask(drafter, requests, open_budgets)):
                if draft.num_nodes > 1:
                    found[index].append(draft)
                    if self.mode == "first":
                        open_budgets[index] = 0
        return found

    def choose(self, request: Request, limit: int) -> Drafter:
        """Return the drafter that drafts next, or itself if several have to be asked."""
        if self.mode != "first":
            return self
        for drafter in self.drafters[:-1]:
            if not drafter.is_pure:
                return self
            (draft,) = drafts_of(drafter, [request], [limit])
            if draft.num_nodes > 1:
                return drafter
        return self.drafters[-1]

    def observe(
        self, requests: Sequence[Request], drafts: Sequence[Draft], logits: Sequence[Any]
    ) -> None:
        """Hand the target's rows to the drafters that learn from them."""
        for drafter in self.drafters:
            drafter.observe(requests, drafts, logits)

    def commit(self, verdicts: Sequence[Verdict], hidden: Any | None) -> None:
        """Tell every drafter what was emitted."""
        if self._is_away:
            # Whose tokens the accepted ones are is not known: each has seen its root accepted.
            verdicts = [verdict.cut(1) for verdict in verdicts]
        for drafter in self.drafters:
            drafter.commit(verdicts, hidden)

    def release(self, request: Request) -> None:
        """Let every drafter forget a request."""
        for drafter in self.drafters:
            drafter.release(request)

    def _join(self, drafts: list[Draft], request: Request, budget: int) -> Draft:
        if not drafts:
            return Draft(TokenTree([-1]), [request.tokens[-1]])
        if len(drafts) == 1:
            return drafts[0]
        parents, tokens = _core.merge(drafts, self._limit(drafts, budget))
        return Draft(TokenTree(parents), tokens, law="deterministic")

    def _join_away(
        self, drafts: list[Draft | Sketch], request: Request, budget: int
    ) -> Draft | Sketch:
        known = [draft for draft in drafts if isinstance(draft, Draft)]
        if len(known) == len(drafts):
            return self._join(known, request, budget)
        if len(drafts) == 1:
            return drafts[0]
        from mtp_verify.drafters.sketch import merged  # Needs torch, as those that sketch do.

        return merged(drafts, self._limit(drafts, budget))

    def _limit(self, drafts: Sequence[Draft | Sketch], budget: int) -> int:
        most = sum(draft.num_nodes for draft in drafts)
        return min(budget, most if self.max_nodes is None else self.max_nodes)
