"""Drafting with SmolLM2's head for a batch of requests, beside drafting for one.

Requests have texts of different lengths; in every turn each reads the states of two tokens and
drafts anew. The turns of one request and of the batch alternate: the machine's drift meets both.

    python benches/draft_batch.py --json build/bench/draft_batch.json
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import mtp_verify as mv
from mtp_verify.drafters import Heads, Request
from mtp_verify.integrations import smollm2
from mtp_verify.models.cpu.fused import fuse

BATCH = 8
NODES = 8
WAYS: dict[str, dict[str, Any]] = {
    "greedy chain of 4": {"params": None},
    "drawn chain of 4": {"params": mv.SamplingParams(temperature=0.8, top_p=0.95)},
    "best-first tree of 8": {"max_nodes": NODES},
}


class Drafting:
    """Requests that a drafter drafts for, with states that stand for the target's."""

    def __init__(self, head: Any, count: int, settings: dict[str, Any]) -> None:
        self.head, self.drafter = head, Heads(head, **settings)
        self.generator = torch.Generator().manual_seed(count)
        vocab = head.spec.known_sizes.vocab_size
        self.requests = []
        for index in range(count):
            length = 100 + 13 * index
            tokens = torch.randint(vocab, (length + 1,), generator=self.generator).tolist()
            self.requests.append(Request(index, tokens, length, seed=index))
            self.drafter.start(self.requests[-1])
        self.drafter.propose(self.requests, [0] * count)
        self.commit([request.prompt_len for request in self.requests])

    def commit(self, counts: list[int]) -> None:
        """Hand over states of so many tokens of each request."""
        width, dtype = self.head.spec.known_sizes.hidden_size, self.head.shared.output_weight.dtype
        hidden = [
            tuple(
                torch.randn((count, width), generator=self.generator).to(dtype)
                for _ in self.head.hidden_layers
            )
            for count in counts
        ]
        nothing: Any = [None] * len(counts)
        self.drafter.commit(nothing, hidden)

    def turn(self) -> float:
        """Milliseconds of reading two tokens of each request and drafting."""
        start = time.perf_counter()
        self.drafter.propose(self.requests, [NODES] * len(self.requests))
        took = 1e3 * (time.perf_counter() - start)
        for request in self.requests:
            request.tokens += [5, 6]
        self.commit([2] * len(self.requests))
        return took


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--rounds", type=int, default=31, help="timed turns of each")
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    model, tokenizer = smollm2.load(options.dtype, progress=False)
    head = smollm2.load_head(model, tokenizer)
    fuse(head)
    lines = []
    for name, settings in WAYS.items():
        rivals = {size: Drafting(head, size, settings) for size in (1, BATCH)}
        times: dict[int, list[float]] = {size: [] for size in rivals}
        for turn in range(options.rounds + 1):
            for size, rival in rivals.items():
                took = rival.turn()
                if turn:  # The first one reads the prompts.
                    times[size].append(took)
        ms = {
            str(size): {"min": min(own), "median": statistics.median(own)}
            for size, own in times.items()
        }
        ratio = {kind: ms[str(BATCH)][kind] / ms["1"][kind] for kind in ("min", "median")}
        lines.append({"drafts": name, "milliseconds": ms, "batch_over_one": ratio})
        print(
            f"{name:21} one {ms['1']['min']:6.2f} ({ms['1']['median']:.2f})  of {BATCH}"
            f" {ms[str(BATCH)]['min']:6.2f} ({ms[str(BATCH)]['median']:.2f})  ratio"
            f" {ratio['min']:.2f} ({ratio['median']:.2f})"
        )
    report = {
        "bench": "draft_batch",
        "batch": BATCH,
        "dtype": options.dtype,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        "machine": platform.processor() or platform.machine(),
        "rounds": options.rounds,
        "lines": lines,
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
