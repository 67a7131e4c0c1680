"""What drafters that keep a state for each request have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from mtp_verify.drafters.base import Drafter, warn_once
from mtp_verify.errors import DraftError, NumericsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify._core import Draft
    from mtp_verify.drafters.base import Request
    from mtp_verify.verifier.growers import Grower

__all__ = ["StateDrafter", "TextDrafter"]

State = TypeVar("State")


class _Reader(Protocol):
    def read(self, tokens: Sequence[int]) -> None: ...


Reader = TypeVar("Reader", bound=_Reader)


class StateDrafter(Drafter, Generic[State]):
    """Drafts for one request at a time, from a state of each."""

    checks_rows = True

    def __init__(self) -> None:
        self._states: dict[int, State] = {}
        # Those of the last `propose` that were not released since.
        self._proposed: list[Request] = []

    @abstractmethod
    def _new_state(self, request: Request) -> State:
        """Return the state of a new request."""

    @abstractmethod
    def _draft(self, request: Request, state: State, budget: int) -> Draft:
        """Return a draft of at most `budget` nodes below the root."""

    def start(self, request: Request) -> None:
        """See `Drafter.start`."""
        self._states[request.id] = self._new_state(request)

    def propose(self, requests: Sequence[Request], budgets: Sequence[int]) -> list[Draft]:
        """See `Drafter.propose`; a request that was never started is a `DraftError`."""
        self._proposed = list(requests)
        return [
            self._draft(request, self._state_of(request), budget)
            for request, budget in zip(requests, budgets, strict=True)
        ]

    def release(self, request: Request) -> None:
        """See `Drafter.release`."""
        self._states.pop(request.id, None)
        self._proposed = [other for other in self._proposed if other.id != request.id]

    def _extend(self, grower: Grower, rows: Any) -> bool:
        """Grow by rows; False where one is no distribution: the draft then ends as it is.

        That is lossless: no token of a level is drawn before all of its rows have been looked at.
        """
        try:
            grower.extend(rows)
        except NumericsError as error:
            warn_once(self, error)
            return False
        return True

    def _state_of(self, request: Request) -> State:
        if request.id in self._states:
            return self._states[request.id]
        message = f"request {request.id} was never started; call start(request) first"
        raise DraftError(message, slug="unknown_request", sequence=request.id)


class TextDrafter(StateDrafter[Reader]):
    """Drafts what the text so far suggests, also for a request that was not started.

    What was emitted is read from the request itself, so there is nothing to learn from `commit`.
    """

    laws = ("deterministic",)
    is_pure = True

    def start(self, request: Request) -> None:
        """Read the prompt of a new request."""
        super().start(request)
        self._state_of(request)

    def _state_of(self, request: Request) -> Reader:
        """Return the state of a request, brought up to date with its text."""
        if request.id not in self._states:
            super().start(request)
        state = self._states[request.id]
        state.read(request.tokens)
        return state
