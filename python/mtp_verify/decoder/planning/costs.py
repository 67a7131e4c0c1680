"""What a forward costs, by its width and the number of requests that share it.

The shape of that curve decides whether drafts pay, and nothing in a machine's description tells it:
on one CPU eight tokens cost little more than two; on a GPU they may cost the same. So it is
measured, once for each model and device.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mtp_verify.decoder.planning import store
from mtp_verify.errors import ParamsError
from mtp_verify.verifier.intake import as_count, as_float, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtp_verify.models.target import Target

__all__ = ["WIDTHS", "CostModel", "Costs", "MeasuredCosts", "measure"]

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 33)
_PAST = 128  # tokens in the cache while timing
_REPEATS = 9
_MIN_REPEATS = 3
_MAX_SECONDS = 2.0  # For one batch size, unless fewer than `_MIN_REPEATS` fit in.
_DEAREST = 4.0  # Times the forward of width 1: wider ones hardly ever pay, and are not timed.


class CostModel(Protocol):
    """Says what a step costs."""

    def forward(self, width: int, batch: int = 1) -> float:
        """Return the seconds of one forward of `width` tokens for each of `batch` requests."""


class Costs:
    """A table of times, interpolated.

    Between widths it is linear; beyond the last it goes on with the last slope. A batch size that
    is not in the table takes the next larger one; beyond the largest, times grow in proportion.

    Args:
        seconds: by batch size, then by width; every batch size has width 1.

    Raises:
        ParamsError: an empty table, a missing width 1, or a time that is not positive.

    Example:
        >>> Costs({1: {1: 0.25, 5: 0.75}}).forward(3)
        0.5
    """

    def __init__(self, seconds: Mapping[int, Mapping[int, float]]) -> None:
        given: Any = seconds  # Whatever it was declared to be.
        is_table = isinstance(given, Mapping) and len(given) > 0
        _refuse_unless(is_table, "seconds", given, "times by batch size and width")
        table: dict[int, dict[int, float]] = {}
        for batch, times in given.items():
            name = f"seconds[{shown(batch)}]"
            is_row = isinstance(times, Mapping) and 1 in times
            _refuse_unless(is_row, name, times, "times by width, that of 1 among them")
            checked = {as_count(f"{name}, width", w): as_float(name, t) for w, t in times.items()}
            is_positive = all(0 < value < np.inf for value in checked.values())
            _refuse_unless(is_positive, name, dict(times), "positive times")
            table[as_count("seconds, batch size", batch)] = dict(sorted(checked.items()))
        self.seconds = dict(sorted(table.items()))

    def __eq__(self, other: object) -> bool:
        """Whether all times are equal."""
        return self.seconds == other.seconds if isinstance(other, Costs) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # A table of times can be changed.

    def __repr__(self) -> str:
        """Show the table's sizes."""
        sizes = ", ".join(f"{batch}: {len(times)} widths" for batch, times in self.seconds.items())
        return f"Costs({{{sizes}}})"

    def forward(self, width: int, batch: int = 1) -> float:
        """Return the seconds of one forward of `width` tokens for each of `batch` requests."""
        size = next((n for n in self.seconds if n >= batch), max(self.seconds))
        scale = max(1.0, batch / size)
        widths, times = list(self.seconds[size]), list(self.seconds[size].values())
        if width > widths[-1] and len(widths) > 1:
            slope = max(0.0, (times[-1] - times[-2]) / (widths[-1] - widths[-2]))
            return scale * (times[-1] + slope * (width - widths[-1]))
        return scale * float(np.interp(width, widths, times))


def _refuse_unless(is_right: bool, name: str, found: Any, wanted: str) -> None:  # noqa: FBT001
    if not is_right:
        message = f"{name}: found {shown(found)}, wanted {wanted}"
        raise ParamsError(message, slug="bad_costs")


