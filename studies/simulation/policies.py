"""How large the drafts of a simulated step are: none, fixed, or planned by the real planner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from mtp_verify.decoder.planning import Plan, Planner
from mtp_verify.drafters.base import Drafter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify import Draft
    from mtp_verify.decoder.planning.costs import CostModel
    from mtp_verify.drafters.base import Request
    from studies.simulation.drafts import Drafts

__all__ = ["Fixed", "Planned", "Policy"]


class Policy(Protocol):
    """Chooses budgets."""

    def plan(self, requests: Sequence[Request], limits: Sequence[int]) -> list[int]:
        """Return the budget of each request."""

    def learn(self, drafts: Sequence[Draft], paths: Sequence[list[int]], forward: float) -> None:
        """Take note of what became of the drafts of the requests last planned for."""

    def forget(self, request: Request) -> None:
        """Drop what is known of a request."""


class Fixed:
    """The same budget always; 0 is plain decoding."""

    def __init__(self, budget: int) -> None:
        self._budget = budget

    def plan(self, requests: Sequence[Request], limits: Sequence[int]) -> list[int]:
        """See `Policy.plan`."""
        del requests
        return [min(self._budget, limit) for limit in limits]

    def learn(self, drafts: Sequence[Draft], paths: Sequence[list[int]], forward: float) -> None:
        """See `Policy.learn`: nothing to learn."""

    def forget(self, request: Request) -> None:
        """See `Policy.forget`: nothing is known."""


class Planned(Drafter):
    """The package's planner, told simulated times.

    Args:
        costs: of the forward.
        drafts: what is drafted.
        level: seconds of drafting one level.
        max_nodes: largest budget.
    """

    def __init__(self, costs: CostModel, drafts: Drafts, level: float, max_nodes: int) -> None:
        self._drafts, self._level = drafts, level
        self._now = 0.0
        self._planner = Planner(costs, max_nodes=max_nodes, clock=lambda: self._now)
        self._requests: Sequence[Request] = ()
        self._plans: list[Plan] = []

    def plan(self, requests: Sequence[Request], limits: Sequence[int]) -> list[int]:
        """See `Policy.plan`."""
        source: Any = self
        self._requests = requests
        self._plans = self._planner.plan(requests, [source] * len(requests), limits, together=True)
        self._planner.propose(source, requests, self._plans)
        return [plan.budget for plan in self._plans]

    def propose(self, requests: Sequence[Request], budgets: Sequence[int]) -> list[Draft]:
        """Draft for the planner, which sees how long that takes."""
        del requests
        self._now += self._level * max(map(self._drafts.depth, budgets))
        return [self._drafts.of(budget) for budget in budgets]

    def learn(self, drafts: Sequence[Draft], paths: Sequence[list[int]], forward: float) -> None:
        """See `Policy.learn`."""
        self._planner.learn(
            self._requests, self._plans, drafts, paths, forward=forward, together=True
        )

    def forget(self, request: Request) -> None:
        """See `Policy.forget`."""
        self._planner.forget(request)
