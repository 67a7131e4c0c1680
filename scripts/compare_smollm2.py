"""Compare SmolLM2 with and without speculation, right and made biased; write the figures.

    .venv/bin/python scripts/compare_smollm2.py

Writes docs/data/two_sample.json: on SmolLM2 (49,152 tokens) this package's decoder with a right
drafter, and with one whose declared rows are not those that it drew from, against plain decoding;
the wrong one again with other seeds; and 200 comparisons of a right pair of tiny engines. Figures
that are there are not measured again. `tests/docs/test_gallery_page.py` holds the docs to them.
"""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import mtp_verify as mv
from mtp_verify.certification import compare
from mtp_verify.integrations import smollm2
from mtp_verify.testing import TableTarget, mutants

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtp_verify.certification import Comparison

DATA = Path(__file__).parents[1] / "docs" / "data" / "two_sample.json"
TEXTS = ("The weather today is", "My favourite animal is the")
TOP_K = 8  # few enough that the rows of all strings are computed once
PARAMS = mv.SamplingParams(temperature=1.0, top_k=TOP_K)
# The drafter is SmolLM2 itself, hotter than the target.
HEAT = 1.5
NUM_DRAFTS = 2
LENGTH = 3
TV = 0.05  # of the first token, that the wrong drafter is made to move
VOCAB = 49_152


def rows_of(model: Any) -> Callable[[tuple[int, ...]], Any]:
    """Return the model's row (V,) behind a text; texts of one prompt share most of theirs."""
    import torch

    @cache
    def rows(path: tuple[int, ...]) -> Any:
        with torch.inference_mode():
            return model(torch.tensor([path])).logits[0, -1].float()

    return rows


class Hot(mv.Drafter):
    """Draws from the target's rows at temperature `HEAT`; declares those of another one."""

    laws = ("chain",)

    def __init__(self, rows: Callable[[tuple[int, ...]], Any], declared: float = HEAT) -> None:
        self.of_path = cache(
            lambda path: [law(rows(path).numpy(), heat) for heat in (HEAT, declared)]
        )

    def propose(self, requests: Sequence[Any], budgets: Sequence[int]) -> list[Any]:
        """Return a chain for each request."""
        return [self._draft(*pair) for pair in zip(requests, budgets, strict=True)]

    def _draft(self, request: Any, budget: int) -> Any:
        rng = np.random.default_rng((request.seed, len(request.tokens)))
        tokens: list[int] = []
        probs = np.zeros((min(NUM_DRAFTS, budget), VOCAB), np.float32)
        for row in probs:
            (kept, drawn), (_, declared) = self.of_path((*request.tokens, *tokens))
            tokens.append(int(rng.choice(kept, p=drawn)))
            row[kept] = declared
        return mv.Draft.chain(tokens, probs=probs) if tokens else mv.Draft.chain([])


def law(row: Any, temperature: float) -> tuple[Any, Any]:
    """Return the most likely `TOP_K` tokens, rising, and their probabilities."""
    kept = np.sort(np.argpartition(-row, TOP_K)[:TOP_K])
    weights = np.exp((row[kept] - row[kept].max()) / temperature, dtype=np.float64)
    return kept, weights / weights.sum()


def first_token_tv(row: Any, declared: float) -> float:
    """Return how far the first token's distribution is from the target's, exactly."""
    p, q, told = (law(row, heat)[1] for heat in (PARAMS.temperature, HEAT, declared))
    kept = q * np.minimum(1, p / told)
    left = np.maximum(p - told, 0)
    emitted = kept + (1 - kept.sum()) * left / max(left.sum(), 1e-300)
    return float(np.abs(emitted - p).sum() / 2)


def declared_for(rows: Sequence[Any], tv: float) -> float:
    """Return the declared temperature at which the first tokens' root mean square TV is `tv`."""
    low, high = 0.1, HEAT
    while high - low > 1e-4:
        middle = (low + high) / 2
        found = np.sqrt(np.mean([first_token_tv(row, middle) ** 2 for row in rows]))
        low, high = (middle, high) if found > tv else (low, middle)
    return high


