"""A discrete-event simulation of requests on a cluster, one block table an accelerator.

Each accelerator decodes its own batch, step by step, and starts the next step when the last one
ends; a new request joins the one with the fewest. Prompts are run when a request is admitted. If
the blocks run out, the youngest request is preempted: its blocks are freed, and all that it has
emitted is run again when there is room.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

import mtp_verify as mv
from mtp_verify.drafters.base import Request
from mtp_verify.errors import OutOfBlocksError, ParamsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtp_verify.decoder.planning.costs import CostModel
    from studies.simulation.drafts import Drafts
    from studies.simulation.policies import Policy

__all__ = ["Cluster", "Job", "Outcome", "arrivals", "simulate"]


@dataclass
class Job:
    """A request that is served.

    Attributes:
        id: unique.
        arrival: seconds.
        prompt: tokens.
        length: tokens to emit.
        quality: of the drafter on its text, 0 to 1.
        emitted: so far.
        first: when its first token came.
        end: when its last one did.
    """

    id: int
    arrival: float
    prompt: int
    length: int
    quality: float = 1.0
    emitted: int = 0
    first: float = float("nan")
    end: float = float("nan")


@dataclass(frozen=True)
class Cluster:
    """What serves.

    Attributes:
        costs: of a forward.
        drafts: of the drafter.
        level: seconds of drafting one level, for a whole batch.
        num_devices: accelerators.
        num_blocks: of the KV cache of each.
        block_size: tokens of a block.
        max_batch: most requests of one accelerator.
    """

    costs: CostModel
    drafts: Drafts
    level: float = 0.0
    num_devices: int = 1
    num_blocks: int = 8192
    block_size: int = 16
    max_batch: int = 64


@dataclass
class Outcome:
    """What happened.

    Attributes:
        jobs: all, finished.
        steps: of all accelerators.
        rows: requests summed over steps.
        preemptions: requests that lost their blocks.
        seconds: until the last one ended.
    """

    jobs: list[Job]
    steps: int = 0
    rows: int = 0
    preemptions: int = 0
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens emitted."""
        return sum(job.length for job in self.jobs)

    @property
    def tau(self) -> float:
        """Mean tokens of a request's step."""
        return self.tokens / self.rows

    def figures(self) -> dict[str, float]:
        """Throughput, percentiles of latency (seconds a token, and to the first), and counts."""
        per_token = [(job.end - job.arrival) / job.length for job in self.jobs]
        first = [job.first - job.arrival for job in self.jobs]
        return {
            "tokens_per_second": self.tokens / self.seconds,
            "tau": self.tau,
            "mean_batch": self.rows / self.steps,
            "preemptions": self.preemptions,
            "latency_p50": float(np.percentile(per_token, 50)),
            "latency_p90": float(np.percentile(per_token, 90)),
            "latency_p99": float(np.percentile(per_token, 99)),
            "first_p50": float(np.percentile(first, 50)),
            "first_p99": float(np.percentile(first, 99)),
        }


def arrivals(
    count: int, rate: float, *, seed: int = 0, prompt: float = 512.0, length: float = 256.0
) -> list[Job]:
    """Return jobs of a Poisson stream.

    Lengths are geometric; qualities are uniform on [0.3, 1], since texts differ.

    Args:
        count: jobs.
        rate: jobs a second; infinity: all are there at once.
        seed: of all of it.
        prompt: mean tokens of a prompt.
        length: mean tokens to emit.
    """
    rng = np.random.default_rng(seed)
    times = rng.exponential(1.0 / rate, count).cumsum()
    prompts, lengths = rng.geometric(1.0 / prompt, count), rng.geometric(1.0 / length, count)
    qualities = rng.uniform(0.3, 1.0, count)
    columns = (times.tolist(), prompts.tolist(), lengths.tolist(), qualities.tolist())
    return [Job(index, *row) for index, row in enumerate(zip(*columns, strict=True))]


