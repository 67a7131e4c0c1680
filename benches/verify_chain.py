"""Times `mv.verify` on a chain against transformers' own speculative sampling, side by side.

Eight drafted tokens over the vocabulary of a large model, one thread, logits to tokens. Every row
of the table is one setting; the rivals take turns inside it, on the same numbers. "floor" reads
each logit of all nine rows once (torch's sum), which no verifier that needs those rows can beat.

    python benches/verify_chain.py --json build/bench/verify_chain.json
"""

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch is loaded: OpenMP threads that spin on a shared core would time each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import transformers
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.utils import _speculative_sampling

import mtp_verify as mv
from mtp_verify.verifier.words import Rule

VOCAB = 151_936
DRAFTED = 8
POSITION = 100

# How far the drafter is from the target: the standard deviation of the noise on its logits.
DRAFTERS = {"equal": 0.0, "good": 0.25, "fair": 0.6, "bad": 2.0}


class Setting:
    """One draft with its logits and what each rival needs of them."""

    def __init__(self, noise: float, dtype: torch.dtype, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        # Peaked rows, as language models have: a few tokens hold most of the mass.
        logits = 2.0 * torch.randn(1, DRAFTED + 1, VOCAB, generator=generator)
        peaks = torch.randint(VOCAB, (1, DRAFTED + 1, 20), generator=generator)
        logits.scatter_add_(2, peaks, 14.0 * torch.rand(peaks.shape, generator=generator))
        self.logits = logits.to(dtype).float()
        self.raw = self.logits[0].to(dtype)
        shift = noise * torch.randn(1, DRAFTED, VOCAB, generator=generator)
        self.draft_logits = self.logits[:, :DRAFTED] + shift
        self.probs = self.draft_logits.softmax(-1)[0]
        self.tokens = torch.multinomial(self.probs, 1, generator=generator)[:, 0]
        self.ids = torch.cat([torch.zeros(4, dtype=torch.long), self.tokens])[None]

    def ours(self, params: mv.SamplingParams, rule: Rule, seed: int) -> mv.Verdict:
        """Draft and verify, as a decoder's step would."""
        draft = mv.Draft.chain(self.tokens, self.probs)
        return mv.verify(draft, self.raw, params, rule=rule, seed=seed, position=POSITION)

    def theirs(self, warpers: LogitsProcessorList) -> torch.Tensor:
        """Transformers' processors on every row, then its rule."""
        logits = self.logits
        if warpers:
            rows = [
                warpers(self.ids[:, : 4 + row], logits[:, row].clone())
                for row in range(DRAFTED + 1)
            ]
            logits = torch.stack(rows, dim=1)
        found = _speculative_sampling(self.ids, self.draft_logits, DRAFTED, logits)
        tokens: torch.Tensor = found[0]
        return tokens


def milliseconds(rivals: dict[str, Callable[[int], object]], rounds: int) -> dict[str, list[float]]:
    """Times of each rival, taken in turn so that the machine's drift meets all of them.

    Their order is drawn anew in each turn: what one leaves in the caches meets each of the others.
    """
    times: dict[str, list[float]] = {name: [] for name in rivals}
    order, chance = list(rivals), random.Random(0)
    for turn in range(rounds + 1):
        chance.shuffle(order)
        for name in order:
            start = time.perf_counter()
            rivals[name](turn)
            if turn:  # The first turn warms up.
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def warpers(params: mv.SamplingParams) -> LogitsProcessorList:
    """Transformers' own processors for the same parameters."""
    chain = LogitsProcessorList()
    if params.temperature != 1:
        chain.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        chain.append(TopPLogitsWarper(params.top_p))
    return chain


def measure(
    drafter: str, params: mv.SamplingParams, label: str, dtype: torch.dtype, rounds: int
) -> dict[str, Any]:
    """One line of the report."""
    setting = Setting(DRAFTERS[drafter], dtype, seed=7)
    chain = warpers(params)
    torch.manual_seed(0)
    accepted = [setting.ours(params, "token", seed).num_accepted for seed in range(64)]
    times = milliseconds(
        {
            "transformers": lambda _turn: setting.theirs(chain),
            "token": lambda turn: setting.ours(params, "token", turn),
            "block": lambda turn: setting.ours(params, "block", turn),
            "floor": lambda _turn: setting.raw.sum(),
        },
        rounds,
    )
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "drafter": drafter,
        "shaping": label,
        "dtype": str(dtype).removeprefix("torch."),
        "accepted_by_token_rule": float(np.mean(accepted)),
        "milliseconds": {
            name: {"min": min(values), "median": median[name]} for name, values in times.items()
        },
        "times_faster": {
            name: {
                "min": min(times["transformers"]) / min(times[name]),
                "median": median["transformers"] / median[name],
            }
            for name in ("token", "block")
        },
        "over_floor": {name: min(times[name]) / min(times["floor"]) for name in ("token", "block")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--rounds", type=int, default=21, help="timed turns of each rival")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plain, nucleus = mv.SamplingParams(), mv.SamplingParams(top_p=0.9)
    few = mv.SamplingParams(top_k=50, top_p=0.9)
    cases = [(drafter, plain, "T=1", torch.float32) for drafter in DRAFTERS]
    cases += [("good", plain, "T=1", torch.bfloat16)]
    cases += [("good", few, "top-k 50 + top-p 0.9", torch.float32)]
    cases += [("good", nucleus, "top-p 0.9", torch.float32)]
    lines = []
    print(f"K={DRAFTED}, V={VOCAB:,}, 1 thread, medians of {options.rounds} turns, ms")
    print(f"{'drafter':8} {'shaping':21} {'dtype':9} {'acc':>4} {'HF':>7} {'token':>7} {'block':>7}"
          f" {'floor':>6} {'HF/token':>9} {'HF/block':>9}")  # fmt: skip
    for drafter, params, label, dtype in cases:
        line = measure(drafter, params, label, dtype, options.rounds)
        lines.append(line)
        ms, faster = line["milliseconds"], line["times_faster"]
        print(
            f"{drafter:8} {label:21} {line['dtype']:9} {line['accepted_by_token_rule']:4.1f} "
            f"{ms['transformers']['median']:7.2f} {ms['token']['median']:7.3f} "
            f"{ms['block']['median']:7.3f} {ms['floor']['median']:6.3f} "
            f"{faster['token']['median']:8.1f}x {faster['block']['median']:8.1f}x"
        )
    report = {
        "bench": "verify_chain",
        "peer": f"transformers {transformers.__version__} _speculative_sampling",
        "drafted": DRAFTED,
        "vocabulary": VOCAB,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "build": mv.verifier.build_info(),
        "torch": torch.__version__,
        "lines": lines,
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
