"""The law of a step on a device, by enumeration of the numbers that decide it.

A device's `run` takes its uniform numbers from the step where they are given. The reference says
which numbers a rule consults on a draft, and at which thresholds its answer changes; so the space
of numbers falls into cells of one outcome each. The device is asked in the middle of every cell,
and close to both ends of each interval of it: if it answers as the cell says, its thresholds are
the reference's to within `INSET`. Numbers that the reference does not consult are drawn at random:
they must not matter.

Summed over all drafts that the law of the draft can give, the cells' weights are the law of what a
step emits. It must be the target's.

Rows are those that the core reads (`mtp_verify._core.shaped_row`), so that nothing but the
decisions is compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from mtp_verify import _core
from mtp_verify.verifier import reference
from mtp_verify.verifier.kernels.device.drafts import DeviceDrafts
from mtp_verify.verifier.kernels.device.verifier import DeviceVerifier
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from mtp_verify.verifier.kernels.device.layout import Capacity, Step
    from mtp_verify.verifier.words import Law, RuleName

__all__ = [
    "BOUND",
    "INSET",
    "MODELS",
    "PAIRS",
    "Case",
    "Finding",
    "Model",
    "cases",
    "find_law",
    "prove_device",
]

# How near to the ends of a cell the device is asked. A threshold is a quotient of what rounding has
# left, so where little is left its error is larger than that of a number.
INSET = 1e-10
# How far the law of a step may be from the target's, in total variation. Cells narrower than
# `_NARROW` are not asked about: they must weigh less than this, too.
BOUND = 1e-12
_NARROW = 1e-9

# Requests of one step.
_BATCH = 2048


class Model(NamedTuple):
    """Rows of weights of a target and of a drafter.

    The row after a path of tokens is number ``(length + sum of the tokens) mod (number of rows)``.
    """

    name: str
    target: NDArray[np.float64]
    drafter: NDArray[np.float64]


def _model(name: str, target: list[list[float]], drafter: list[list[float]]) -> Model:
    return Model(name, np.array(target), np.array(drafter))


MODELS = (
    _model("alike", [[2, 3, 5], [4, 4, 2]], [[3, 3, 4], [5, 3, 2]]),
    _model("zeros", [[0, 1, 1], [3, 1, 0], [1, 0, 0]], [[1, 1, 0], [1, 0, 3], [1, 1, 1]]),
    _model("apart", [[1, 2, 3, 4], [8, 1, 1, 0]], [[4, 3, 2, 1], [1, 1, 1, 5]]),
    _model("peaked", [[997, 2, 1], [1, 1, 998]], [[990, 5, 5], [2, 996, 2]]),
)

# Which laws each rule is tried on, and on trees of which shapes: children by depth.
_CHAINS = ((), (1,), (1, 1), (1, 1, 1))
_TREES = ((2,), (3,), (2, 1), (1, 2))
PAIRS: dict[tuple[RuleName, Law], tuple[tuple[int, ...], ...]] = {
    ("target_only", "deterministic"): ((1,), (2, 1)),
    ("target_only", "swor"): ((2,),),
    **{(rule, "chain"): _CHAINS for rule in ("topdown", "lifted")},
    **{
        (rule, law): _TREES
        for rule in ("topdown", "lifted")
        for law in ("iid", "swor", "top_plus_one", "mixed")
    },
}


@dataclass(frozen=True)
class Case:
    """A rule on drafts of one law and shape from one model.

    Attributes:
        model: Its rows.
        rule: The rule's name.
        law: Of the drafts.
        shape: How many children a node has, by its depth.
        params: How both models' logits are shaped.
        is_logits: Whether the drafter's rows are given as logits, or as probabilities.
    """

    model: Model
    rule: RuleName
    law: Law
    shape: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    is_logits: bool = False


@dataclass(frozen=True)
class Finding:
    """What the enumeration of a case gave.

    Attributes:
        case: The case.
        drafts: How many there are.
        cells: Of numbers, over all drafts.
        asked: How often the device was asked.
        distance: From the law of what is emitted, continued by the target, to the target's.
        left_out: The weight of cells that are too narrow to be asked about.
        mistakes: Where the device answered otherwise than the reference: draft, numbers, answers.
    """

    case: Case
    drafts: int
    cells: int
    asked: int
    distance: float
    left_out: float
    mistakes: list[str]

    @property
    def holds(self) -> bool:
        """Whether the device's law is the target's."""
        return not self.mistakes and max(self.distance, self.left_out) <= BOUND


def cases(models: Sequence[Model] = MODELS) -> Iterator[Case]:
    """List all cases: every pair on every model, some of them shaped, with both kinds of rows."""
    shaped = SamplingParams(temperature=0.5, top_k=3, top_p=0.95, min_p=0.01)
    for (rule, law), shapes in PAIRS.items():
        for number, model in enumerate(models):
            for shape in shapes:
                yield Case(model, rule, law, shape, is_logits=number % 2 > 0)
            yield Case(model, rule, law, shapes[-1][:2], shaped, is_logits=True)


def prove_device(
    run: Callable[[Step, Any], None],
    workspace: Callable[[Capacity, torch.device], Any],
    device: torch.device | str = "cpu",
    *,
    asks_ends: bool = True,
) -> list[dict[str, Any]]:
    """Enumerate all cases on a device; return a line for each pair of rule and law.

    Args:
        run: As for `find_law`, as all that follow.
        workspace: Of a backend.
        device: Where it runs.
        asks_ends: Whether to ask at the ends of cells, too.
    """
    found: dict[tuple[str, str], list[Finding]] = {}
    for case in cases():
        finding = find_law(case, run, workspace, device, asks_ends=asks_ends)
        found.setdefault((case.rule, case.law), []).append(finding)
    return [
        {
            "rule": rule,
            "law": law,
            "cases": len(own),
            "drafts": sum(finding.drafts for finding in own),
            "cells": sum(finding.cells for finding in own),
            "asked": sum(finding.asked for finding in own),
            "distance": max(finding.distance for finding in own),
            "left_out": max(finding.left_out for finding in own),
            "bound": BOUND,
            "mistakes": [text for finding in own for text in finding.mistakes],
            "holds": all(finding.holds for finding in own),
        }
        for (rule, law), own in found.items()
    ]


class _Rows:
    """The rows of a case, as they are given and as the core reads them."""

    def __init__(self, case: Case) -> None:
        with np.errstate(divide="ignore"):
            self.target = np.log(case.model.target).astype(np.float32)
            self.drafter = np.log(case.model.drafter).astype(np.float32)
        self.p = [_core.shaped_row(row[None], case.params) for row in self.target]
        if case.is_logits:
            self.q = [_core.shaped_row(row[None], case.params) for row in self.drafter]
            return
        shaped = [reference.shaped(row, case.params) for row in self.drafter]
        self.drafter = np.array(shaped, np.float32)
        self.q = [row / row.sum() for row in self.drafter.astype(np.float64)]

    def after(self, path: tuple[int, ...], rows: Sequence[Any] | NDArray[Any]) -> Any:
        """Return the row after a path."""
        return rows[(len(path) + sum(path)) % len(rows)]


class _Draft(NamedTuple):
    """A draft that a law can give, and how likely it does."""

    parents: list[int]
    tokens: list[int]
    sampled: list[bool]
    paths: list[tuple[int, ...]]
    weight: float


class _Cell(NamedTuple):
    """A set of numbers of one outcome.

    Attributes:
        intervals: Of the numbers that are consulted, by node and purpose.
        node: Where the rule stops.
        token: What it emits there.
    """

    intervals: dict[tuple[int, int], tuple[float, float]]
    node: int
    token: int

    @property
    def weight(self) -> float:
        """The probability of the cell."""
        return math.prod(high - low for low, high in self.intervals.values())


def find_law(
    case: Case,
    run: Callable[[Step, Any], None],
    workspace: Callable[[Capacity, torch.device], Any],
    device: torch.device | str = "cpu",
    *,
    asks_ends: bool = True,
) -> Finding:
    """Enumerate one step of a case on a device.

    Args:
        case: What to enumerate.
        run: A backend's.
        workspace: Makes what it needs for steps of some capacity.
        device: Where it runs.
        asks_ends: Whether to ask at the ends of cells, too, and not in their middles alone.
    """
    rows = _Rows(case)
    drafts = list(_drafts(case, rows))
    asked: list[tuple[_Draft, _Cell, float, dict[tuple[int, int], float]]] = []
    num_cells, left_out = 0, 0.0
    for draft in drafts:
        for cell in _cells(case, rows, draft):
            num_cells += 1
            widths = [high - low for low, high in cell.intervals.values()]
            if min(widths, default=1.0) < _NARROW:
                left_out += float(draft.weight * cell.weight)
                continue
            # The law is that of the answers in the middles.
            for number, numbers in enumerate(_points(cell, asks_ends=asks_ends)):
                weight = 0.0 if number else draft.weight * cell.weight
                asked.append((draft, cell, weight, numbers))
    law: dict[tuple[int, ...], float] = {}
    mistakes = []
    rng = np.random.default_rng(0)
    for start in range(0, len(asked), _BATCH):
        part = asked[start : start + _BATCH]
        questions = [(draft, numbers) for draft, _, _, numbers in part]
        answers = _ask(case, rows, questions, run, workspace, torch.device(device), rng)
        for (draft, cell, weight, numbers), (tokens, path) in zip(part, answers, strict=True):
            law[tokens] = law.get(tokens, 0.0) + weight
            wanted = draft.paths[cell.node]
            if tokens != (*wanted, cell.token) or len(path) != len(wanted):
                mistakes.append(
                    f"{case.rule} {case.law} {draft.parents} {draft.tokens} {numbers}: "
                    f"found {tokens}, wanted {(*wanted, cell.token)}"
                )
    distance = _distance(case, rows, law)
    return Finding(case, len(drafts), num_cells, len(asked), distance, left_out, mistakes)


# --- Drafts ---------------------------------------------------------------------------------------


def _drafts(case: Case, rows: _Rows) -> Iterator[_Draft]:
    """List the drafts of a case."""

    def grow(draft: _Draft, node: int) -> Iterator[_Draft]:
        """Give children to a node, and then to those that follow it."""
        if node == len(draft.parents):
            yield draft
            return
        path = draft.paths[node]
        count = case.shape[len(path)] if len(path) < len(case.shape) else 0
        for children, weight in _children(case.law, count, rows.after(path, rows.q), len(path)):
            tokens = [token for token, _ in children]
            grown = _Draft(
                [*draft.parents, *[node] * len(children)],
                [*draft.tokens, *tokens],
                [*draft.sampled, *(is_sampled for _, is_sampled in children)],
                [*draft.paths, *((*path, token) for token in tokens)],
                draft.weight * weight,
            )
            yield from grow(grown, node + 1)

    return grow(_Draft([-1], [-1], [False], [()], 1.0), 0)


def _children(
    law: Law, count: int, q: NDArray[np.float64], depth: int
) -> Iterator[tuple[list[tuple[int, bool]], float]]:
    """List what `count` children of a node can be: token and whether it was drawn; and how likely.

    Drawing ends where the drafter has no token left.
    """
    best = [int(token) for token in np.argsort(-q, kind="stable") if q[token] > 0]
    sets = {"top_plus_one": best[: count - 1], "mixed": [depth % len(q)]}
    in_set = sets.get(law, [])
    if law == "deterministic" or count == 0:
        yield [(token, False) for token in best[:count]], 1.0
        return
    most = 1 if law == "top_plus_one" else count - len(in_set)

    def draw(taken: list[int], weight: float) -> Iterator[tuple[list[int], float]]:
        left = q.copy()
        left[in_set if law == "iid" else [*in_set, *taken]] = 0
        total = left.sum()
        if len(taken) >= most or not total > 0:
            yield taken, weight
            return
        for token in np.flatnonzero(left > 0):
            yield from draw([*taken, int(token)], weight * left[token] / total)

    for taken, weight in draw([], 1.0):
        yield [*((token, True) for token in taken), *((token, False) for token in in_set)], weight


# --- Cells ----------------------------------------------------------------------------------------


class _Splitter(reference.Noise):
    """Noise that takes one piece of the interval of a number at each open question."""

    def __init__(self, script: list[list[int]]) -> None:
        super().__init__(seed=0, position=0)
        self._script = script  # The piece taken and how many there were, of each open question.
        self._asked = 0
        self.intervals: dict[tuple[int, int], tuple[float, float]] = {}

    def accept(self, node: int, probability: float) -> bool:
        """Answer by the part of the interval below the probability, or by that above."""
        if probability <= 0 or probability >= 1:
            return probability >= 1
        return self._take((node, reference.ACCEPT), [probability]) == 0

    def draw(self, node: int, row: Any, purpose: int = reference.SAMPLE) -> int:
        """Answer by the cell of one token."""
        positive = np.flatnonzero(row > 0)
        ends = np.cumsum(row[positive])
        return int(positive[self._take((node, purpose), (ends[:-1] / ends[-1]).tolist())])

    def _take(self, address: tuple[int, int], thresholds: list[float]) -> int:
        """Take one of the pieces into which thresholds divide the number's interval."""
        low, high = self.intervals.get(address, (0.0, 1.0))
        edges = [low, *(min(max(edge, low), high) for edge in thresholds), high]
        live = [i for i in range(len(edges) - 1) if edges[i] < edges[i + 1]]
        if len(live) > 1:
            if self._asked == len(self._script):
                self._script.append([0, len(live)])
            live = [live[self._script[self._asked][0]]]
            self._asked += 1
        taken = live[0]
        self.intervals[address] = edges[taken], edges[taken + 1]
        return taken


