"""The loop: propose, forward, verify, commit, for all requests in flight at once.

It is append-only: what it decides may depend on all that is known before a draw, but once a token
is drawn it is verified where it was drawn (docs/lossless-loops.md). So room is shared out before
anybody drafts, and a draft that is larger than its share is an error.

A request that goes wrong by itself (its draft, its rows, its criteria) ends alone, with its error
kept. Errors of the model or of a drafter's code belong to nobody: they are raised, after all caches
are rolled back to what was emitted.
"""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify._core import Draft, TokenTree, Verdict
from mtp_verify.decoder.planning import Plan
from mtp_verify.decoder.rows import check_draft
from mtp_verify.decoder.rules import rule_of_step
from mtp_verify.drafters.base import drafts_of
from mtp_verify.errors import MtpVerifyError, OutOfBlocksError
from mtp_verify.verifier.batch import verify_batch
from mtp_verify.verifier.cleanup import on_failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mtp_verify.decoder.planning import Planner
    from mtp_verify.decoder.rows import Row
    from mtp_verify.decoder.runners import Output, Runner
    from mtp_verify.drafters.base import Drafter
    from mtp_verify.models.target import Target

__all__ = ["Session"]


class Session:
    """Requests that are decoded together.

    Args:
        target: the model.
        runner: how it is run over many requests.
        max_batch: most requests in flight; others wait in the order in which they came.
        planner: chooses the budgets of drafts; None leaves their size to the drafters.
    """

    def __init__(
        self, target: Target, runner: Runner, max_batch: int, planner: Planner | None = None
    ) -> None:
        self._target = target
        self._runner = runner
        self._max_batch = max_batch
        self._planner = planner
        self._waiting: deque[tuple[Row, Any]] = deque()
        # Set when a row had to make room: nobody joins before somebody has ended.
        self._is_full = False
        # Plain decoding is verification of a draft that has no nodes but the root.
        self._empty = Draft(TokenTree([-1]), [-1])

    def __len__(self) -> int:
        """Number of requests in flight or waiting."""
        return len(self._runner.rows) + len(self._waiting)

    @property
    def rows(self) -> list[Row]:
        """The requests in flight, and those that wait."""
        return [*self._runner.rows, *(row for row, _ in self._waiting)]

    @torch.inference_mode()
    def add(self, row: Row, past: Any | None = None) -> None:
        """Take a request; it starts at the next step, or when there is room."""
        if self._waiting or not self._may_join():
            self._waiting.append((row, past))
            return
        try:
            self._start(row, past)
        except OutOfBlocksError:
            self._waiting.append((row, past))

    @torch.inference_mode()
    def cancel(self, request_id: int) -> Row | None:
        """End a request where it is; return its row, or None if it is not here."""
        for row in self._runner.rows:
            if row.request.id == request_id:
                row.finish = "cancelled"
                self._end(row)
                return row
        for item in self._waiting:
            if item[0].request.id == request_id:
                self._waiting.remove(item)
                item[0].finish = "cancelled"
                return item[0]
        return None

    @torch.inference_mode()
    def close(self) -> None:
        """Let go of all requests, whatever state they are in."""
        self._waiting.clear()
        with ExitStack() as ends:  # Goes on where one of them raises.
            for row in self._runner.rows:
                ends.callback(self._end, row)

    @torch.inference_mode()
    def step(self) -> list[tuple[Row, list[int]]]:
        """Do one step for each request in flight.

        Returns:
            Each request with the tokens that it emitted, none where it failed. Those with a
            `finish` have left.
        """
        began = perf_counter()
        refused = self._admit()
        self._make_room()
        rows = list(self._runner.rows)
        if not rows:
            return refused
        lengths = [len(row.request.tokens) for row in rows]
        with ExitStack() as ends:
            # A user's cache is left with tokens of the sequence alone, not with a draft's.
            for row in rows:
                ends.enter_context(on_failure(partial(self._runner.roll_back, row)))
            self._step(rows)
        for row in rows:
            if row.finish is not None:
                self._end(row)
        share = (perf_counter() - began) / len(rows)
        for row in rows:
            row.stats.total_seconds += share
        return refused + [
            (row, row.request.tokens[length:]) for row, length in zip(rows, lengths, strict=True)
        ]

    def _step(self, rows: list[Row]) -> None:
        clock = _Clock(rows)
        self._runner.prepare()
        clock.tick("target")
        try:
            plans, drafts = self._draft(rows)
        except OutOfBlocksError as error:
            # It is alone (`_make_room`), and there is no block left.
            for row in rows:
                _fail(row, error)
            return
        clock.tick("draft")
        outputs = self._runner.forward(drafts)
        forward = clock.tick("target")
        for drafter, members in _by_drafter(rows):
            drafter.observe(
                [rows[i].request for i in members],
                [drafts[i] for i in members],
                [outputs[i].logits for i in members],
            )
        # Those of the rows that have not failed, by place in the batch.
        verdicts = _emit(rows, drafts, outputs, _verify(rows, drafts, outputs))
        for row in rows:
            row.unfinished = None
        self._learn(rows, plans, drafts, verdicts, forward)
        clock.tick("verify")
        self._runner.commit(
            [rows[i] for i in verdicts],
            [drafts[i] for i in verdicts],
            list(verdicts.values()),
        )
        for drafter, members in _by_drafter(rows):
            for i in members:
                if i not in verdicts:
                    drafter.release(rows[i].request)
            kept = [i for i in members if i in verdicts]
            if not kept:
                continue
            hidden = [_committed(outputs[i], drafts[i], verdicts[i].path) for i in kept]
            has_hidden = any(states is not None for states in hidden)
            drafter.commit([verdicts[i] for i in kept], hidden if has_hidden else None)
        clock.tick("commit")

    def _draft(self, rows: list[Row]) -> tuple[list[Plan], list[Draft]]:
        """Plan and draft for each row; or take the drafts of a step that was not finished.

        Why it was not may depend on what was drawn, so that another draft would be biased.

        Raises:
            OutOfBlocksError: there is not even room for the roots.
        """
        if not all(row.unfinished for row in rows):
            plans = self._plan(rows, self._runner.room([row.budget for row in rows]))
            drafts = self._constrain(rows, self._propose(rows, plans))
            for row, plan, draft in zip(rows, plans, drafts, strict=True):
                row.unfinished = plan, draft
        made = [row.unfinished for row in rows if row.unfinished]
        return [plan for plan, _ in made], [draft for _, draft in made]

    def _plan(self, rows: list[Row], room: list[int]) -> list[Plan]:
        """Choose the budget of each row, at most what its cache has room for."""
        if self._planner is None:
            return [Plan(limit) for limit in room]
        plans = self._planner.plan(
            [row.request for row in rows],
            [row.drafter for row in rows],
            room,
            together=self._runner.shares_forwards,
        )
        for row, plan in zip(rows, plans, strict=True):
            if row.drafter is not None:
                row.stats.record_plan(plan.budget, is_probe=plan.is_probe)
        return plans

    def _learn(
        self,
        rows: list[Row],
        plans: list[Plan],
        drafts: list[Draft],
        verdicts: dict[int, Verdict],
        forward: float,
    ) -> None:
        """Tell the planner what became of the drafts."""
        if self._planner is not None:
            ran_prompts = any(row.stats.steps == 1 for row in rows)
            self._planner.learn(
                [row.request for row in rows],
                plans,
                drafts,
                [verdicts[i].path.tolist() if i in verdicts else None for i in range(len(rows))],
                forward=None if ran_prompts else forward,
                together=self._runner.shares_forwards,
            )

    def _propose(self, rows: list[Row], plans: list[Plan]) -> list[Draft]:
        """Draft for each row, one call per drafter; a draft that must not be run fails its row."""
        drafts = [self._empty] * len(rows)
        for drafter, members in _by_drafter(rows):
            requests = [rows[i].request for i in members]
            wanted = [plans[i] for i in members]
            if self._planner is None:
                proposed = drafts_of(drafter, requests, [plan.budget for plan in wanted])
            else:
                proposed = self._planner.propose(drafter, requests, wanted)
            for i, draft in zip(members, proposed, strict=True):
                drafts[i] = draft
        for i, row in enumerate(rows):
            try:
                check_draft(drafts[i], row, self._target, plans[i].budget)
            except MtpVerifyError as error:
                _fail(row, error)
                drafts[i] = self._empty
        return drafts

    def _constrain(self, rows: list[Row], drafts: list[Draft]) -> list[Draft]:
        """Mask each draft as its row's constraint says; one that cannot be fails its row."""
        masked = list(drafts)
        for i, row in enumerate(rows):
            if row.error is not None:
                continue
            try:
                masked[i] = row.constrain(drafts[i])
            except Exception as error:  # noqa: BLE001 - a user's matcher may raise anything
                _fail(row, error)
                masked[i] = self._empty
        return masked

    def _may_join(self) -> bool:
        rows = self._runner.rows
        # The drafts of a step that failed are run again, in the room that was found for them.
        is_redone = any(row.unfinished for row in rows)
        return len(rows) < self._max_batch and not self._is_full and not is_redone

    def _admit(self) -> list[tuple[Row, list[int]]]:
        """Start who waits, in order; return those that can never start, with what they emitted."""
        refused: list[tuple[Row, list[int]]] = []
        while self._waiting and self._may_join():
            row, past = self._waiting.popleft()
            try:
                self._start(row, past)
            except OutOfBlocksError as error:
                if self._runner.rows:
                    # Others will end and leave their blocks.
                    self._waiting.appendleft((row, past))
                    break
                _fail(row, error)
                refused.append((row, []))
        return refused

    def _make_room(self) -> None:
        """Send the youngest back to wait while the cache cannot take one more token of each.

        What it has emitted stays; its entries are computed again when it comes back.
        """
        while len(self._runner.rows) > 1 and not self._runner.has_room():
            row = max(self._runner.rows, key=lambda row: row.request.id)
            self._runner.remove(row)
            if row.drafter is not None:
                row.drafter.release(row.request)
            self._waiting.appendleft((row, None))
            self._is_full = True

    def _start(self, row: Row, past: Any | None) -> None:
        self._runner.add(row, past)
        if row.drafter is not None:
            with on_failure(partial(self._end, row)):
                row.drafter.start(row.request)

    def _end(self, row: Row) -> None:
        if row.error is not None:
            self._runner.roll_back(row)
        row.past = self._runner.remove(row)
        self._is_full = False
        if self._planner is not None:
            self._planner.forget(row.request)
        if row.drafter is not None:
            row.drafter.release(row.request)


