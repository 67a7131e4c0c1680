"""What a planner knows of a request, and of each drafter that drafts for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mtp_verify.decoder.planning.acceptance import Rates, Watch
from mtp_verify.drafters.base import drafts_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mtp_verify._core import Draft
    from mtp_verify.drafters.base import Drafter, Request

__all__ = ["Record", "Source"]


@dataclass
class Source:
    """What is known of one drafter's drafts for one request."""

    drafter: Drafter
    rates: tuple[Rates, Rates]  # after a wrong first guess, and a right one: copies come in runs
    was_right: bool = False  # whether the last first guess that is decided was right
    # Drafts of a pure drafter that the text has not reached the end of, and its draft of the full
    # budget in this step.
    watches: list[Watch] = field(default_factory=list)
    full: Draft | None = None
    idle: float = float("inf")  # steps since the last draft; the first probe need not wait
    # Steps up to the last one in which it drafted without a gap. After a gap it has to read what it
    # missed, the prompt above all: how long that takes says little.
    streak: int = 0

    @property
    def current(self) -> Rates:
        """The rates that hold now."""
        return self.rates[self.was_right]

    def read(self, request: Request) -> None:
        """Compare the watched drafts with the text so far."""
        self.full = None
        for watch in self.watches:
            was_right = watch.read(request.tokens)
            if was_right is not None:
                self.was_right = was_right
        self.watches = [watch for watch in self.watches if watch.undecided]

    def watch(self, request: Request, limit: int) -> None:
        """Have a pure drafter make a full draft, to be compared with what follows."""
        (self.full,) = drafts_of(self.drafter, [request], [limit])
        if self.full.num_nodes > 1:
            self.watches.append(Watch.over(self.full, request.position, self.current))

    def estimate(self, limit: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what to expect of the next draft, as `Rates.estimate`.

        A pure drafter's draft follows from the text, and so does its size.
        """
        if self.full is None:
            return self.current.estimate(limit)
        return self.current.estimate(min(limit, self.full.num_nodes - 1), is_sure=True)


@dataclass
class Record:
    """What is known of one request."""

    limit: int  # the largest budget of any draft
    sources: dict[Drafter, Source] = field(default_factory=dict)
    source: Source | None = None  # of this step; None where nothing may be drafted
    emitted: int = 0  # tokens so far, and so the steps that plain decoding would have taken
    earned: float = 0.0  # in plain steps: tokens accepted, less what the steps cost more

    def look(self, request: Request, drafter: Drafter | None, limit: int) -> None:
        """Read the text so far, and find the drafter that drafts next."""
        for source in self.sources.values():
            source.read(request)
        self.source = None
        if drafter is not None and limit > 0:
            part = drafter.choose(request, limit)
            if part not in self.sources:
                wrong = Rates(self.limit, was_right=False, copies=part.is_pure)
                right = Rates(self.limit, was_right=True, copies=part.is_pure)
                self.sources[part] = Source(part, (wrong, right))
            self.source = self.sources[part]
            if part.is_pure:
                self.source.watch(request, limit)