class MeasuredCosts:
    """Costs of a target, measured when they are first asked for and kept on disk.

    The file lies in the user's cache folder; another version of this package, of torch or of
    transformers, another device, thread count, model, dtype or attention measures anew. A target
    that is not a transformers model is measured in each process. The `clock` counts seconds.
    """

    def __init__(self, target: Target, *, clock: Callable[[], float] = perf_counter) -> None:
        self._target = target
        self._clock = clock
        self._key: dict[str, Any] | None = None
        self._costs: Costs | None = None

    def forward(self, width: int, batch: int = 1) -> float:
        """See `Costs.forward`; times what is not known yet, for the next power of two requests."""
        import torch

        size = 1 << (batch - 1).bit_length()
        if self._costs is None:
            self._key = store.key_of(self._target, threads=torch.get_num_threads())
            known = {} if self._key is None else store.load(self._key)
            needed = {size} if known else {1, size}
        else:
            known, needed = self._costs.seconds, {size}
        missing = sorted(needed - known.keys())
        if missing or self._costs is None:
            found = {each: measure(self._target, each, clock=self._clock) for each in missing}
            self._costs = Costs({**known, **found})
            if missing and self._key is not None:
                store.save(self._key, self._costs.seconds)
        return self._costs.forward(width, batch)


def measure(
    target: Target,
    batch: int = 1,
    *,
    widths: Sequence[int] = WIDTHS,
    clock: Callable[[], float] = perf_counter,
) -> dict[int, float]:
    """Time the target's forward at several widths; return the seconds by width, never falling.

    Widths take turns, and what counts is the median, over the repeats, of the time relative to that
    of width 1 in the same repeat: a change of the machine's load affects all widths equally. Widths
    end with the first one that costs several times as much as width 1.

    Args:
        target: a transformers model as `Target`, or any other.
        batch: requests in a forward; more than one needs a `BatchTarget`.
        widths: tokens of each request, from 1 on.
        clock: seconds.
    """
    import torch

    repeats: list[dict[int, float]] = []
    with torch.inference_mode():
        run = _alone(target) if batch == 1 else _together(target, batch)
        began = clock()
        run(widths[0])
        while len(repeats) < _REPEATS:
            times = {}
            # The first forward after a wide one takes longer, and is not counted.
            run(widths[0])
            for width in widths:
                start = clock()
                run(width)
                times[width] = max(clock() - start, 1e-9)
            repeats.append(times)
            if len(repeats) == 2:
                widths = _worth_timing(widths, repeats)
            if len(repeats) >= _MIN_REPEATS and clock() - began > _MAX_SECONDS:
                break
    unit = median(times[1] for times in repeats)
    relative = [median(times[width] / times[1] for times in repeats) for width in widths]
    seconds = unit * np.maximum.accumulate(relative)
    return dict(zip(widths, seconds.tolist(), strict=True))


def _worth_timing(widths: Sequence[int], repeats: Sequence[dict[int, float]]) -> Sequence[int]:
    """Return the widths up to the first one that is too dear in all repeats."""
    for place, width in enumerate(widths):
        if all(times[width] > _DEAREST * times[1] for times in repeats):
            return widths[: place + 1]
    return widths


def _past_of(target: Target) -> int:
    """Return how many tokens are in the cache while timing."""
    most = target.max_length
    return _PAST if most is None else max(1, min(_PAST, most - max(WIDTHS)))


def _alone(target: Target) -> Callable[[int], None]:
    """Return a function that runs a forward of some width on one request."""
    import torch

    cache, past = target.new_cache(), _past_of(target)

    def run(width: int) -> None:
        tokens = torch.ones((1, width), dtype=torch.int64, device=target.device)
        logits, _ = target.forward(tokens, None, None, cache, num_logits=width)
        logits[0, 0].item()  # Waits for a device.
        cache.crop(past)

    run(past)
    return run


def _together(target: Any, batch: int) -> Callable[[int], None]:
    """Return a function that runs a forward of some width on `batch` requests."""
    import torch

    from mtp_verify.caches.slots import SlotCache

    cache, past = SlotCache(target.new_kv()), _past_of(target)
    for _ in range(batch):
        cache.add()

    def run(width: int) -> None:
        start = cache.lengths[0]
        tokens = torch.ones((batch, width), dtype=torch.int64, device=target.device)
        positions = start + torch.arange(width, device=target.device).expand(batch, width)
        causal = torch.ones((batch, width, width), dtype=torch.bool, device=target.device).tril()
        logits, _ = target.forward_slots(tokens, positions, causal, cache)
        logits[0, 0, 0].item()

    run(past)
    for slot in range(batch):
        cache.extend(slot, past)
    return run
