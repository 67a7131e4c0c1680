"""Shards of text, by one process or by several side by side.

A forward of a hundred rows is hardly half large products, which use all threads; the rest is small
operations, one after the other. Two processes of one thread each therefore write 1.3 times as much
as one process of two threads, on two cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify.console.worker import Worker
from mtp_verify.models.cpu.fused import fuse
from mtp_verify.training.questions import finish_messages
from mtp_verify.training.shards import write_shard
from mtp_verify.training.writing import write_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

__all__ = ["PROCESSES", "Job", "write_shards"]

PROCESSES = 2
_LARGEST = 1 << 30  # bytes of a model of which each process may hold a copy, and a fused one
_MESSAGE_SEED = 1 << 30  # so that messages are not drawn with the numbers of their answers


@dataclass(frozen=True)
class Job:
    """One shard to be written."""

    path: Path  # of its file; one that exists is left as it is
    prompts: list[list[int]]  # token ids of each
    layers: tuple[int, ...]  # hidden states that are kept
    temperatures: list[float]  # one for each prompt
    max_new_tokens: int  # of an answer
    seed: int
    # if given, the target completes the user's message of each prompt; these ids follow
    closing: tuple[int, ...] = ()
    deadline: float = inf  # of `time.monotonic()`: what is not written by then stays short

    def run(self, model: Any) -> None:
        """Write the shard; OSError if the disk is full or cannot be written."""
        if self.path.exists():
            return
        prompts, seed = self.prompts, self.seed + _MESSAGE_SEED
        if self.closing:
            prompts = finish_messages(model, prompts, self.closing, seed, self.deadline)
        texts = write_texts(
            model, prompts, self.layers, temperatures=self.temperatures, seed=self.seed,
            max_new_tokens=self.max_new_tokens, deadline=self.deadline,
        )  # fmt: skip
        write_shard(self.path, texts)


def write_shards(
    model: Any, jobs: Iterable[Job], load: Callable[[], Any] | None, threads: int
) -> Iterator[Job]:
    """Write shards, and yield each job when it is done; `jobs` gives one when a process is free.

    Other processes get the target by `load`, a function that can be pickled. None: this process
    writes them all, as it does where a second copy would take much memory. OSError: the disk is
    full or cannot be written, also from another process; RuntimeError: another process died.
    """
    size = sum(weight.nbytes for weight in model.parameters())
    if load is None or threads < PROCESSES or size > _LARGEST:
        for job in jobs:
            job.run(model)
            yield job
        return
    crew: list[Worker] = []
    busy: dict[Worker, Job] = {}
    try:
        crew.extend(Worker(_serve, load, threads // PROCESSES) for _ in range(PROCESSES))
        todo = iter(jobs)
        while True:
            for writer in crew:
                if writer not in busy and (fresh := next(todo, None)) is not None:
                    writer.connection.send(fresh)
                    busy[writer] = fresh
            if not busy:
                return
            ready = wait([writer.connection for writer in busy])
            for writer in [writer for writer in busy if writer.connection in ready]:
                writer.receive()  # nothing, or why it failed
                yield busy.pop(writer)
    finally:
        for writer in crew:
            writer.stop()


def _serve(connection: Connection, load: Callable[[], Any], threads: int) -> None:
    """Run the jobs that come, until the connection is closed: the parent may have been killed."""
    torch.set_num_threads(threads)
    model = load()
    fuse(model)
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        try:
            job.run(model)
        except OSError as error:
            connection.send(error)
        except Exception as error:  # noqa: BLE001, whatever it is, the parent must report it
            connection.send(RuntimeError(f"{type(error).__name__}: {error}"))
        else:
            connection.send(None)
