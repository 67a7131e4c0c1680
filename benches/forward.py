"""Forwards of SmolLM2 over a few rows: the model's own code, with weights laid out, and fused.

The three take turns on the same cache, width by width, so that the machine's load meets them alike.

    python benches/forward.py --json build/bench/forward.json
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

import mtp_verify as mv
from mtp_verify.commands.shared.threads import use_best
from mtp_verify.integrations import smollm2
from mtp_verify.models.cpu.fused import fuse
from mtp_verify.models.cpu.packing import prepack
from mtp_verify.models.target import TransformersTarget

OWN, LAID_OUT, FUSED = "own", "laid out", "fused"
PAST = 200  # entries that each forward sees


def load(way: str) -> TransformersTarget:
    model, _ = smollm2.load("bfloat16")
    if way == LAID_OUT:
        prepack(model)
    elif way == FUSED:
        fuse(model)
    return TransformersTarget(model)


def forward_of(target: TransformersTarget, width: int) -> Callable[[], float]:
    """A forward over a chain of that many tokens; returns its milliseconds."""
    tokens = torch.arange(1000, 1000 + PAST + width)[None]
    cache = target.new_cache()
    target.forward(tokens[:, :PAST], None, None, cache, num_logits=1)

    def run() -> float:
        start = time.perf_counter()
        target.forward(tokens[:, PAST:], None, None, cache, num_logits=width)
        spent = time.perf_counter() - start
        cache.crop(PAST)
        return spent * 1e3

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    targets = {way: load(way) for way in (OWN, LAID_OUT, FUSED)}
    use_best(targets[OWN].model)
    rows = []
    with torch.inference_mode():
        for width in args.widths:
            rivals = {name: forward_of(target, width) for name, target in targets.items()}
            turns: dict[str, list[float]] = {name: [] for name in rivals}
            for _ in range(args.rounds):
                for name, run in rivals.items():
                    turns[name].append(run())
            row = {
                name: {"min": min(times), "median": statistics.median(times)}
                for name, times in turns.items()
            }
            rows.append({"width": width, "milliseconds": row})
            print(
                width, {name: f"{t['median']:.1f} (min {t['min']:.1f})" for name, t in row.items()}
            )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        machine = {"processor": platform.processor(), "cpus": os.cpu_count()}
        versions = {
            "mtp_verify": mv.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        found = {
            "past": PAST, "rounds": args.rounds, "threads": torch.get_num_threads(),
            "rows": rows, "machine": machine, "versions": versions,
        }  # fmt: skip
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
