"""The law of a step on a device, by enumeration of the numbers that decide it.

A device's `run` takes its uniform numbers from the step where they are given. The reference says
which numbers a rule consults on a draft, and at which thresholds its answer changes; so the space
of numbers falls into cells of one outcome each. The device is asked in the middle of every cell,
and close to the ends of its intervals: if it answers as the cell says, its thresholds are the
reference's to within `INSET`. Numbers that the reference does not consult are drawn at random:
they must not matter.

Summed over all drafts that the law of the draft can give, the cells' weights are the law of what a
step emits. It must be the target's.

The race of `coupled` has a number for each token, and none can be given. There, and in cases that
are about the noise itself, a device is asked at positions of its own noise that lie in each cell.
That the first of exponential times wins as often as its rate says is a theorem.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from mtp_verify.testing.device.cells import SEED, cells, places_in, points
from mtp_verify.testing.device.drafts import drafts
from mtp_verify.testing.device.rows import ROOT, Rows
from mtp_verify.verifier import reference
from mtp_verify.verifier.kernels.device.drafts import DeviceDrafts
from mtp_verify.verifier.kernels.device.verifier import DeviceVerifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mtp_verify.testing.device.cases import Case
    from mtp_verify.testing.device.cells import Asks, Cell
    from mtp_verify.testing.device.drafts import Drafted
    from mtp_verify.verifier.kernels.device.layout import Capacity, Step

    Run = Callable[[Step, Any], None]
    Workspaces = Callable[[Capacity, torch.device], Any]

__all__ = ["BOUND", "Finding", "find_law"]

# How far the law of a step may be from the target's, in total variation. Cells narrower than
# `_NARROW` are not asked about: they must weigh less than this, too.
BOUND = 1e-12
_NARROW = 1e-9
# How far a float32 log-probability may be off.
_LOGPROB = 1e-5

# Values of the logits of one step, and requests at most.
_VALUES = 1 << 20
_BATCH = 2048


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


class _Question(NamedTuple):
    """A draft and numbers that decide it.

    Attributes:
        draft: The draft.
        cell: In which the numbers lie.
        weight: What of the law the answer stands for.
        numbers: Given ones.
        position: Of the root, where numbers are those of the noise.
    """

    draft: Drafted
    cell: Cell
    weight: float
    numbers: dict[tuple[int, int], float]
    position: int


class _Answer(NamedTuple):
    """What a device wrote about a request.

    Attributes:
        tokens: The emitted ones.
        path: The accepted nodes.
        moves: Pairs of entries of a cache, from where to where.
        kept: How many were accepted, the entries of the cache that stay, and the last node.
        error: The bits of the status, and the node that it is about.
        logprobs: Of the tokens.
    """

    tokens: tuple[int, ...]
    path: tuple[int, ...]
    moves: tuple[tuple[int, int], ...]
    kept: tuple[int, int, int]
    error: tuple[int, int]
    logprobs: tuple[float, ...]


def find_law(
    case: Case,
    run: Run,
    workspace: Workspaces,
    device: torch.device | str = "cpu",
    *,
    asks: Asks = "ends",
) -> Finding:
    """Enumerate one step of a case on a device.

    Args:
        case: What to enumerate.
        run: A backend's.
        workspace: Makes what it needs for steps of some capacity.
        device: Where it runs.
        asks: Where in each cell.
    """
    rows = Rows(case)
    listed = list(drafts(case, rows))
    questions: list[_Question] = []
    num_cells, left_out = 0, 0.0
    for draft in listed:
        for cell in cells(case, rows, draft):
            num_cells += 1
            own = list(_questions(case, draft, cell, asks))
            left_out += 0.0 if own else float(draft.weight * cell.weight)
            questions += own
    law: dict[tuple[int, ...], float] = {}
    mistakes = []
    rng = np.random.default_rng(0)
    size = min(_BATCH, max(1, _VALUES // (rows.width * len(listed[0].parents))))
    for start in range(0, len(questions), size):
        part = questions[start : start + size]
        answers = _ask(case, rows, part, run, workspace, torch.device(device), rng)
        for number, (question, found) in enumerate(zip(part, answers, strict=True)):
            law[found.tokens] = law.get(found.tokens, 0.0) + question.weight
            wanted = _wanted(rows, question, start=_start(number))
            if found[:-1] != wanted[:-1] or not _are_near(found.logprobs, wanted.logprobs):
                draft = question.draft
                mistakes.append(
                    f"{case.rule} on {case}: {draft.parents} {draft.tokens} {question.numbers} "
                    f"{question.position}: found {found}, wanted {wanted}"
                )
    distance = _distance(case, rows, law)
    return Finding(case, len(listed), num_cells, len(questions), distance, left_out, mistakes)


def _questions(case: Case, draft: Drafted, cell: Cell, asks: Asks) -> Iterator[_Question]:
    """List what to ask about a cell, in its middle first: the law is that of the answers there."""
    weight = float(draft.weight * cell.weight)
    if case.has_noise:
        for number, position in enumerate(places_in(cell, asks)):
            yield _Question(draft, cell, 0.0 if number else weight, {}, position)
        return
    if min((high - low for low, high in cell.intervals.values()), default=1.0) < _NARROW:
        return
    for number, numbers in enumerate(points(cell, asks)):
        yield _Question(draft, cell, 0.0 if number else weight, numbers, 0)


def _start(number: int) -> int:
    """Return where the entries of a request begin in its cache: anywhere."""
    return 3 + number % 5


def _wanted(rows: Rows, question: _Question, *, start: int) -> _Answer:
    """Return what a device has to write."""
    draft, cell = question.draft, question.cell
    path = draft.nodes_to(cell.node)
    tokens = (*draft.paths[cell.node], cell.token)
    moves = ((start + node, start + level) for level, node in enumerate(path, 1) if node != level)
    kept = len(path), start + 1 + len(path), path[-1] if path else 0
    chances = (rows.p(tokens[:level])[token] for level, token in enumerate(tokens))
    logprobs = tuple(float(np.log(chance)) for chance in chances)
    return _Answer(tokens, path, tuple(moves), kept, (0, -1), logprobs)


def _are_near(found: tuple[float, ...], wanted: tuple[float, ...]) -> bool:
    """Return whether the log-probabilities of as many tokens agree."""
    return all(abs(a - b) <= _LOGPROB for a, b in zip(found, wanted, strict=True))


def _ask(
    case: Case,
    rows: Rows,
    questions: list[_Question],
    run: Run,
    workspace: Workspaces,
    device: torch.device,
    rng: np.random.Generator,
) -> list[_Answer]:
    """Decide drafts in one step; return what is written about each."""
    listed = [question.draft for question in questions]
    offsets = np.cumsum([0, *(len(draft.parents) for draft in listed)])
    paths = [path for draft in listed for path in draft.paths]
    logits = torch.tensor(np.array([rows.logits(path) for path in paths])).to(device)
    drafter = torch.tensor(rows.drafter()).to(device)
    given = rng.random((len(paths), 2))
    for question, start in zip(questions, offsets, strict=False):
        for (node, purpose), number in question.numbers.items():
            given[start + node, purpose - reference.ACCEPT] = number
    flags = [flag for draft in listed for flag in draft.sampled]
    tokens = np.array([token for draft in listed for token in draft.tokens])
    drafts_of_all = DeviceDrafts(
        offsets=offsets,
        parents=[parent for draft in listed for parent in draft.parents],
        tokens=np.where(tokens < 0, -1, rows.places[tokens]),
        law=case.law,
        probs=None if case.is_logits else drafter,
        logits=drafter if case.is_logits else None,
        params=rows.drafter_params,
        rows=[rows.number(path) for path in paths],
        vocab=rows.vocab,
        sampled=flags if case.law in ("top_plus_one", "mixed") else None,
    )
    verifier = DeviceVerifier(
        len(questions), len(paths), rows.width, torch.float32, device=device, backend="torch",
        max_depth=len(case.shape), max_drafted=len(drafter), columns=drafter.shape[1],
    )  # fmt: skip
    mask = rows.mask()
    verifier.plan(
        drafts_of_all,
        case.params,
        rule=case.rule,
        seeds=[SEED] * len(questions),
        positions=[question.position for question in questions],
        starts=[_start(number) for number in range(len(questions))],
        histories=[[ROOT]] * len(questions) if case.params.presence_penalty else None,
        prompt_lens=[1] * len(questions) if case.params.presence_penalty else None,
        bitmask=None if mask is None else np.tile(mask, (len(paths), 1)),
    )
    numbers = None if case.has_noise else torch.tensor(given).to(device)
    step = verifier.step(logits)._replace(given=numbers)
    run(step, workspace(step.capacity, device))
    return _answers(verifier, rows)


def _answers(verifier: DeviceVerifier, rows: Rows) -> list[_Answer]:
    """Return what is written about each request, its tokens as the model's."""
    token_of = np.full(rows.width + 1, -1)  # The last one for the -1 behind the emitted ones.
    token_of[rows.places] = range(len(rows.places))
    out = {name: values.cpu().numpy() for name, values in verifier.outcomes._asdict().items()}
    kept = zip(out["num_accepted"], out["length"], out["state_select"], strict=True)
    answers = []
    for number, (accepted, length, last) in enumerate(kept):
        emitted = out["tokens"][number]
        count = int((emitted >= 0).sum())
        pairs = [pair for pair in out["moves"][number].tolist() if pair != [-1, -1]]
        answers.append(
            _Answer(
                tuple(token_of[emitted[:count]].tolist()),
                tuple(node for node in out["path"][number].tolist() if node != -1),
                tuple((source, place) for source, place in pairs),
                (int(accepted), int(length), int(last)),
                (int(out["status"][number]), int(out["fault"][number])),
                tuple(out["logprobs"][number][:count].tolist()),
            )
        )
    return answers


def _distance(case: Case, rows: Rows, law: dict[tuple[int, ...], float]) -> float:
    """Return the total variation between a law, continued by the target, and the target's own."""
    length = len(case.shape) + 1
    found: dict[tuple[int, ...], float] = {}
    wanted: dict[tuple[int, ...], float] = {}

    def go_on(into: dict[tuple[int, ...], float], tokens: tuple[int, ...], weight: float) -> None:
        if len(tokens) >= length:
            into[tokens] = into.get(tokens, 0.0) + weight
            return
        for token, p in enumerate(rows.p(tokens)):
            if p > 0:
                go_on(into, (*tokens, token), weight * p)

    go_on(wanted, (), 1.0)
    for tokens, weight in law.items():
        go_on(found, tokens, weight)
    strings = found.keys() | wanted.keys()
    return float(sum(abs(found.get(s, 0.0) - wanted.get(s, 0.0)) for s in strings) / 2)
