"""How many threads should decode: measured, not guessed.

Threads that spin while they wait for each other lose badly on shared cores (3 to 5 times slower
than one thread has been seen), which no description of a machine shows. So the model's own
decode step is timed at several thread counts, in turn, and the fastest wins. What was measured is
kept in the user's cache folder, unless other programs were busy meanwhile.

How busy they were is read from the system's count of each core's busy time, less our own, during
the measurement. The load average would be a mean over the minute before it, most of which is our
own loading of the model.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter, sleep
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify.decoder.planning import store
from mtp_verify.models.target import as_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.models.target import Target

__all__ = ["ThreadReport", "measure", "num_cores", "renew", "use_best"]

# A second thread must save this much of a step: less is noise, and leaves nothing for other work.
_WORTHWHILE = 0.95
_MOST_SECONDS = 3.0  # of one measurement: no user should wait longer for it
_WIDTHS = (1, 8)  # tokens of a step: plain decoding, and a draft
_ROUNDS = 7  # of all counts; the median counts
_CONTEXT = 64  # tokens in the cache meanwhile
# Of the cores' time: if other programs take more, the times are theirs as well as the model's.
_QUIET = 0.1
_LEAST_SECONDS = 0.3  # of counting busy time: it is counted in hundredths of a second
_STAT = Path("/proc/stat")
_NUM_TIMES = 8  # of a core there: user, nice, system, idle, iowait, irq, softirq, steal
_IDLE = slice(3, 5)


@dataclass(frozen=True)
class ThreadReport:
    """What was measured.

    Attributes:
        best: the thread count to use.
        milliseconds: for each thread count that was timed, the median time of a step for each
            width (tokens per step).
        cores: processor cores that this process may use.
        others: share of these cores' time that other programs took meanwhile; None where the system
            has no such count (Linux alone has one), or where kept times were read.
        is_kept: whether the times are in the cache folder.
    """

    best: int
    milliseconds: dict[int, dict[int, float]]
    cores: int
    others: float | None = field(default=None, compare=False)
    is_kept: bool = field(default=False, compare=False)


def num_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure(model: Any, counts: Sequence[int] | None = None) -> ThreadReport:
    """Time the model's decode step at several thread counts; leave the present count as it was.

    The counts take turns, so that a change of the machine's load affects all of them. After 3
    seconds it ends, but for the turn that is under way, with what it has: the first turn of the
    smallest count at least. Counts that had no turn are left out.

    Args:
        model: a transformers model or a `Target`, on the CPU.
        counts: thread counts to try; None tries 1, 2, 4, ... and the number of cores.

    Raises:
        UnsupportedModelError: the model cannot decode.
    """
    cores = num_cores()
    tried = _default_counts(cores) if counts is None else sorted(set(counts))
    deadline = monotonic() + _MOST_SECONDS
    target = as_target(model)
    meter = _Meter()
    before = torch.get_num_threads()
    samples: dict[int, dict[int, list[float]]] = {n: {w: [] for w in _WIDTHS} for n in tried}
    try:
        with torch.inference_mode():
            cache = target.new_cache()
            _step(target, cache, _CONTEXT)
            for turn, count in enumerate(tried * _ROUNDS):
                if turn and monotonic() > deadline:
                    break
                torch.set_num_threads(count)
                _step(target, cache, 1)  # wakes the threads, untimed
                for width in _WIDTHS:
                    start = perf_counter()
                    _step(target, cache, width)
                    samples[count][width].append(1e3 * (perf_counter() - start))
    finally:
        torch.set_num_threads(before)
    timed = {count: row for count, row in samples.items() if all(row.values())}
    times = {n: {w: median(values) for w, values in row.items()} for n, row in timed.items()}
    return ThreadReport(_best(times), times, cores, others=meter.read())


def use_best(model: Any) -> ThreadReport:
    """Set torch's thread count to the best, which is measured once.

    What `measure` finds is kept in the user's cache folder (`MTP_VERIFY_CACHE`) if every count
    has had a turn and other programs took at most a tenth of the cores' time meanwhile; else it is
    used this once. It is measured again for another model, device, number of cores, or version of
    this package, torch or transformers, and where the file is damaged.

    Raises:
        UnsupportedModelError: as `measure`; the thread count is unchanged.
    """
    target, cores = as_target(model), num_cores()
    key = _key(target, cores)
    known = {} if key is None else store.load(key)
    if _is_complete(known, _default_counts(cores)):
        report = ThreadReport(_best(known), known, cores, is_kept=True)
    else:
        report = renew(target)
    torch.set_num_threads(report.best)
    return report


def renew(model: Any) -> ThreadReport:
    """Measure, whatever is kept, and keep it as `use_best` does; set nothing; as `measure`."""
    target, cores = as_target(model), num_cores()
    counts, key = _default_counts(cores), _key(target, cores)
    report = measure(target, counts)
    is_quiet = report.others is None or report.others <= _QUIET
    if key is None or not is_quiet or not _is_complete(report.milliseconds, counts):
        return report
    store.save(key, report.milliseconds)
    return replace(report, is_kept=True)


def _key(target: Target, cores: int) -> dict[str, Any] | None:
    return store.key_of(target, timed="thread counts", cores=cores)


class _Meter:
    """How much of the cores' time other programs take from now on."""

    def __init__(self) -> None:
        self._busy, self._start = _busy_seconds(), os.times()

    def read(self) -> float | None:
        """Wait until it can be measured, and return the share; None if the system has no count."""
        if self._busy is None:
            return None
        sleep(max(0.0, self._start.elapsed + _LEAST_SECONDS - os.times().elapsed))
        busy, now = _busy_seconds(), os.times()
        if busy is None:
            return None
        own = now.user + now.system - self._start.user - self._start.system
        seconds = now.elapsed - self._start.elapsed
        return max(0.0, busy - self._busy - own) / (seconds * num_cores())


def _busy_seconds() -> float | None:
    """Return for how many seconds this process's cores have been busy, or taken away by a host."""
    try:
        cores = os.sched_getaffinity(0)
        total = 0
        for line in _STAT.read_text().splitlines():
            name, *times = line.split()
            if name[3:].isdigit() and name.startswith("cpu") and int(name[3:]) in cores:
                ticks = [int(time) for time in times[:_NUM_TIMES]]
                total += sum(ticks) - sum(ticks[_IDLE])
        return total / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None


def _is_complete(times: dict[int, dict[int, float]], counts: list[int]) -> bool:
    """Check for a time of each count and width: kept times may have been edited."""
    return sorted(times) == counts and all(
        sorted(row) == sorted(_WIDTHS) and all(0 < value < inf for value in row.values())
        for row in times.values()
    )


def _best(times: dict[int, dict[int, float]]) -> int:
    """Return the count with the least sum over the widths, with few threads at equal times."""
    best = min(times)
    for count in sorted(times):
        if sum(times[count].values()) < _WORTHWHILE * sum(times[best].values()):
            best = count
    return best


def _default_counts(cores: int) -> list[int]:
    return sorted({*(2**power for power in range(cores.bit_length())), cores})


def _step(target: Target, cache: Any, width: int) -> None:
    """Run a forward behind the first `_CONTEXT` tokens, or the one that makes them."""
    tokens = torch.ones((1, width), dtype=torch.int64, device=target.device)
    target.forward(tokens, None, None, cache, num_logits=width)
    cache.crop(_CONTEXT)
