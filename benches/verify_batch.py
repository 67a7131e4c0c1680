"""Times `mv.verify_batch` against vLLM's own rejection sampler on a CPU, side by side.

Eight sequences with eight drafted tokens each over the vocabulary of a large model, float32 logits
to tokens. The rivals take turns on the same numbers, each with one thread and with one for each
core; the best of each rival's settings counts. The peer is `RejectionSampler.forward` of vLLM with
its C++ kernels, where that is installed (`make vllm` sets up such an environment; run the bench
there). Where it is missing, the report says so. The floor reads every logit once (torch's sum).

    python benches/verify_batch.py --json build/bench/verify_batch.json
"""

import argparse
import importlib
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mtp_verify as mv
from mtp_verify.commands.shared.threads import num_cores

VOCAB = 151_936
SEQUENCES, DRAFTED = 8, 8
DRAFTERS = {"good": 0.25, "fair": 0.6, "bad": 2.0}
SHAPINGS: dict[str, dict[str, Any]] = {
    "T=1": {},
    "top-p 0.9": {"top_p": 0.9},
    "top-k 50, top-p 0.9": {"top_k": 50, "top_p": 0.9},
}


class Setting:
    """A batch of drafts with their logits, and what each rival needs of them."""

    def __init__(self, noise: float) -> None:
        generator = torch.Generator().manual_seed(7)
        # Peaked rows, as language models have: a few tokens hold most of the mass.
        shape = (SEQUENCES, DRAFTED + 1, VOCAB)
        self.logits = 2.0 * torch.randn(shape, generator=generator)
        peaks = torch.randint(VOCAB, (*shape[:2], 20), generator=generator)
        self.logits.scatter_add_(2, peaks, 14.0 * torch.rand(peaks.shape, generator=generator))
        shift = noise * torch.randn((SEQUENCES, DRAFTED, VOCAB), generator=generator)
        self.probs = (self.logits[:, :DRAFTED] + shift).softmax(-1)
        flat = self.probs.reshape(-1, VOCAB)
        self.tokens = torch.multinomial(flat, 1, generator=generator).view(SEQUENCES, DRAFTED)
        self.packed = self.logits.reshape(-1, VOCAB)
        self.lengths = [DRAFTED] * SEQUENCES

    def ours(self, params: mv.SamplingParams, step: int) -> int:
        """Drafts and verifies, as a decoder's step would."""
        drafts = mv.DraftBatch.chains(self.tokens, self.lengths, self.probs)
        seeds, positions = range(SEQUENCES), [100 + 10 * step] * SEQUENCES
        verdicts = mv.verify_batch(drafts, self.packed, params, seeds=seeds, positions=positions)
        return len(verdicts.tokens)

    def floor(self, _step: int) -> int:
        """Reads the logits once."""
        return int(self.packed.sum() * 0)


class Vllm:
    """vLLM's sampler of rejections, as its model runner calls it."""

    def __init__(self) -> None:
        part = importlib.import_module
        # The C++ kernels, in place of those for GPUs: what its workers on CPUs do at their start.
        platform_here = part("vllm.platforms").current_platform
        platform_here.import_kernels()
        platform_here.register_triton_kernel_overrides()
        metadata = part("vllm.v1.spec_decode.metadata").SpecDecodeMetadata
        sampler = part("vllm.v1.sample.sampler").Sampler()
        rejection = part("vllm.v1.sample.rejection_sampler")
        # Its own, on CPUs, leaves the expanded temperatures unwritten (version 0.32).
        vars(rejection)["expand_batch_to_tokens"] = expanded
        self.sampler = rejection.RejectionSampler(sampler)
        self.sampling = part("vllm.v1.sample.metadata").SamplingMetadata
        self.processors = part("vllm.v1.sample.logits_processor").LogitsProcessors
        self.make = metadata.make_dummy

    def step(self, setting: Setting, shaping: dict[str, Any]) -> Callable[[int], int]:
        """One call of it, everything that does not change from step to step at hand."""
        spec = self.make(setting.tokens.tolist(), torch.device("cpu"))
        rows = torch.arange(SEQUENCES * (DRAFTED + 1), dtype=torch.int32).view(SEQUENCES, -1)
        spec.target_logits_indices = rows[:, :-1].flatten()
        spec.bonus_logits_indices = rows[:, -1].contiguous()
        each = {name: torch.full((SEQUENCES,), value) for name, value in shaping.items()}
        none = torch.zeros(SEQUENCES)
        sampling = self.sampling(
            temperature=torch.ones(SEQUENCES),
            all_greedy=False,
            all_random=True,
            top_p=each.get("top_p"),
            top_k=each.get("top_k"),
            generators={},
            max_num_logprobs=None,
            no_penalties=True,
            prompt_token_ids=None,
            frequency_penalties=none,
            presence_penalties=none,
            repetition_penalties=none,
            output_token_ids=[[] for _ in range(SEQUENCES)],
            allowed_token_ids_mask=None,
            bad_words_token_ids={},
            logitsprocs=self.processors(),
        )
        probs = setting.probs.reshape(-1, VOCAB)

        def run(_step: int) -> int:
            found = self.sampler(spec, probs, setting.packed, sampling)
            return int((found.sampled_token_ids >= 0).sum())

        return run


