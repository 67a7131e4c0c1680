"""The simulator's throughput against SmolLM2's, at batch sizes 1 and 8, plain and speculative.

In every round the costs of a forward are measured, the model decodes plainly and speculatively, and
the simulator is run on those costs: the machine's load meets all of them. The drafter knows the
greedy text and errs at random, so that its rate of acceptance is known to the simulator too.

    python benches/simulation.py --json build/bench/simulation.json
"""

import argparse
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import mtp_verify as mv
from mtp_verify.commands.shared.prompts import OWN
from mtp_verify.commands.shared.subjects import subject_for
from mtp_verify.decoder.decode import Decoder
from mtp_verify.decoder.planning import Costs
from mtp_verify.decoder.planning.costs import measure
from mtp_verify.models.target import as_target
from studies.simulation.cluster import Cluster, Job, simulate
from studies.simulation.drafts import Drafts
from studies.simulation.policies import Fixed

SIZES = (1, 8)
NODES, RATE = 4, 0.7
GREEDY = mv.SamplingParams(temperature=0.0)


class Knowing(mv.Drafter):
    """Drafts the known continuation, each token right with probability `RATE`."""

    makes_trees = False

    def __init__(self, texts: Sequence[list[int]]) -> None:
        self._texts = texts
        self._draws = np.random.default_rng(0)

    def propose(self, requests: Sequence[Any], budgets: Sequence[int]) -> list[mv.Draft]:
        """Draft chains."""
        return [self._draft(r, min(b, NODES)) for r, b in zip(requests, budgets, strict=True)]

    def _draft(self, request: Any, count: int) -> mv.Draft:
        place, size = len(request.tokens), request.prompt_len
        text = next(t for t in self._texts if t[:size] == request.tokens[:size])
        tokens = text[place : place + count]
        wrong = self._draws.random(len(tokens)) >= RATE
        tokens = [token + int(bad) for token, bad in zip(tokens, wrong, strict=True)]
        return mv.Draft.chain(tokens, root=request.tokens[-1])


def decode(model: Any, drafter: Any, rows: list[list[int]], count: int) -> Any:
    made = Decoder(model, drafter, GREEDY).generate(rows, max_new_tokens=count, eos_token_id=())
    return made


def simulated(costs: Costs, rows: list[list[int]], count: int, budget: int) -> float:
    """Tokens per second of the simulator on the same requests."""
    drafts = Drafts([RATE], max_nodes=NODES, max_depth=NODES)
    jobs = [Job(index, 0.0, len(row), count) for index, row in enumerate(rows)]
    outcome = simulate(Cluster(costs, drafts), jobs, lambda: Fixed(budget))
    return outcome.figures()["tokens_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    options = parser.parse_args()
    count = options.max_new_tokens
    subject = subject_for()
    # In float32 a wider forward hardly ever changes the greedy text that the drafter knows.
    model = subject.load("float32")
    target = as_target(model)
    lines = []
    for size in SIZES:
        rows = [subject.encode(prompt.prompt) for prompt in OWN[:size]]
        longest = max(map(len, rows))
        made = decode(model, None, rows, count)
        drafter = Knowing([row + new for row, new in zip(rows, made.tokens, strict=True)])
        rounds: list[dict[str, float]] = []
        for _ in range(options.rounds):
            costs = Costs(
                {
                    1: measure(target, widths=(1, 1 + NODES, longest)),
                    size: measure(target, size, widths=(1, 1 + NODES)),
                }
                if size > 1
                else {1: measure(target, widths=(1, 1 + NODES, longest))}
            )
            plain, fast = (decode(model, d, rows, count).stats for d in (None, drafter))
            rounds.append(
                {
                    "plain": plain.tokens_per_second,
                    "plain_simulated": simulated(costs, rows, count, 0),
                    "speculative": fast.tokens_per_second,
                    "speculative_simulated": simulated(costs, rows, count, NODES),
                    "tau": fast.tau,
                }
            )
        line: dict[str, Any] = {"batch": size, "rounds": rounds}
        for name in ("plain", "speculative"):
            ratios = [found[f"{name}_simulated"] / found[name] for found in rounds]
            line[f"{name}_simulated_over_measured"] = median(ratios)
            speed = median(found[name] for found in rounds)
            print(
                f"batch {size}, {name:11}: measured {speed:7.1f} tokens/s, simulated over measured"
                f" {median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})",
                flush=True,
            )
        lines.append(line)
    report = {
        "bench": "simulation",
        "model": subject.name,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        "machine": platform.processor() or platform.machine(),
        "max_new_tokens": count,
        "drafter": {"nodes": NODES, "rate": RATE},
        "lines": lines,
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
