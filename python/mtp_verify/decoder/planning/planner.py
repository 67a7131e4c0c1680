"""Chooses how many nodes the next drafts may have: what they will gain against what they will cost.

A budget is chosen from the tokens emitted so far and the costs alone, never from what is drawn:
that keeps every rule lossless for every law of a draft. Drafts that follow from the text,
those of pure drafters, may be looked at.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from mtp_verify._core import Draft
from mtp_verify.decoder.planning.budgets import MARGIN, best_budget, best_budgets
from mtp_verify.decoder.planning.drafting import DraftingCost
from mtp_verify.decoder.planning.records import Record, Source
from mtp_verify.drafters.base import drafts_of
from mtp_verify.verifier.intake import as_count, check_callable, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mtp_verify.decoder.planning.costs import CostModel
    from mtp_verify.drafters.base import Drafter, Request
    from mtp_verify.drafters.sketch import Sketch

__all__ = ["Plan", "Planner"]

# A request whose drafts have cost more than they earned, by this share of plain decoding and this
# many steps besides, drafts only where much is promised: it then loses no more than about that.
_LOSS_SHARE, _LOSS_STEPS = 0.01, 0.3
_STRICT_MARGIN = 1.5
# A probe is a small draft against better knowledge. Together they may cost this share of the time.
_PROBE_NODES = 2
_PROBE_SHARE = 0.01


@dataclass(frozen=True)
class Plan:
    """What was decided for one request and step."""

    budget: int  # most draft nodes; 0 decodes plainly
    is_probe: bool = False  # drafted to learn, not because it promises to pay


class Planner:
    """Plans the width of steps so that requests are fastest.

    Each request's gain is estimated from what became of its earlier drafts, decayed, node by node.
    Requests that share a forward are planned jointly (`budgets`).

    A drafter whose `is_pure` is True (`NGram`, `Suffix`, `Recycling`) is asked for a full draft at
    every step, which is compared with the text as that grows, run or not. Others are probed now and
    then while they do not pay, so rarely that it costs 1 %.

    Output keeps its distribution whatever is planned. With "greedy" and `rule="coupled"` its tokens
    do not depend on the plans at all. Under other rules a sampled text repeats for the same seed,
    costs and companions in the batch if its drafter is pure; that of a drafter that has to be timed
    may differ from run to run.

    Args:
        costs: of the target's forward, such as `MeasuredCosts(target)`.
        max_nodes: the largest budget.
        clock: seconds; times drafters that are not pure.

    Raises:
        ParamsError: max_nodes below 1.

    Example:
        >>> from mtp_verify.decoder.planning import Costs
        >>> planner = Planner(Costs({1: {1: 0.010, 9: 0.012}}), max_nodes=8)
        >>> planner.plan([request], [drafter], [8])  # doctest: +SKIP
        [Plan(budget=8, is_probe=False)]

    References:
        Sequoia, arXiv 2402.12374 (hardware-aware size); SmartSpec, arXiv 2406.14066 (goodput).
    """

    def __init__(
        self, costs: CostModel, *, max_nodes: int = 32, clock: Callable[[], float] = perf_counter
    ) -> None:
        if not callable(getattr(costs, "forward", None)) or isinstance(costs, type):
            message = f"costs: found {shown(costs)}, wanted Costs, MeasuredCosts or the like"
            raise TypeError(message)
        check_callable("clock", clock)
        self.costs = costs
        self.max_nodes = as_count("max_nodes", max_nodes)
        self._clock = clock
        self._records: dict[int, Record] = {}
        self._curves: dict[int, NDArray[np.float64]] = {}
        self._drafting: WeakKeyDictionary[Drafter, DraftingCost] = WeakKeyDictionary()
        self._spent: list[tuple[Drafter, float, int]] = []  # In the step that is under way.

    def __getstate__(self) -> dict[str, Any]:
        """Keep settings and costs; what drafting has cost belongs to drafters of this process.

        Raises:
            TypeError: requests are in flight.
        """
        if self._records or self._spent:
            found = f"{len(self._records)} requests in flight; forget them first"
            message = f"Planner: cannot be pickled or copied while it plans {found}"
            raise TypeError(message)
        return {"costs": self.costs, "max_nodes": self.max_nodes, "clock": self._clock}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As the constructor."""
        self.__init__(**state)  # type: ignore[misc]

    def __repr__(self) -> str:
        """Show the settings."""
        return f"Planner({self.costs!r}, max_nodes={self.max_nodes})"

    def plan(
        self,
        requests: Sequence[Request],
        drafters: Sequence[Drafter | None],
        limits: Sequence[int],
        *,
        together: bool = False,
        ragged: bool = False,
    ) -> list[Plan]:
        """Choose the budgets of one step.

        Args:
            requests: all that take part.
            drafters: theirs; None decodes plainly.
            limits: the most nodes that are of use to each.
            together: they share one forward; else each has its own.
            ragged: what they share costs what its nodes do; else it is padded to the widest.
        """
        limits = [
            0 if drafter is None else max(0, min(limit, self.max_nodes))
            for drafter, limit in zip(drafters, limits, strict=True)
        ]
        records = []
        for request, drafter, limit in zip(requests, drafters, limits, strict=True):
            record = self._records.setdefault(request.id, Record(self.max_nodes))
            record.look(request, drafter, limit)
            records.append(record)
        sources = [record.source for record in records]
        prices = [self._price(source) for source in sources]
        nothing = np.zeros(self.max_nodes)
        # Nothing but a probe is asked of a drafter whose cost is not known yet.
        known = [
            (nothing, nothing) if source is None or price is None else source.estimate(limit)
            for source, price, limit in zip(sources, prices, limits, strict=True)
        ]
        drafted, kept = (np.stack(part) for part in zip(*known, strict=True))
        plans, everyone = [Plan(0)] * len(requests), range(len(requests))
        calls = _calls(sources)
        for group in [list(everyone)] if together else [[i] for i in everyone]:
            curve = self._curve(len(group))
            costs = np.array([prices[i] or (0.0, 0.0) for i in group])
            if not together:  # The others' drafts are made in the same call.
                costs[:, 0] /= calls.count(calls[group[0]])
            own = [calls[i] for i in group]
            if together and ragged:
                # Each pays for its own nodes, and answers for them alone.
                margins = np.array([_margin([records[i]]) for i in group])
                believed = kept[group] * (MARGIN / margins)[:, None]
                budgets = best_budgets(drafted[group], believed, costs, curve, MARGIN, own)
            else:
                margin = _margin([records[i] for i in group])
                chosen, budget = best_budget(drafted[group], kept[group], costs, curve, margin, own)
                budgets = [budget * (member in chosen) for member in range(len(group))]
            for i, most in zip(group, budgets, strict=True):
                plans[i] = Plan(min(most, limits[i]))
            for i in group:
                source = sources[i]
                if source is not None and source.full is None and plans[i].budget == 0:
                    plans[i] = _probe(source, limits[i], prices[i], curve, len(group))
        return plans

    def propose(
        self,
        drafter: Drafter,
        requests: Sequence[Request],
        plans: Sequence[Plan],
        ask: Callable[
            [Drafter, Sequence[Request], Sequence[int]], Sequence[Draft | Sketch]
        ] = drafts_of,
    ) -> Sequence[Draft | Sketch]:
        """Have a drafter make the drafts of one step, by `ask`, and see how long it takes."""
        sources = [self._records[request.id].source for request in requests]
        if drafter.is_pure:
            return [_cut(*each) for each in zip(sources, requests, plans, strict=True)]
        start = self._clock()
        drafts = ask(drafter, requests, [plan.budget for plan in plans])
        spent = self._clock() - start
        # What copies is as good as free: the time is that of the others, by their nodes.
        timed = [
            (source, draft.num_nodes - 1)
            for source, draft in zip(sources, drafts, strict=True)
            if source is not None and source.full is None
        ]
        if all(source.streak > 0 for source, _ in timed):
            nodes: dict[Drafter, int] = {}
            for source, num in timed:
                nodes[source.drafter] = nodes.get(source.drafter, 0) + num
            total = max(1, sum(nodes.values()))
            self._spent += [(part, spent * num / total, num) for part, num in nodes.items()]
        return drafts

    def learn(
        self,
        requests: Sequence[Request],
        plans: Sequence[Plan],
        drafts: Sequence[Draft],
        paths: Sequence[Sequence[int] | None],
        *,
        forward: float | None = None,
        together: bool = False,
        ragged: bool = False,
    ) -> None:
        """Learn what became of the drafts of a step, in the order of `plan`.

        `paths` are the accepted nodes of each draft, None for a request that failed; `forward` the
        seconds of the target's forward, None if prompts were run in it; `together` as in `plan`.
        """
        widths = [draft.num_nodes for draft in drafts]
        forwards = self._forwards(widths, together=together, ragged=ragged)
        self._charge(requests, drafts, paths, forwards, together=together, ragged=ragged)
        for request, plan, draft, path in zip(requests, plans, drafts, paths, strict=True):
            record = self._records[request.id]
            source = record.source
            for other in record.sources.values():
                has_drafted = other is source and path is not None and draft.num_nodes > 1
                other.streak = other.streak + 1 if has_drafted else 0
            if path is None or plan.budget < 1 or source is None or source.full is not None:
                continue
            num_nodes = draft.num_nodes - 1
            source.current.count_draft(num_nodes, plan.budget)
            source.idle = 0.0
            if num_nodes:
                source.current.count_nodes(range(1, num_nodes + 1), set(path))
                source.was_right = len(path) > 0
        spent, self._spent = self._spent, []
        if forward is None or not spent:
            return
        # Drafting and forward of one step suffer alike from the machine's load: their ratio counts.
        usual = forwards[0] if together else sum(forwards)
        for drafter, seconds, num_nodes in spent:
            if num_nodes:
                cost = self._drafting.setdefault(drafter, DraftingCost())
                cost.count(num_nodes, seconds / max(forward, 1e-9) * usual)

    def forget(self, request: Request) -> None:
        """Drop what is known of a request; unknown ones are ignored."""
        self._records.pop(request.id, None)

    def _charge(
        self,
        requests: Sequence[Request],
        drafts: Sequence[Draft],
        paths: Sequence[Sequence[int] | None],
        forwards: Sequence[float],
        *,
        together: bool,
        ragged: bool,
    ) -> None:
        """Count what the step's drafts have earned and cost.

        A shared step costs all alike, one that is ragged each by its nodes.
        """
        nodes = [draft.num_nodes - 1 for draft in drafts]
        plain = self._curve(len(drafts) if together else 1)[0]
        records = [self._records[request.id] for request in requests]
        sources = [record.source for record in records]
        calls = _calls(sources)
        sharers = Counter(call for call, num in zip(calls, nodes, strict=True) if num)
        drafting = []
        for source, call, num in zip(sources, calls, nodes, strict=True):
            fixed, unit = self._price(source) or (0.0, 0.0)
            drafting.append(fixed / sharers[call] + unit * num if num else 0.0)
        total = sum(drafting)
        more = [
            forward - plain + (total if together else own)
            for forward, own in zip(forwards, drafting, strict=True)
        ]
        if together and ragged:
            shares = [len(nodes) * num / max(1, sum(nodes)) for num in nodes]
            more = [seconds * share for seconds, share in zip(more, shares, strict=True)]
        for record, path, seconds in zip(records, paths, more, strict=True):
            if path is not None:
                record.emitted += len(path) + 1
                record.earned += len(path) - seconds / plain

    def _price(self, source: Source | None) -> tuple[float, float] | None:
        """Return the seconds of drafting at all and for each node, or None if they are unknown."""
        if source is None or source.full is not None:
            return 0.0, 0.0
        cost = self._drafting.get(source.drafter)
        return None if cost is None else cost.price()

    def _forwards(self, widths: Sequence[int], *, together: bool, ragged: bool) -> list[float]:
        """Return the seconds of each request's forward, the same one where they share it."""
        if not together:
            return [self.costs.forward(width) for width in widths]
        count = len(widths)
        if not ragged:
            return [self.costs.forward(max(widths), count)] * count
        nodes = sum(widths) / count - 1.0
        curve = self._curve(count)
        return [float(np.interp(nodes, np.arange(len(curve)), curve))] * count

    def _curve(self, batch: int) -> NDArray[np.float64]:
        """Return (max_nodes + 1,) seconds of a forward with 0, 1, ... draft nodes."""
        if batch not in self._curves:
            widths = range(1, self.max_nodes + 2)
            self._curves[batch] = np.array([self.costs.forward(width, batch) for width in widths])
        return self._curves[batch]