def sampler(rows: Callable[[tuple[int, ...]], Any], drafter: Any, name: str) -> Any:
    """Return a sampler by `mv.Decoder`: with a drafter, or without."""
    decoder = mv.Decoder(TableTarget(rows, VOCAB), drafter, PARAMS)

    def sample(prompt: Sequence[int], n: int, seed: int) -> Any:
        options: dict[str, Any] = {"max_new_tokens": LENGTH}
        seeds = range(seed << 20, (seed << 20) + n)
        found = [decoder.generate(list(prompt), seed=own, **options).tokens[0] for own in seeds]
        return np.array([list(tokens)[-LENGTH:] for tokens in found])

    sample.__name__ = name
    return sample


def pairs() -> tuple[dict[str, tuple[Any, Any]], list[list[int]], dict[str, Any]]:
    """Return the pairs to compare, the prompts, and what is known of the wrong drafter."""
    model, tokenizer = smollm2.load("float32")
    rows = rows_of(model)
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    firsts = [rows(tuple(prompt)).numpy() for prompt in prompts]
    declared = declared_for(firsts, TV)
    plain = sampler(rows, None, "plain")
    known: dict[str, Any] = {"declared": round(declared, 4)}
    known |= {"first_token_tv": [round(first_token_tv(row, declared), 4) for row in firsts]}
    made = {
        "biased": (plain, sampler(rows, Hot(rows, declared), "biased speculation")),
        "right": (plain, sampler(rows, Hot(rows), "speculation")),
    }
    return made, prompts, known


def figures(found: Comparison) -> dict[str, Any]:
    """Return what is kept of a comparison."""
    return {
        "verdict": found.verdict,
        "min_tv": found.min_tv,
        "alpha": found.alpha,
        "samples_each": found.num_samples,
        "needed_each": found.num_needed,
        "pilot_each": found.num_pilot,
        "cells": found.num_cells,
        "resolved": round(found.resolved, 3),
        "tv": [round(value, 4) for value in (found.tv.estimate, found.tv.low, found.tv.high)],
        "p": float(f"{min(check.adjusted for check in found.checks):.1e}"),
        "seconds": round(found.seconds, 1),
        "samples_per_second": round(found.samples_per_second),
    }


def alarms(count: int = 200) -> dict[str, Any]:
    """Compare a right engine with itself, with other seeds each time."""
    engine, began = mutants.engine(), time.monotonic()
    found = [
        compare(engine, engine, [(1, 2, 3), (0, 3)], min_tv=0.15, alpha=0.01, seed=100_000 * run)
        for run in range(count)
    ]
    return {
        "runs": count,
        "alpha": 0.01,
        "min_tv": 0.15,
        "alarms": sum(result.verdict == "biased" for result in found),
        "samples_each": found[0].num_samples,
        "seconds": round(time.monotonic() - began, 1),
    }


def power(one: Any, other: Any, prompts: Any, count: int = 5) -> dict[str, Any]:
    """Compare a wrong pair with other seeds each time."""
    found = [
        compare(one, other, prompts, length=LENGTH, min_tv=TV, seed=100_000 * run)
        for run in range(1, count + 1)
    ]
    return {
        "runs": count,
        "found": sum(result.verdict == "biased" for result in found),
        "samples_each": [result.num_samples for result in found],
        "p": [float(f"{min(c.adjusted for c in result.checks):.1e}") for result in found],
        "seconds": [round(result.seconds) for result in found],
    }


def main() -> None:
    """Measure what is missing, and write the figures."""
    data = json.loads(DATA.read_text()) if DATA.exists() else {}
    data |= {"texts": TEXTS, "length": LENGTH, "top_k": TOP_K}
    if not {"biased", "right", "power"} <= data.keys():
        made, prompts, known = pairs()
        for name, (one, other) in made.items():
            if name not in data:
                found = compare(one, other, prompts, length=LENGTH, min_tv=TV)
                data[name] = figures(found) | (known if name == "biased" else {})
        data["power"] = power(*made["biased"], prompts)
    if "false_alarms" not in data:
        data["false_alarms"] = alarms()
    DATA.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
