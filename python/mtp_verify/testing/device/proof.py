"""The law of all sources that verify on a device, and their mistakes: the work, and its tables."""

from __future__ import annotations

from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from mtp_verify.testing.device.backends import BACKENDS, Backend, ready, ready_copy
from mtp_verify.testing.device.cases import Case, cases, few_cases
from mtp_verify.testing.device.law import BOUND, Finding, find_law
from mtp_verify.testing.device.mutants import Mutant, mutated
from mtp_verify.testing.device.torch_mutants import TORCH
from mtp_verify.testing.device.triton_mutants import TRITON

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mtp_verify.testing.device.cells import Asks

__all__ = ["MUTANTS", "Task", "find", "lines_of_laws", "lines_of_mutants", "tasks", "work"]

MUTANTS = {"torch": TORCH, "triton": TRITON}


class Task(NamedTuple):
    """One enumeration.

    Attributes:
        backend: Of which source.
        case: Of which case.
        mutant: The mistake in the source; None for the source as it is.
    """

    backend: Backend
    case: Case
    mutant: Mutant | None


def tasks() -> list[Task]:
    """List all enumerations of the sources whose libraries are installed."""
    listed = []
    for backend in BACKENDS:
        if backend.is_there:
            own = few_cases() if backend.is_slow else cases()
            listed += [Task(backend, case, None) for case in own]
            listed += [Task(backend, mutant.case, mutant) for mutant in MUTANTS[backend.name]]
    return listed


def work(share: int, of: int) -> dict[int, Finding]:
    """Do one of several shares of all tasks; return what is found by the numbers of tasks."""
    import torch  # Slow, and only a process that works needs it.

    torch.set_num_threads(1)  # Tensors are small, and each core has a share.
    with ExitStack() as stack:
        for backend in BACKENDS:
            if backend.is_there:
                stack.enter_context(ready(backend))
        return {number: find(task) for number, task in enumerate(tasks()) if number % of == share}


def find(task: Task) -> Finding:
    """Do one enumeration; its backend is `ready`."""
    backend, case, mutant = task
    with ExitStack() as stack:
        if mutant is None:
            module = import_module(backend.package)
        else:
            module = stack.enter_context(mutated(backend.package, mutant))
        stack.enter_context(ready_copy(backend, module.__name__))
        if mutant is not None:
            # Most mistakes show in the middles.
            found = find_law(case, module.run, module.Workspace, asks="middle")
            if not found.holds:
                return found
        asks: Asks = "corners" if backend.is_slow else "ends"
        return find_law(case, module.run, module.Workspace, asks=asks)


def lines_of_laws(listed: Iterable[Task], found: Mapping[int, Finding]) -> list[dict[str, Any]]:
    """Return a line for each backend and pair of rule and law."""
    grouped: dict[tuple[str, str, str], list[Finding]] = {}
    for number, task in enumerate(listed):
        if task.mutant is None:
            key = task.backend.name, task.case.rule, task.case.law
            grouped.setdefault(key, []).append(found[number])
    return [
        {
            "backend": backend,
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
        for (backend, rule, law), own in grouped.items()
    ]


def lines_of_mutants(listed: Iterable[Task], found: Mapping[int, Finding]) -> list[dict[str, Any]]:
    """Return a line for each backend and mistake in its source."""
    return [
        {
            "backend": task.backend.name,
            "name": task.mutant.name,
            "change": f"a line of {task.mutant.module}",
            "case": f"{task.case.rule} on {task.case}",
            "distance": found[number].distance,
            "answers": len(found[number].mistakes),
            "killed": not found[number].holds,
        }
        for number, task in enumerate(listed)
        if task.mutant is not None
    ]