def simulate(
    cluster: Cluster, jobs: Sequence[Job], policy: Callable[[], Policy], *, seed: int = 0
) -> Outcome:
    """Serve jobs to their end.

    Args:
        cluster: what serves.
        jobs: in the order of arrival; they are changed.
        policy: makes one policy for each accelerator.
        seed: of what is accepted.

    Raises:
        ParamsError: a job that can never fit.
    """
    outcome = Outcome(list(jobs))
    room = cluster.num_blocks * cluster.block_size
    for job in jobs:
        if job.prompt + job.length + cluster.drafts.of(room).num_nodes > room:
            msg = f"job {job.id}: {job.prompt} + {job.length} tokens; a cache holds {room}"
            raise ParamsError(msg, slug="bad_job", sequence=job.id)
    devices = [
        _Device(cluster, policy(), np.random.default_rng([seed, index]), outcome)
        for index in range(cluster.num_devices)
    ]
    coming = deque(jobs)
    # (when its step ends, number) of the devices at work.
    busy: list[tuple[float, int]] = []
    now = 0.0
    while coming or busy:
        if coming and (not busy or coming[0].arrival <= busy[0][0]):
            job = coming.popleft()
            now = max(now, job.arrival)
            number = min(range(len(devices)), key=lambda n: len(devices[n]))
            devices[number].waiting.append(job)
            if devices[number].is_working:
                continue
        else:
            now, number = heapq.heappop(busy)
            devices[number].finish_step(now)
        seconds = devices[number].start_step()
        if seconds is not None:
            heapq.heappush(busy, (now + seconds, number))
    outcome.seconds = now
    return outcome


@dataclass
class _Device:
    """One accelerator: who waits, who runs, and the step under way."""

    cluster: Cluster
    policy: Policy
    draws: np.random.Generator
    outcome: Outcome
    waiting: deque[Job] = field(default_factory=deque)
    running: list[Job] = field(default_factory=list)
    is_working: bool = False

    def __post_init__(self) -> None:
        self.table = mv.kv.BlockTable(self.cluster.num_blocks, self.cluster.block_size)
        self.requests: dict[int, Request] = {}
        self._budgets: list[int] = []
        self._forward = 0.0

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def start_step(self) -> float | None:
        """Admit, plan and reserve; return the step's seconds, or None if nobody is here."""
        prompts = self._admit()
        if not self.running:
            return None
        cluster = self.cluster
        # A preempted request takes its plan with it: those that stay are planned for again.
        while True:
            requests = [self.requests[job.id] for job in self.running]
            limits = [job.length - job.emitted - 1 for job in self.running]
            budgets = self.policy.plan(requests, limits)
            nodes = [cluster.drafts.of(budget).num_nodes for budget in budgets]
            try:
                self.table.reserve_batch([job.id for job in self.running], nodes)
                break
            except OutOfBlocksError:
                self._preempt()
        self._budgets, self.is_working = budgets, True
        self._forward = cluster.costs.forward(max(nodes), len(nodes))
        depth = max(map(cluster.drafts.depth, budgets))
        self.outcome.steps += 1
        self.outcome.rows += len(nodes)
        return prompts + self._forward + cluster.level * depth

    def finish_step(self, now: float) -> None:
        """Accept, commit, and let go of those that are done."""
        self.is_working = False
        drafts = [self.cluster.drafts.of(budget) for budget in self._budgets]
        paths = []
        for job, budget, draft in zip(self.running, self._budgets, drafts, strict=True):
            path = self.cluster.drafts.accept(budget, job.quality, self.draws)
            path = path[: job.length - job.emitted - 1]
            self.table.commit(job.id, draft.tree, path)
            if not job.emitted:
                job.first = now
            job.emitted += len(path) + 1
            paths.append(path)
        self.policy.learn(drafts, paths, self._forward)
        for job in [job for job in self.running if job.emitted >= job.length]:
            job.end = now
            self._leave(job)

    def _admit(self) -> float:
        """Take who fits; return the seconds that their prompts take."""
        seconds = 0.0
        while self.waiting and len(self.running) < self.cluster.max_batch:
            job = self.waiting[0]
            # The root, the last token so far, is not cached: the step itself runs it.
            length = job.prompt + job.emitted - 1
            try:
                self.table.add_sequence(job.id, length)
            except OutOfBlocksError:
                break
            self.waiting.popleft()
            self.running.append(job)
            self.requests[job.id] = Request(job.id, [0], 1, seed=job.id)
            if length:
                seconds += self.cluster.costs.forward(length)
        return seconds

    def _preempt(self) -> None:
        """Free the blocks of the youngest request; it goes first when there is room again."""
        job = max(self.running, key=lambda job: job.arrival)
        self._leave(job)
        self.waiting.appendleft(job)
        self.outcome.preemptions += 1

    def _leave(self, job: Job) -> None:
        self.table.release(job.id)
        self.running.remove(job)
        self.policy.forget(self.requests.pop(job.id))
