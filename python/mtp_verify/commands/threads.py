"""How many threads should decode: measured, not guessed.

Threads that spin while they wait for each other lose badly on shared cores (3 to 5 times slower
than one thread has been seen), and nothing in the machine's description tells. So the model's own
decode step is timed at several thread counts, in turn, and the fastest wins. What was measured is
kept in the user's cache folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import inf
from statistics import median
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify.decoder.planning import store
from mtp_verify.errors import ParamsError
from mtp_verify.models.target import as_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.models.target import Target

__all__ = ["ThreadReport", "measure", "num_cores", "use_best"]

# A second thread must save this much of a step: less is noise, and leaves nothing for other work.
_WORTHWHILE = 0.95
_MOST_SECONDS = 3.0  # of one measurement: no user should wait longer for it
_WIDTHS = (1, 8)


@dataclass(frozen=True)
class ThreadReport:
    """What was measured.

    Attributes:
        best: the thread count to use.
        milliseconds: for each thread count that was timed, the median time of a step for each
            width (tokens per step).
        cores: processor cores that this process may use.
    """

    best: int
    milliseconds: dict[int, dict[int, float]]
    cores: int


def num_cores() -> int:
    """Number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def measure(
    model: Any,
    *,
    widths: Sequence[int] = _WIDTHS,
    counts: Sequence[int] | None = None,
    rounds: int = 7,
    context: int = 64,
) -> ThreadReport:
    """Time the model's decode step at several thread counts; leave the present count as it was.

    The counts take turns, so that a change of the machine's load meets all of them. After 3 seconds
    it ends, but for the turn that is under way, with what it has: the first turn of the smallest
    count at least. Counts that had no turn are left out.

    Args:
        model: a transformers model or a `Target`, on the CPU.
        widths: tokens per step: 1 is plain decoding, more is what a draft costs.
        counts: thread counts to try; None tries 1, 2, 4, ... and the number of cores.
        rounds: times that each is timed; the median counts.
        context: tokens in the cache while timing.

    Returns:
        The report; `best` has the least sum over `widths`, fewer threads being preferred unless
        more save 5 %.

    Raises:
        ParamsError: no counts, widths or rounds.
        UnsupportedModelError: the model cannot decode.
    """
    cores = num_cores()
    tried = _default_counts(cores) if counts is None else sorted(set(counts))
    deadline = monotonic() + _MOST_SECONDS
    if not tried or tried[0] < 1 or not widths or min(widths) < 1 or rounds < 1:
        msg = "counts, widths and rounds must be at least 1, and none of them empty"
        raise ParamsError(msg, slug="bad_measurement")
    target = as_target(model)
    before = torch.get_num_threads()
    samples: dict[int, dict[int, list[float]]] = {n: {w: [] for w in widths} for n in tried}
    try:
        with torch.inference_mode():
            cache = target.new_cache()
            _step(target, cache, context)
            for turn, count in enumerate(tried * rounds):
                if turn and monotonic() > deadline:
                    break
                torch.set_num_threads(count)
                _step(target, cache, widths[0], keep=context)  # wakes the threads, untimed
                for width in widths:
                    start = perf_counter()
                    _step(target, cache, width, keep=context)
                    samples[count][width].append(1e3 * (perf_counter() - start))
    finally:
        torch.set_num_threads(before)
    times = {
        count: {width: median(values) for width, values in row.items()}
        for count, row in samples.items()
        if all(row.values())
    }
    return ThreadReport(best=_best(times), milliseconds=times, cores=cores)


def use_best(model: Any) -> ThreadReport:
    """Set torch's thread count to the best, which is measured once.

    What `measure` finds is kept in the user's cache folder (`MTP_VERIFY_CACHE`) once every count
    has had a turn, and measured again for another model, device, number of cores, or version of
    this package, torch or transformers, and where the file is damaged.

    Args:
        model: as in `measure`.

    Raises:
        UnsupportedModelError: as `measure`; the thread count is unchanged.
    """
    target = as_target(model)
    cores = num_cores()
    counts = _default_counts(cores)
    key = store.key_of(target, timed="thread counts", cores=cores)
    known = {} if key is None else store.load(key)
    if _is_complete(known, counts):
        report = ThreadReport(best=_best(known), milliseconds=known, cores=cores)
    else:
        report = measure(target, counts=counts)
        if key is not None and _is_complete(report.milliseconds, counts):
            store.save(key, report.milliseconds)
    torch.set_num_threads(report.best)
    return report


def _is_complete(times: dict[int, dict[int, float]], counts: list[int]) -> bool:
    """Whether there is a time for each count and width: what is kept may have been edited."""
    return sorted(times) == counts and all(
        sorted(row) == sorted(_WIDTHS) and all(0 < value < inf for value in row.values())
        for row in times.values()
    )


def _best(times: dict[int, dict[int, float]]) -> int:
    """The count with the least sum over the widths; fewer threads unless more are worth it."""
    fewest, *others = sorted(times)
    best = fewest
    for count in others:
        if sum(times[count].values()) < _WORTHWHILE * sum(times[best].values()):
            best = count
    return best


def _default_counts(cores: int) -> list[int]:
    counts = [1]
    while counts[-1] * 2 <= cores:
        counts.append(counts[-1] * 2)
    return sorted({*counts, cores})


def _step(target: Target, cache: Any, width: int, keep: int | None = None) -> None:
    tokens = torch.ones((1, width), dtype=torch.int64, device=target.device)
    target.forward(tokens, None, None, cache, num_logits=width)
    cache.crop(width if keep is None else keep)
