"""Greedy decoding in vLLM with and without a head, where vLLM is installed and this package is not.

`python vllm_worker.py REQUEST.json` prints one JSON document in its last line: the tokens of both
ways, and how many drafts were made and accepted at each depth.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
}  # fmt: skip


def main(request):
    from vllm import LLM, SamplingParams

    speculation = request["speculation"]
    engine = LLM(
        model=request["model"],
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype=request["dtype"],
        max_model_len=request["max_length"],
        max_num_seqs=4,
        enable_prefix_caching=False,
        disable_log_stats=False,
        speculative_config=speculation,
    )
    params = SamplingParams(
        temperature=0.0, max_tokens=request["max_tokens"], detokenize=False, ignore_eos=True
    )
    tokens = []
    for prompt in request["prompts"]:
        found = engine.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
        tokens.append(list(found[0].outputs[0].token_ids))
    figures = {metric.name: metric for metric in engine.get_metrics()}
    prefix = "vllm:spec_decode_num_"
    report = {"tokens": tokens}
    if speculation:
        report["drafts"] = figures[f"{prefix}drafts"].value
        report["accepted"] = figures[f"{prefix}accepted_tokens_per_pos"].values
    print(json.dumps(report))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
