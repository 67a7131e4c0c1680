"""Run SmolLM2 in vLLM without speculation, with its own n-gram speculation, and with the plug-in.

`make vllm` runs this in the environment with vLLM's CPU build. The plug-in is run with vLLM's
n-gram drafts and with this package's suffix drafts. Greedy decoding is checked to give the same
tokens all ways (float32), and all are timed in turn (bfloat16), the best of several rounds each.
Exit code 1 if tokens differ. Stock sampled speculation is timed too, although its law is wrong
there (see `mtp-verify certify --engine vllm`): its text is another one, its work is alike.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

# The patch works in this process only; vLLM would start another one.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from mtp_verify.commands.demo import PROMPTS
from mtp_verify.integrations import smollm2
from mtp_verify.integrations import vllm as plugin

WAYS = ("plain", "stock", "plugin", "suffix")
NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": 8,
    "prompt_lookup_max": 3,
    "prompt_lookup_min": 2,
}
SUFFIX = {
    "method": "custom_class",
    "num_speculative_tokens": 8,
    "model": "mtp_verify.integrations.vllm.SuffixProposer",
}


class Engines:
    """Three engines (no drafts, n-gram drafts, suffix drafts) and the four ways to use them."""

    def __init__(self, dtype: str, folder: Path) -> None:
        from vllm import LLM

        def make(speculation: dict[str, Any] | None) -> Any:
            return LLM(
                model=str(folder),
                enforce_eager=True,
                dtype=dtype,
                max_model_len=1024,
                # One request at a time is timed: no more memory and warm-up than that needs.
                max_num_seqs=4,
                max_num_batched_tokens=1024,
                enable_prefix_caching=False,
                speculative_config=speculation,
            )

        # Once numba is loaded, as n-gram speculation does, vLLM 0.32 fails to make another engine.
        plain, suffix, ngram = make(None), make(SUFFIX), make(NGRAM)
        self.engines = {"plain": plain, "stock": ngram, "plugin": ngram, "suffix": suffix}
        tokenizer = plain.get_tokenizer()
        self.prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt.prompt}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
            for prompt in PROMPTS
        ]

    def run(self, way: str, **settings: Any) -> tuple[list[list[int]], float]:
        """Generate for one prompt after the other: the tokens, and the seconds it took."""
        from vllm import SamplingParams

        if way in {"plugin", "suffix"}:
            plugin.install()
        else:
            plugin.uninstall()
        engine = self.engines[way]
        params = SamplingParams(ignore_eos=True, detokenize=False, **settings)
        started = time.perf_counter()
        tokens = []
        for prompt in self.prompts:
            found = engine.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
            tokens.append(list(found[0].outputs[0].token_ids))
        return tokens, time.perf_counter() - started


def compare(folder: Path, tokens: int) -> dict[str, bool]:
    """Whether each way with speculation emits plain decoding's greedy tokens, in float32."""
    engines = Engines("float32", folder)
    greedy = {way: engines.run(way, temperature=0.0, max_tokens=tokens)[0] for way in WAYS}
    return {way: greedy[way] == greedy["plain"] for way in WAYS[1:]}


def race(folder: Path, tokens: int, repeats: int) -> dict[str, dict[str, float]]:
    """Tokens per second of each way, greedy and sampled, in bfloat16: the best of the rounds."""
    engines = Engines("bfloat16", folder)
    kinds: dict[str, dict[str, Any]] = {
        "greedy": {"temperature": 0.0},
        "sampled": {"temperature": 0.8, "top_p": 0.95, "seed": 7},
    }
    rates: dict[str, dict[str, float]] = {}
    for kind, settings in kinds.items():
        best = dict.fromkeys(WAYS, 0.0)
        for _ in range(repeats):
            for way in WAYS:
                made, seconds = engines.run(way, max_tokens=tokens, **settings)
                best[way] = max(best[way], sum(map(len, made)) / seconds)
        rates[kind] = best
    return rates


def main() -> int:
    """Compare, time, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--tokens", type=int, default=128, help="per prompt (default 128)")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds (default 3)")
    args = parser.parse_args()
    import vllm

    folder = smollm2.prepare()
    # A process for each dtype's engines, as n-gram speculation must be the last of a process.
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as processes:
        equal = processes.submit(compare, folder, args.tokens).result()
        rates = processes.submit(race, folder, args.tokens, args.repeats).result()
    report = {
        "vllm": vllm.__version__,
        "model": "SmolLM2-135M-Instruct",
        "prompts": [prompt.category for prompt in PROMPTS],
        "tokens_per_prompt": args.tokens,
        "repeats": args.repeats,
        "speculation": {"stock": NGRAM, "plugin": NGRAM, "suffix": SUFFIX},
        "greedy_equal_to_plain_float32": equal,
        "tokens_per_second_bfloat16": rates,
        "ratio_to_stock": {
            kind: {way: speeds[way] / speeds["stock"] for way in ("plugin", "suffix")}
            for kind, speeds in rates.items()
        },
        "ratio_to_plain": {
            kind: {way: speeds[way] / speeds["plain"] for way in WAYS[1:]}
            for kind, speeds in rates.items()
        },
    }
    text = json.dumps(report, indent=2)
    args.json.write_text(text + "\n")
    sys.stdout.write(text + "\n")
    return 0 if equal["plugin"] and equal["suffix"] else 1


if __name__ == "__main__":
    sys.exit(main())