def _cells(case: Case, rows: _Rows, draft: _Draft) -> Iterator[_Cell]:
    """List the cells of numbers by which the reference decides a draft."""
    tree = reference.Tree(
        parents=draft.parents,
        tokens=draft.tokens,
        target=np.array([rows.after(path, rows.p) for path in draft.paths]),
        drafter=np.array([rows.after(path, rows.q) for path in draft.paths]),
        sampled=draft.sampled,
        law=case.law,
    )
    script: list[list[int]] = []
    while True:
        noise = _Splitter(script)
        node, token = reference.decide(tree, case.rule, noise)
        yield _Cell(noise.intervals, node, token)
        while script and script[-1][0] + 1 == script[-1][1]:
            script.pop()
        if not script:
            return
        script[-1][0] += 1


def _points(cell: _Cell, *, asks_ends: bool) -> Iterator[dict[tuple[int, int], float]]:
    """List numbers in a cell: its middle, and near both ends of each interval."""
    middle = {address: (low + high) / 2 for address, (low, high) in cell.intervals.items()}
    yield middle
    for address, (low, high) in cell.intervals.items() if asks_ends else ():
        for number in (low + INSET * (low > 0), high - INSET):
            yield {**middle, address: number}


# --- The device -----------------------------------------------------------------------------------


