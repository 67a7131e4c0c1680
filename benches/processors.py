"""Times penalties as a share of a real speculative step, beside transformers' processors.

Sixteen drafted nodes over SmolLM2's vocabulary and a history of 512 tokens, under a repetition
penalty, no repeated 3-gram and 64 biases. The draft is a chain that is accepted whole, so that all
17 rows are read and penalised. What penalties add is the difference of two verifications; the step
is the model's own forward over root and nodes plus the verification. The peer's processors are
called for each node on that node's prefix, as its own assisted decoding does.

    python benches/processors.py --json build/bench/processors.json
"""

import argparse
import json
import os
import platform
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
from transformers import DynamicCache
from transformers.generation.logits_process import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

import mtp_verify as mv
from mtp_verify.integrations import smollm2

VOCAB, NODES, HISTORY = 49_152, 16, 512


class Setting:
    """One step: history, draft and rows, and what each rival does with them."""

    def __init__(self, dtype: torch.dtype) -> None:
        rng = np.random.default_rng(5)
        # Few tokens come often, as in text; the drafted ones are new.
        self.history = (rng.zipf(1.3, HISTORY) % (VOCAB // 2)).tolist()
        self.tokens = (VOCAB // 2 + rng.permutation(VOCAB // 2)[: NODES + 1]).tolist()
        logits = 2 * rng.standard_normal((NODES + 1, VOCAB)).astype(np.float32)
        logits[range(NODES + 1), self.tokens] = 30
        self.logits = torch.from_numpy(logits).to(dtype)
        self.draft = mv.Draft.chain(self.tokens[:-1])
        biases = {
            int(t): float(b)
            for t, b in zip(rng.permutation(VOCAB)[:64], rng.random(64), strict=True)
        }
        self.plain = mv.SamplingParams(temperature=0.8)
        self.params = mv.SamplingParams(
            temperature=0.8, repetition_penalty=1.2, no_repeat_ngram_size=3, logit_bias=biases
        )
        self.processors = LogitsProcessorList(
            [
                SequenceBiasLogitsProcessor([[[t], b] for t, b in biases.items()]),
                RepetitionPenaltyLogitsProcessor(1.2),
                NoRepeatNGramLogitsProcessor(3),
            ]
        )

    def verify(self, params: mv.SamplingParams, seed: int) -> mv.Verdict:
        """All that a decoder does: the history is handed over anew each step."""
        verdict = mv.verify(
            self.draft, self.logits, params, seed=seed, position=HISTORY - 1,
            history=self.history, prompt_len=HISTORY // 2,
        )  # fmt: skip
        assert verdict.num_accepted == NODES
        return verdict

    def theirs(self) -> list[torch.Tensor]:
        """The same penalties on every node's row."""
        rows = self.logits.float()
        text = torch.tensor([self.history + self.tokens])
        return [
            self.processors(text[:, : HISTORY + node], rows[node : node + 1])
            for node in range(NODES + 1)
        ]


def forward_of(model: Any) -> Callable[[], object]:
    """The model's forward over root and nodes, behind the history."""
    ids = torch.randint(VOCAB, (1, HISTORY + NODES), generator=torch.Generator().manual_seed(0))
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(ids[:, : HISTORY - 1], past_key_values=cache, logits_to_keep=1)

    def forward() -> None:
        with torch.inference_mode():
            model(ids[:, HISTORY - 1 :], past_key_values=cache)
        cache.crop(-(NODES + 1))

    return forward


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--rounds", type=int, default=21, help="timed turns of each rival")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = smollm2.load(torch.bfloat16)
    setting = Setting(torch.bfloat16)
    forward = forward_of(model)
    rivals: dict[str, Callable[[int], object]] = {
        "forward": lambda _turn: forward(),
        "transformers": lambda _turn: setting.theirs(),
        "plain": lambda turn: setting.verify(setting.plain, turn),
        "penalised": lambda turn: setting.verify(setting.params, turn),
    }
    # A verification is a thousandth of a forward: it is timed over several calls.
    calls = {"forward": 1, "transformers": 1, "plain": 10, "penalised": 10}
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(options.rounds + 1):
        for name, call in rivals.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                call(turn)
            if turn:  # The first turn warms up.
                times[name].append((time.perf_counter() - start) * 1e3 / calls[name])
    median = {name: statistics.median(values) for name, values in times.items()}
    pairs = zip(times["penalised"], times["plain"], strict=True)
    added = statistics.median(penalised - plain for penalised, plain in pairs)
    share = added / (median["forward"] + median["penalised"])
    print(f"{NODES} nodes, V={VOCAB:,}, history {HISTORY}, 1 thread, {options.rounds} turns, ms")
    for name, ms in median.items():
        print(f"  {name:13} median {ms:8.3f}   min {min(times[name]):8.3f}")
    times_more = median["transformers"] / added
    print(f"  penalties add {added:.3f} ms, {share:.2%} of a step; transformers' {times_more:.0f}x")
    report = {
        "bench": "processors",
        "peer": f"transformers {transformers.__version__} processors, row by row",
        "nodes": NODES,
        "vocabulary": VOCAB,
        "history": HISTORY,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "build": mv.verifier.build_info(),
        "torch": torch.__version__,
        "milliseconds": {
            name: {"median": median[name], "min": min(values)} for name, values in times.items()
        },
        "added": added,
        "share_of_a_step": share,
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
