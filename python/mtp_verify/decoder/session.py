"""The loop: propose, forward, verify, commit, for all sequences in flight at once.

It is append-only: once a token is drawn it is verified where it was drawn
(docs/explanation/lossless-loops.md). So budgets are shared out before anything is drafted, and a
draft that is larger than its budget is an error.

A sequence that goes wrong by itself (its draft, its rows, its criteria) ends alone, with its error
kept. Errors of the model or of a drafter's code cannot be attributed to one request: they are
raised, after all caches are rolled back to what was emitted.
"""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack, suppress
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from mtp_verify.decoder.drafted import check_draft, clean_draft
from mtp_verify.decoder.planning import Plan
from mtp_verify.decoder.sequences import EMPTY
from mtp_verify.errors import OutOfBlocksError
from mtp_verify.verifier.cleanup import on_failure

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mtp_verify.decoder.planning import Planner
    from mtp_verify.decoder.runners import Runner
    from mtp_verify.decoder.sequences import Sequence
    from mtp_verify.decoder.verdicts import Verdicts
    from mtp_verify.drafters.base import Drafter
    from mtp_verify.models.target import Target

__all__ = ["Session"]


class Session:
    """Sequences that are decoded together.

    At most `max_batch` are in flight; others wait in the order in which they came. Without a
    `planner` the size of drafts is left to the drafters.
    """

    def __init__(
        self,
        target: Target,
        runner: Runner,
        verdicts: Verdicts,
        max_batch: int,
        planner: Planner | None = None,
    ) -> None:
        self._target = target
        self._runner = runner
        self._verdicts = verdicts
        self._max_batch = max_batch
        self._planner = planner
        self._waiting: deque[Sequence] = deque()
        self._finished: list[Sequence] = []
        # Set when a sequence was sent back to wait: none joins before another has ended.
        self._is_full = False

    def __len__(self) -> int:
        """Return the number of sequences in flight or waiting."""
        return len(self._runner.sequences) + len(self._waiting)

    @property
    def sequences(self) -> list[Sequence]:
        """Those in flight, and those that wait."""
        return [*self._runner.sequences, *self._waiting]

    @torch.inference_mode()
    def add(self, sequence: Sequence) -> None:
        """Take a sequence; it starts at the next step, or when there is space."""
        if not self._waiting and self._may_join():
            with suppress(OutOfBlocksError):
                self._start(sequence)
                return
        self._waiting.append(sequence)

    def take_finished(self) -> list[Sequence]:
        """Return those that have finished since the last call, also in a step that raised."""
        finished, self._finished = self._finished, []
        return finished

    @torch.inference_mode()
    def cancel(self, request_id: int) -> Sequence | None:
        """End a sequence where it is, and return it; None if it is not here."""
        sequence = next((s for s in self.sequences if s.request.id == request_id), None)
        if sequence is not None:
            sequence.finish = "cancelled"
            if sequence in self._waiting:
                self._waiting.remove(sequence)
            else:
                self._end(sequence)
        return sequence

    @torch.inference_mode()
    def close(self) -> None:
        """Release all sequences, whatever state they are in."""
        self._waiting.clear()
        with ExitStack() as ends:  # Goes on where one of them raises.
            for sequence in self._runner.sequences:
                ends.callback(self._end, sequence)

    @torch.inference_mode()
    def step(self) -> list[tuple[Sequence, list[int]]]:
        """Do one step for each sequence in flight.

        Return each with the tokens that it emitted, none where it failed. Those with a `finish`
        have left.
        """
        began = perf_counter()
        refused = self._admit()
        self._make_space()
        sequences = list(self._runner.sequences)
        lengths = [len(sequence.request.tokens) for sequence in sequences]
        with ExitStack() as ends:
            # A user's cache is left with tokens of the sequence alone, not with a draft's.
            for sequence in sequences:
                ends.callback(sequence.free_output)
                ends.enter_context(on_failure(partial(self._runner.roll_back, sequence)))
            if sequences:
                self._step(sequences)
        ended = [sequence for sequence in sequences if sequence.finish is not None]
        self._finished += refused + ended
        with ExitStack() as ends:  # All of them, in order, where the end of one raises.
            for sequence in reversed(ended):
                ends.callback(self._end, sequence)
        spent = perf_counter() - began
        for sequence in sequences:
            sequence.stats.total_seconds += spent / len(sequences)
        return [(sequence, []) for sequence in refused] + [
            (sequence, sequence.request.tokens[length:])
            for sequence, length in zip(sequences, lengths, strict=True)
        ]

    def _step(self, sequences: list[Sequence]) -> None:
        clock = _Clock(sequences)
        self._runner.prepare()
        clock.tick("target")
        try:
            self._draft(sequences)
        except OutOfBlocksError as error:
            # It is alone (`_make_space`), and there is no block left.
            for sequence in sequences:
                sequence.fail(error)
            return
        clock.tick("draft")
        self._runner.forward()
        self._verdicts.fetch(sequences)
        forward = clock.tick("target")
        for drafter, members in _by_drafter(sequences):
            drafter.observe(
                [member.request for member in members],
                [member.draft for member in members],
                [member.output.logits for member in members],
            )
        verdicts = self._verdicts.verify(sequences)
        if self._verdicts.is_on_device:
            # The forward was started only: its time, the verifier's with it, is until here.
            forward += clock.tick("target")
        for sequence, verdict in verdicts:
            try:
                sequence.emit(verdict)
            except Exception as error:  # noqa: BLE001 - a user's criterion may raise anything
                sequence.fail(error)
        for sequence in sequences:
            sequence.is_drafted = False
        if self._planner is not None:
            self._learn(self._planner, sequences, forward)
        clock.tick("verify")
        self._runner.commit([sequence for sequence in sequences if sequence.error is None])
        for drafter, members in _by_drafter(sequences):
            for member in members:
                if member.error is not None:
                    drafter.release(member.request)
            alive = [member for member in members if member.error is None]
            if alive:
                hidden = [_committed(member) for member in alive]
                given = hidden if any(states is not None for states in hidden) else None
                drafter.commit([member.verdict for member in alive], given)
        clock.tick("commit")

    def _draft(self, sequences: list[Sequence]) -> None:
        """Plan and draft for each sequence; a step that was not finished keeps its drafts.

        Why it was not may depend on what was drawn, so that another draft would be biased.
        """
        if all(sequence.is_drafted for sequence in sequences):
            return
        limits = self._runner.budgets([sequence.budget for sequence in sequences])
        self._plan(sequences, limits)
        self._propose(sequences)
        for sequence in sequences:
            try:
                clean_draft(sequence, self._target)
                check_draft(sequence, self._target)
                sequence.constrain()
            except Exception as error:  # noqa: BLE001 - a user's matcher may raise anything
                sequence.fail(error)
                sequence.take(EMPTY)
            sequence.is_drafted = True

    def _plan(self, sequences: list[Sequence], limits: list[int]) -> None:
        """Choose the budget of each draft, at most what the cache has space for."""
        plans = [Plan(limit) for limit in limits]
        if self._planner is not None:
            requests = [sequence.request for sequence in sequences]
            drafters = [sequence.options.drafter for sequence in sequences]
            runner = self._runner
            plans = self._planner.plan(
                requests, drafters, limits,
                together=runner.shares_forwards, ragged=runner.is_ragged,
            )  # fmt: skip
        for sequence, plan in zip(sequences, plans, strict=True):
            sequence.plan = plan
            if self._planner is not None and sequence.options.drafter is not None:
                sequence.stats.record_plan(plan.budget, is_probe=plan.is_probe)

    def _propose(self, sequences: list[Sequence]) -> None:
        """Draft for each sequence, with one call per drafter."""
        for sequence in sequences:
            sequence.take(EMPTY)
        for drafter, members in _by_drafter(sequences):
            requests = [member.request for member in members]
            plans = [member.plan for member in members]
            ask = self._verdicts.propose
            if self._planner is None:
                drafts = ask(drafter, requests, [plan.budget for plan in plans])
            elif self._verdicts.is_on_device:
                drafts = self._planner.propose(drafter, requests, plans, ask)
            else:
                drafts = self._planner.propose(drafter, requests, plans)
            for member, draft in zip(members, drafts, strict=True):
                member.take(draft)

    def _learn(self, planner: Planner, sequences: list[Sequence], forward: float) -> None:
        """Tell the planner what became of the drafts."""
        ran_prompts = any(sequence.stats.steps == 1 for sequence in sequences)
        planner.learn(
            [sequence.request for sequence in sequences],
            [sequence.plan for sequence in sequences],
            [sequence.draft for sequence in sequences],
            [None if s.error is not None else s.verdict.path.tolist() for s in sequences],
            forward=None if ran_prompts else forward,
            together=self._runner.shares_forwards,
            ragged=self._runner.is_ragged,
        )

    def _may_join(self) -> bool:
        sequences = self._runner.sequences
        # The drafts of a step that failed are run again, within the budgets that they had.
        is_redone = any(sequence.is_drafted for sequence in sequences)
        return len(sequences) < self._max_batch and not self._is_full and not is_redone

    def _admit(self) -> list[Sequence]:
        """Start those that wait, in order; return those that can never start."""
        refused: list[Sequence] = []
        while self._waiting and self._may_join():
            sequence = self._waiting.popleft()
            try:
                self._start(sequence)
            except OutOfBlocksError as error:
                if self._runner.sequences:
                    # Others will end and leave their blocks.
                    self._waiting.appendleft(sequence)
                    break
                sequence.fail(error)
                refused.append(sequence)
        return refused

    def _make_space(self) -> None:
        """Send the youngest back to wait while the cache cannot take one more token of each.

        What it has emitted stays; its entries are computed again when it comes back.
        """
        while len(self._runner.sequences) > 1 and not self._runner.has_space():
            sequence = max(self._runner.sequences, key=lambda sequence: sequence.request.id)
            self._runner.remove(sequence)
            if sequence.options.drafter is not None:
                sequence.options.drafter.release(sequence.request)
            self._waiting.appendleft(sequence)
            self._is_full = True

    def _start(self, sequence: Sequence) -> None:
        self._runner.add(sequence)
        if sequence.options.drafter is not None:
            with on_failure(partial(self._end, sequence)):
                sequence.options.drafter.start(sequence.request)

    def _end(self, sequence: Sequence) -> None:
        if sequence.error is not None:
            self._runner.roll_back(sequence)
        sequence.past = self._runner.remove(sequence)
        self._is_full = False
        if self._planner is not None:
            self._planner.forget(sequence.request)
        if sequence.options.drafter is not None:
            sequence.options.drafter.release(sequence.request)


