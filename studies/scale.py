"""When speculation pays in serving: a simulated cluster from an empty one to an overloaded one.

No model is run. Costs are those of a stated roofline (an 8e9-parameter model in bfloat16 on an
accelerator of the H100 class), the drafter is a head that is right as often as `RATES` says, times
a quality that differs from text to text. Block tables, trees and planner are the real ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtp_verify.console.report import Table
from studies.finding import Finding
from studies.simulation.cluster import Cluster, arrivals, simulate
from studies.simulation.drafts import Drafts
from studies.simulation.hardware import Roofline
from studies.simulation.policies import Fixed, Planned

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from studies.simulation.policies import Policy

__all__ = ["POLICIES", "run"]

RATES = (0.62, 0.12, 0.05, 0.03)
HARDWARE = Roofline(context=384.0)
# A head's level costs this share of a plain forward.
LEVEL = 0.04 * HARDWARE.forward(1)
MAX_NODES = 16
DRAFTS = Drafts(RATES, max_nodes=MAX_NODES)
POLICIES: dict[str, Callable[[], Policy]] = {
    "plain": lambda: Fixed(0),
    "fixed 4": lambda: Fixed(4),
    "fixed 16": lambda: Fixed(16),
    "planned": lambda: Planned(HARDWARE, DRAFTS, LEVEL, MAX_NODES),
}
BATCHES = (1, 4, 16, 64, 256)
LOADS = (0.2, 0.5, 0.8, 1.0, 1.3)
NUM_DEVICES, MAX_BATCH = 2, 64
PROMPT, LENGTH = 256.0, 256.0
BLOCKS, FEW_BLOCKS = 26_000, 1_200


def run(*, quick: bool = False) -> Finding:
    """Sweep the batch size with the queue always full, the load of a stream, and the memory.

    Args:
        quick: a few requests, to show that it runs.
    """
    by_batch = {batch: _full_queue(batch) for batch in (BATCHES[::2] if quick else BATCHES)}
    capacity = _capacity()
    count = 60 if quick else 400
    by_load = {
        load: {name: _serve(count, load * capacity, policy) for name, policy in POLICIES.items()}
        for load in (LOADS[::2] if quick else LOADS)
    }
    pressed = {
        name: _serve(count, 1.3 * capacity, policy, blocks=FEW_BLOCKS)
        for name, policy in POLICIES.items()
    }
    gains = {
        name: {batch: found[name] / found["plain"] for batch, found in by_batch.items()}
        for name in POLICIES
    }
    least = min(gains["planned"].values())
    pays, harms = gains["fixed 16"][min(by_batch)] > 1.0, gains["fixed 16"][max(by_batch)] < 1.0
    sizes = f"batch {min(by_batch)} to {max(by_batch)}"
    return Finding(
        claim="A fixed draft pays at small batches and costs at large ones; a planned one never "
        "costs.",
        rule="16 nodes: above plain at the smallest batch and below at the largest; planned: at "
        "least 0.97 of plain at every batch size.",
        verdict=("mixed", "reproduced")[pays and harms and least >= 0.97],
        result=f"{sizes}: fixed 16 from {gains['fixed 16'][min(by_batch)]:.2f} to "
        f"{gains['fixed 16'][max(by_batch)]:.2f} times plain, planned from "
        f"{gains['planned'][min(by_batch)]:.2f} to {gains['planned'][max(by_batch)]:.2f}, "
        f"at least {least:.2f}.",
        data={
            "rates": RATES,
            "level_seconds": LEVEL,
            "forward_seconds": {
                batch: {width: HARDWARE.forward(width, batch) for width in (1, 5, 17)}
                for batch in BATCHES
            },
            "tokens_per_second_by_batch": by_batch,
            "capacity_requests_per_second": capacity,
            "by_load": by_load,
            "few_blocks": pressed,
        },
        tables=(_batch_table(by_batch), *_load_tables(by_load), _memory_table(pressed)),
        draw=lambda path: _draw(by_batch, by_load, path),
    )


def _full_queue(batch: int) -> dict[str, float]:
    """Tokens per second of one accelerator that always has `batch` requests to run."""
    count = max(12, 2 * batch)
    found = {}
    for name, policy in POLICIES.items():
        cluster = Cluster(HARDWARE, DRAFTS, LEVEL, 1, BLOCKS, max_batch=batch)
        jobs = arrivals(count, float("inf"), prompt=1.0, length=LENGTH)
        # All as long as the mean: a tail of few would not be the batch size that is meant.
        for job in jobs:
            job.length = int(LENGTH)
        found[name] = simulate(cluster, jobs, policy).figures()["tokens_per_second"]
    return found


def _capacity() -> float:
    """Requests a second that the cluster serves plainly with full batches."""
    decode = LENGTH * HARDWARE.forward(1, MAX_BATCH) / MAX_BATCH
    return NUM_DEVICES / (decode + HARDWARE.forward(int(PROMPT)))


def _serve(
    count: int, rate: float, policy: Callable[[], Policy], *, blocks: int = BLOCKS
) -> dict[str, float]:
    cluster = Cluster(HARDWARE, DRAFTS, LEVEL, NUM_DEVICES, blocks, max_batch=MAX_BATCH)
    jobs = arrivals(count, rate, seed=1, prompt=PROMPT, length=LENGTH)
    return simulate(cluster, jobs, policy, seed=1).figures()


def _batch_table(by_batch: dict[int, dict[str, float]]) -> Table:
    return Table(
        title="tokens per second of one accelerator with full batches, over plain",
        columns=("batch", "plain, tokens/s", *(name for name in POLICIES if name != "plain")),
        rows=tuple(
            (
                str(batch),
                f"{found['plain']:,.0f}",
                *(f"{found[name] / found['plain']:.2f}" for name in POLICIES if name != "plain"),
            )
            for batch, found in by_batch.items()
        ),
    )


def _load_tables(by_load: dict[float, dict[str, dict[str, float]]]) -> list[Table]:
    figures = {
        "tokens_per_second": ("tokens per second", 1.0, ",.0f"),
        "latency_p50": ("milliseconds a token, median", 1e3, ".1f"),
        "latency_p99": ("milliseconds a token, 99 %", 1e3, ".1f"),
    }
    return [
        Table(
            title=f"{title}, by load (1: what plain decoding can serve)",
            columns=("load", *POLICIES),
            rows=tuple(
                (f"{load:.1f}", *(format(scale * found[name][key], form) for name in POLICIES))
                for load, found in by_load.items()
            ),
        )
        for key, (title, scale, form) in figures.items()
    ]


def _memory_table(pressed: dict[str, dict[str, float]]) -> Table:
    return Table(
        title=f"load 1.3 with {FEW_BLOCKS:,} blocks of 16 tokens instead of {BLOCKS:,}",
        columns=("drafts", "tokens/s", "preemptions", "mean batch", "ms a token, 99 %"),
        rows=tuple(
            (
                name,
                f"{found['tokens_per_second']:,.0f}",
                f"{found['preemptions']:.0f}",
                f"{found['mean_batch']:.1f}",
                f"{1e3 * found['latency_p99']:.1f}",
            )
            for name, found in pressed.items()
        ),
    )


def _draw(by_batch: dict[int, Any], by_load: dict[float, Any], path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mtp-verify", "font.size": 9}):
        figure = Figure(figsize=(9.5, 3.4), layout="constrained")
        gain, latency = figure.subplots(1, 2)
        for name in POLICIES:
            over = [found[name] / found["plain"] for found in by_batch.values()]
            gain.plot(list(by_batch), over, "o-", markersize=4, label=name)
            p99 = [1e3 * found[name]["latency_p99"] for found in by_load.values()]
            latency.plot(list(by_load), p99, "o-", markersize=4, label=name)
        gain.set(xscale="log", xlabel="requests in a batch", ylabel="tokens/s over plain")
        gain.set_xticks(list(by_batch), [str(batch) for batch in by_batch])
        gain.set_ylim(bottom=0.0)
        latency.set(yscale="log", xlabel="load (1: plain capacity)", ylabel="ms a token, 99 %")
        for panel in (gain, latency):
            panel.grid(linewidth=0.3)
        handles, labels = gain.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)