class _Clock:
    """Shares the time of each part of a step evenly among its requests."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows
        self._last = perf_counter()

    def tick(self, part: str) -> float:
        """Book the time since the last tick, and return it."""
        now = perf_counter()
        spent, self._last = now - self._last, now
        for row in self._rows:
            row.stats.seconds[part] += spent / len(self._rows)
        return spent


def _verify(
    rows: Sequence[Row], drafts: Sequence[Draft], outputs: Sequence[Output]
) -> dict[int, Verdict]:
    """Verify all rows that have not failed, in one call; a row that fails leaves it."""
    places = [i for i, row in enumerate(rows) if row.error is None]
    while places:
        members = [rows[i] for i in places]
        try:
            verdicts = verify_batch(
                [drafts[i] for i in places],
                [outputs[i].logits for i in places],
                [row.request.params for row in members],
                rule=[rule_of_step(rows[i].rule, drafts[i]) for i in places],
                seeds=[row.request.seed for row in members],
                positions=[row.request.position for row in members],
                lossy=[row.lossy for row in members],
                histories=[row.history for row in members],
                prompt_lens=[row.request.prompt_len if row.history else 0 for row in members],
                bitmasks=[row.masks for row in members],
                processors=[row.processors for row in members],
                top_logprobs=[row.top_logprobs for row in members],
            )
        except Exception as error:  # a user's processor may raise anything
            sequence = getattr(error, "sequence", None)
            if sequence is None:
                raise
            _fail(
                rows[places.pop(sequence)],
                error.alone() if isinstance(error, MtpVerifyError) else error,
            )
            continue
        return {i: verdicts[place] for place, i in enumerate(places)}
    return {}


def _emit(
    rows: Sequence[Row],
    drafts: Sequence[Draft],
    outputs: Sequence[Output],
    verdicts: dict[int, Verdict],
) -> dict[int, Verdict]:
    """Append each verdict's tokens to its row; return the verdicts as they were cut there."""
    emitted = {}
    for i, whole in verdicts.items():
        row, draft = rows[i], drafts[i]
        try:
            raw = None
            if row.logits is not None:
                raw = outputs[i].logits[[0, *whole.path.tolist()]].float()
            verdict = row.emit(whole, raw)
        except Exception as error:  # noqa: BLE001 - a user's criterion may raise anything
            _fail(row, error)
            continue
        depth = int(draft.tree.depths.max())
        row.stats.record(depth, draft.num_nodes - 1, verdict.num_accepted, len(verdict.tokens))
        emitted[i] = verdict
    return emitted


def _fail(row: Row, error: Exception) -> None:
    row.error, row.finish = error, "error"


def _by_drafter(rows: Sequence[Row]) -> Iterable[tuple[Drafter, list[int]]]:
    """Group the rows that have a drafter by it, in order."""
    groups: dict[int, tuple[Drafter, list[int]]] = {}
    for index, row in enumerate(rows):
        if row.drafter is not None:
            groups.setdefault(id(row.drafter), (row.drafter, []))[1].append(index)
    return groups.values()


def _committed(output: Output, draft: Draft, path: Any) -> tuple[torch.Tensor, ...] | None:
    """Pick the hidden states of what a commit keeps: all up to the root, then the path."""
    if output.hidden is None:
        return None
    picked = []
    for states in output.hidden:
        root = len(states) - draft.num_nodes
        if draft.tree.is_chain:
            picked.append(states[: root + 1 + len(path)])
        else:
            nodes = torch.as_tensor(path, device=states.device) + root
            picked.append(torch.cat([states[: root + 1], states[nodes]]))
    return tuple(picked)
