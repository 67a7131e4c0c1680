"""Drafters at work: what each earns for one target, prompt by prompt in turn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mtp_verify.decoder.decode import Decoder
from mtp_verify.decoder.generation import Stats
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

__all__ = ["MODES", "PLAIN", "decode", "figures"]

PLAIN = "no draft"
MODES = {
    "greedy": SamplingParams(temperature=0.0),
    "sampled": SamplingParams(temperature=1.0),
}


def decode(
    target: Any, drafters: Mapping[str, Any], prompts: torch.Tensor, *, new_tokens: int
) -> dict[str, dict[str, Stats]]:
    """Continue each prompt plainly and with every drafter, in an order that turns.

    Args:
        target: a transformers model.
        drafters: by name.
        prompts: (N, T).
        new_tokens: of each continuation.

    Returns:
        By mode and name, the statistics of all prompts together.
    """
    ways: list[tuple[str, Any]] = [(PLAIN, None), *drafters.items()]
    found = {mode: {name: Stats() for name, _ in ways} for mode in MODES}
    for index, prompt in enumerate(prompts):
        shift = index % len(ways)
        for mode, params in MODES.items():
            for name, drafter in ways[shift:] + ways[:shift]:
                decoder = Decoder(target, drafter, params)
                made = decoder.generate(prompt, max_new_tokens=new_tokens, seed=index)
                found[mode][name].merge(made.stats)
    return found


def figures(stats: Stats) -> dict[str, Any]:
    """What a study reports of a drafter.

    Args:
        stats: of its generations.

    Returns:
        `tau` and its standard error over steps; `by_depth`, the share of the drafted tokens that
        was accepted where all before them was, and how many were tried; `draft_ms`, a draft's cost;
        `tokens_per_second`.
    """
    mean = stats.tau
    spread = sum(
        count * (emitted - mean) ** 2 for emitted, count in enumerate(stats.lengths)
    ) / max(stats.steps, 1)
    return {
        "tau": mean,
        "tau_error": math.sqrt(spread / max(stats.steps, 1)),
        "by_depth": [
            kept / max(tried, 1)
            for kept, tried in zip(stats.accepted_at, stats.attempted, strict=True)
        ],
        "tried": list(stats.attempted),
        "draft_ms": 1e3 * stats.seconds["draft"] / max(stats.steps, 1),
        "tokens_per_second": stats.tokens_per_second,
    }