class _Clock:
    """Shares the time of each part of a step evenly among its sequences."""

    def __init__(self, sequences: list[Sequence]) -> None:
        self._sequences = sequences
        self._last = perf_counter()

    def tick(self, part: str) -> float:
        """Count the time since the last tick for a part, and return it."""
        now = perf_counter()
        spent, self._last = now - self._last, now
        for sequence in self._sequences:
            sequence.stats.seconds[part] += spent / len(self._sequences)
        return spent


def _by_drafter(sequences: list[Sequence]) -> Iterable[tuple[Drafter, list[Sequence]]]:
    """Group the sequences that have a drafter by it, in order."""
    groups: dict[int, tuple[Drafter, list[Sequence]]] = {}
    for sequence in sequences:
        drafter = sequence.options.drafter
        if drafter is not None:
            groups.setdefault(id(drafter), (drafter, []))[1].append(sequence)
    return groups.values()


def _committed(sequence: Sequence) -> tuple[torch.Tensor, ...] | None:
    """Pick the hidden states of what a commit keeps: all up to the root, then the path."""
    draft, path, hidden = sequence.draft, sequence.verdict.path, sequence.output.hidden

    def pick(states: torch.Tensor) -> torch.Tensor:
        root = len(states) - draft.num_nodes
        if draft.tree.is_chain:
            return states[: root + 1 + len(path)]
        nodes = torch.as_tensor(path, device=states.device) + root
        return torch.cat([states[: root + 1], states[nodes]])

    return None if hidden is None else tuple(map(pick, hidden))
