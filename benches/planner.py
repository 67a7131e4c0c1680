"""Plain decoding, fixed budgets and planned ones, in turn on the same prompts of SmolLM2.

The promise of a planner: never worse than plain decoding beyond noise, and on text that copies
close to the best fixed budget. The generations of all ways run at once, a step of one after a step
of another, so that the machine's load meets all of them; what is reported is the speed of each
relative to plain decoding in the same round, from the first token on.

    python benches/planner.py --json build/bench/planner.json
"""

import argparse
import json
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import mtp_verify as mv
from mtp_verify.commands.benchmark.figures import Estimate, geometric_mean
from mtp_verify.commands.shared.prompts import OWN, load, pick
from mtp_verify.commands.shared.subjects import subject_for
from mtp_verify.decoder.decode import Decoder, Stats
from mtp_verify.decoder.planning import MeasuredCosts
from mtp_verify.models.cpu.fused import fuse
from mtp_verify.models.target import as_target

PLAIN, PLANNED = "plain", "planned"
FIXED = (1, 2, 4, 8, 16)
GREEDY = mv.SamplingParams(temperature=0.0)


def ways(model: Any, costs: MeasuredCosts) -> dict[str, Decoder]:
    """The rivals; drafters remember nothing between generations."""

    def suffix(nodes: int) -> mv.drafters.Suffix:
        return mv.drafters.Suffix(max_nodes=nodes, min_match=1, depth_factor=2.0)

    return {
        PLAIN: Decoder(model, None, GREEDY, max_batch=1),
        PLANNED: Decoder(model, suffix(16), GREEDY, planner=mv.Planner(costs), max_batch=1),
        **{f"fixed {n}": Decoder(model, suffix(n), GREEDY, max_batch=1) for n in FIXED},
    }


def race(rivals: dict[str, Decoder], ids: list[int], count: int) -> dict[str, tuple[float, Stats]]:
    """One generation by each way, their steps interleaved: whoever is furthest behind goes next.

    All ways pass through the same stretch of time, step by step, so that the machine's load meets
    them alike, however fast it changes.

    Returns:
        Tokens per second after the first step, which reads the prompt, and statistics, by way.
    """
    running = {
        name: rival.submit(ids, max_new_tokens=count, eos_token_id=())
        for name, rival in rivals.items()
    }
    # Tokens of the step that reads the prompt; tokens and seconds of those that follow.
    first, made, seconds = {}, dict.fromkeys(rivals, 0), dict.fromkeys(rivals, 0.0)
    done = {}
    while running:
        name = min(running, key=made.__getitem__)
        start = time.perf_counter()
        emitted = len(rivals[name].step()[running[name]])
        spent = time.perf_counter() - start
        made[name] += emitted
        if name in first:
            seconds[name] += spent
        else:
            first[name] = emitted
        if (result := rivals[name].results().get(running[name])) is not None:
            done[name] = ((made[name] - first[name]) / seconds[name], result.stats)
            del running[name]
    return done


def measure(
    rivals: dict[str, Decoder], ids: list[int], count: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, Stats]]:
    """Tokens per second of every way, round by round, and its last statistics."""
    speeds: dict[str, list[float]] = {name: [] for name in rivals}
    last: dict[str, Stats] = {}
    for turn in range(rounds + 1):
        for name, (speed, stats) in race(rivals, ids, count).items():
            last[name] = stats
            if turn:  # the first turn warms up
                speeds[name].append(speed)
    return speeds, last


def over(mine: list[float], others: list[float]) -> Estimate:
    """Speed relative to another way's, over the rounds."""
    return geometric_mean([a / b for a, b in zip(mine, others, strict=True)])


def text(estimate: Estimate) -> str:
    if estimate.low is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--prompts", type=Path, help="JSON lines, as `bench decode` takes them")
    parser.add_argument("--per-category", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="timed turns of each way")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    subject = subject_for()
    model = subject.load(options.dtype)
    fuse(model)
    costs = MeasuredCosts(as_target(model))
    curve = {width: costs.forward(width) for width in (1, 2, 4, 8, 16)}
    shape = ", ".join(f"{width}: {value / curve[1]:.2f}" for width, value in curve.items())
    print(f"{subject.name}, {options.dtype}, {torch.get_num_threads()} threads, greedy")
    print(f"cost of a forward by width: {shape}")
    prompts = pick(load(options.prompts) if options.prompts else OWN, options.per_category)
    rivals = ways(model, costs)
    lines: list[dict[str, Any]] = []
    for prompt in prompts:
        ids = subject.encode(prompt.prompt)
        speeds, last = measure(rivals, ids, options.max_new_tokens, options.rounds)
        ratios = {name: over(mine, speeds[PLAIN]) for name, mine in speeds.items()}
        best = max(
            (name for name in ratios if name.startswith("fixed")), key=lambda n: ratios[n].value
        )
        lines.append(
            {
                "prompt": prompt.id,
                "category": prompt.category,
                "over_plain": {name: asdict(ratio) for name, ratio in ratios.items()},
                "best_fixed": best,
                "planned_over_best_fixed": asdict(over(speeds[PLANNED], speeds[best])),
                "tau": {name: stats.tau for name, stats in last.items()},
                "budgets": last[PLANNED].budgets,
            }
        )  # fmt: skip
        print(
            f"{prompt.id:16} planned {text(ratios[PLANNED])} x plain; best fixed: {best},"
            f" {text(ratios[best])}",
            flush=True,
        )
    whole = {
        name: geometric_mean([line["over_plain"][name]["value"] for line in lines])
        for name in rivals
    }
    for name, estimate in whole.items():
        least = min(line["over_plain"][name]["value"] for line in lines)
        print(f"{name:10} {text(estimate)} x plain over all prompts; least {least:.3f}")
    report = {
        "bench": "planner",
        "model": subject.name,
        "dtype": options.dtype,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        "machine": platform.processor() or platform.machine(),
        "rounds": options.rounds,
        "max_new_tokens": options.max_new_tokens,
        "costs": curve,
        "over_plain": {name: asdict(estimate) for name, estimate in whole.items()},
        "lines": lines,
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