def expanded(
    each: torch.Tensor, ends: torch.Tensor, _total: int, replace_from: int = 0, replace_to: int = 0
) -> torch.Tensor:
    """The value of each request for each of its tokens."""
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    return torch.where(each == replace_from, replace_to, each).repeat_interleave(counts)


def peer() -> tuple[Vllm | None, str]:
    """The sampler of vLLM, or why there is none."""
    try:
        vllm = importlib.import_module("vllm")
    except ImportError as missing:
        return None, f"not measured: vLLM is not installed here ({missing})"
    return Vllm(), f"vllm {vllm.__version__} RejectionSampler"


def with_threads(count: int, run: Callable[[int], int]) -> Callable[[int], int]:
    """The same on so many threads, of torch and of ours."""

    def threaded(step: int) -> int:
        torch.set_num_threads(count)
        mv.verifier.set_num_threads(count)
        return run(step)

    return threaded


def measure(rivals: dict[str, Callable[[int], int]], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each rival, taken in turn, and the tokens that it emitted a step."""
    times: dict[str, list[float]] = {name: [] for name in rivals}
    tokens = dict.fromkeys(rivals, 0)
    for step in range(rounds + 1):
        for name, run in rivals.items():
            start = time.perf_counter()
            found = run(step)
            if step:  # The first turn warms up.
                times[name].append(1e3 * (time.perf_counter() - start))
                tokens[name] += found
    return {
        name: {
            "min": min(values),
            "median": statistics.median(values),
            "tokens_a_sequence": tokens[name] / rounds / SEQUENCES,
        }
        for name, values in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--rounds", type=int, default=20, help="timed calls of each rival")
    options = parser.parse_args()
    theirs, standing = peer()
    print(f"B={SEQUENCES}, K={DRAFTED}, V={VOCAB}, float32; milliseconds a step (best, median)")
    lines: list[dict[str, Any]] = []
    counts = sorted({1, num_cores()})
    for drafter, noise in DRAFTERS.items():
        setting = Setting(noise)
        for shaping, values in SHAPINGS.items():
            params = mv.SamplingParams(**values, preset="vllm")
            runs: dict[str, Callable[[int], int]] = {
                "ours": partial(setting.ours, params),
                "floor": setting.floor,
            }
            if theirs is not None:
                runs["vllm"] = theirs.step(setting, values)
            rivals = {
                f"{name}, {count} threads": with_threads(count, run)
                for name, run in runs.items()
                for count in counts
            }
            found = measure(rivals, options.rounds)
            line: dict[str, Any] = {"drafter": drafter, "shaping": shaping, "milliseconds": found}
            for name, figures in found.items():
                print(
                    f"{drafter:5} {shaping:20} {name:18} {figures['min']:9.2f} "
                    f"{figures['median']:9.2f}   {figures['tokens_a_sequence']:.2f} tokens"
                )
            if theirs is not None:
                line["times_faster"] = {
                    key: best(found, "vllm", key) / best(found, "ours", key)
                    for key in ("min", "median")
                }
                print(f"{'':26} times faster: {line['times_faster']['median']:.1f} (medians)")
            lines.append(line)
    print(f"peer: {standing}")
    report = {
        "bench": "verify_batch",
        "peer": standing,
        "sequences": SEQUENCES,
        "drafted": DRAFTED,
        "vocab": VOCAB,
        "rounds": options.rounds,
        "settings": lines,
        "machine": platform.processor() or platform.machine(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "build": mv.verifier.build_info(),
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def best(found: dict[str, dict[str, float]], name: str, key: str) -> float:
    """The figure of a rival's fastest setting."""
    return min(figures[key] for rival, figures in found.items() if rival.startswith(f"{name}, "))


if __name__ == "__main__":
    main()