def _ask(
    case: Case,
    rows: _Rows,
    questions: list[tuple[_Draft, dict[tuple[int, int], float]]],
    run: Callable[[Step, Any], None],
    workspace: Callable[[Capacity, torch.device], Any],
    device: torch.device,
    rng: np.random.Generator,
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Decide drafts by given numbers, in one step; return the tokens and the path of each."""
    offsets = np.cumsum([0, *(len(draft.parents) for draft, _ in questions)])
    paths = [path for draft, _ in questions for path in draft.paths]
    logits = torch.tensor(np.array([rows.after(path, rows.target) for path in paths]))
    drafter = torch.tensor(np.array([rows.after(path, rows.drafter) for path in paths])).to(device)
    given = rng.random((len(paths), 2))
    for (_, numbers), start in zip(questions, offsets, strict=False):
        for (node, purpose), number in numbers.items():
            given[start + node, purpose - reference.ACCEPT] = number
    flags = [flag for draft, _ in questions for flag in draft.sampled]
    drafts = DeviceDrafts(
        offsets=offsets,
        parents=[parent for draft, _ in questions for parent in draft.parents],
        tokens=[token for draft, _ in questions for token in draft.tokens],
        law=case.law,
        probs=None if case.is_logits else drafter,
        logits=drafter if case.is_logits else None,
        params=case.params,
        sampled=flags if case.law in ("top_plus_one", "mixed") else None,
    )
    verifier = DeviceVerifier(
        len(questions), len(paths), logits.shape[1], torch.float32, device=device, backend="torch"
    )
    nothing = [0] * len(questions)
    verifier.plan(drafts, case.params, rule=case.rule, seeds=nothing, positions=nothing)
    step = verifier.step(logits.to(device))._replace(given=torch.tensor(given).to(device))
    run(step, workspace(step.capacity, device))
    verdicts = verifier.host()
    listed = (verdicts[request] for request in range(len(questions)))
    return [(tuple(v.tokens.tolist()), tuple(v.path.tolist())) for v in listed]


def _distance(case: Case, rows: _Rows, law: dict[tuple[int, ...], float]) -> float:
    """Return the total variation between a law, continued by the target, and the target's own."""
    length = len(case.shape) + 1
    found: dict[tuple[int, ...], float] = {}
    wanted: dict[tuple[int, ...], float] = {}

    def go_on(into: dict[tuple[int, ...], float], tokens: tuple[int, ...], weight: float) -> None:
        if len(tokens) >= length:
            into[tokens] = into.get(tokens, 0.0) + weight
            return
        for token, p in enumerate(rows.after(tokens, rows.p)):
            if p > 0:
                go_on(into, (*tokens, token), weight * p)

    go_on(wanted, (), 1.0)
    for tokens, weight in law.items():
        go_on(found, tokens, weight)
    strings = found.keys() | wanted.keys()
    return float(sum(abs(found.get(s, 0.0) - wanted.get(s, 0.0)) for s in strings) / 2)