def _calls(sources: Sequence[Source | None]) -> list[int]:
    """Return for each request the number of the call that drafts for it: one for each drafter."""
    numbers: dict[Drafter | None, int] = {}
    parts = [None if source is None else source.drafter for source in sources]
    return [numbers.setdefault(part, len(numbers)) for part in parts]


def _cut(source: Source | None, request: Request, plan: Plan) -> Draft:
    """Return a pure drafter's draft of the planned size: often the one that is watched."""
    if source is None or source.full is None or plan.budget == 0:
        return Draft.chain([], root=request.tokens[-1])
    if source.full.num_nodes - 1 <= plan.budget:
        return source.full
    return drafts_of(source.drafter, [request], [plan.budget])[0]


def _probe(
    source: Source,
    limit: int,
    price: tuple[float, float] | None,
    curve: NDArray[np.float64],
    batch: int,
) -> Plan:
    """Draft a little in two steps running once enough plain ones have passed, else not at all."""
    nodes = min(_PROBE_NODES, limit)
    if source.streak == 1:
        # The first one has read what was missed, and is not timed.
        return Plan(nodes, is_probe=True)
    source.idle += 1.0
    if price is not None:
        fixed, unit = price
        extra = (curve[nodes] + fixed + unit * nodes) / curve[0] - 1.0
        if source.idle * _PROBE_SHARE < 2.0 * extra * batch:
            return Plan(0)
    return Plan(nodes, is_probe=True)


def _margin(group: Sequence[Record]) -> float:
    """Return the gain that drafting must promise to requests that share a forward."""
    lost = -sum(record.earned for record in group)
    allowed = sum(_LOSS_STEPS + _LOSS_SHARE * record.emitted for record in group)
    return _STRICT_MARGIN if lost > allowed else MARGIN
