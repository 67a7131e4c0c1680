"""What the rules accept of small drawn trees on recorded rows of a model, and how long they take.

Rows are those of `mtp_verify.testing.recorded_logits`: SmolLM2 after the whole text as the target,
after its last four tokens as the drafter. The rows after a node are those of the place so many
places further on as the node is deep. A mean length is one and the mean of `expected_accepted` over
drafts.

    python benches/rules.py --json docs/data/rules.json
"""

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before numpy is loaded: threads that spin on a shared core would time each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import mtp_verify as mv
from mtp_verify.testing import draw_logits, recorded_logits
from mtp_verify.verifier import alpha_star
from mtp_verify.verifier.growers import Fixed, TreeShape
from mtp_verify.verifier.words import Rule

SHAPES = ((2,), (4,), (2, 1), (2, 2), (3, 1, 1))
TEMPERATURES = (1.0, 0.7)
RULES: dict[str, tuple[Rule, ...]] = {
    "iid": ("specinfer", "traversal", "kseq", "gbv", "global_resolution"),
    "swor": ("traversal",),
    "top_plus_one": ("lifted_hu",),
}
VOCAB = 49_152
TIMED = ((2,), (3, 1, 1))


def takes(rule: str, shape: Sequence[int]) -> bool:
    """Whether a rule takes trees of a shape."""
    return rule != "gbv" or all(width == 1 for width in shape[1:])


def drawn(
    drafter: Any, shape: Sequence[int], law: Any, params: mv.SamplingParams, seed: int
) -> mv.Draft:
    """Draw a tree from logits by depth, (depths, V)."""
    grower = Fixed(TreeShape.by_depth(*shape), law, params=params, seed=seed, position=1)
    return grower.grow(lambda paths: drafter[[len(path) for path in paths]])


def lengths(
    shape: Sequence[int], law: str, params: mv.SamplingParams, count: int
) -> dict[str, dict[str, float]]:
    """Return the mean length of each rule on a law's drafts, and its standard error."""
    recorded = recorded_logits().astype(np.float32)
    found: dict[Rule, list[list[float]]] = {rule: [] for rule in RULES[law] if takes(rule, shape)}
    for place in range(len(recorded)):
        rows = recorded[(place + np.arange(len(shape) + 1)) % len(recorded)]
        for means in found.values():
            means.append([])
        for number in range(count):
            draft = drawn(rows[:, 1], shape, law, params, place * count + number)
            logits = rows[draft.tree.depths, 0]
            for rule, means in found.items():
                means[-1].append(1 + mv.expected_accepted(draft, logits, params, rule))
    return {
        rule: {
            "mean": float(np.mean(means)),
            "error": float(np.sqrt(np.var(means, axis=1, ddof=1).sum() / count) / len(means)),
        }
        for rule, means in found.items()
    }


def best(n: int, params: mv.SamplingParams) -> float:
    """Return the best mean length of one level of independent drafts."""
    rows = recorded_logits().astype(np.float64) / params.temperature
    rows = np.exp(rows - rows.max(axis=2, keepdims=True))
    rows /= rows.sum(axis=2, keepdims=True)
    return float(np.mean([1 + alpha_star(p, q, n, "iid") for p, q in rows]))


def times(shape: Sequence[int], rounds: int) -> dict[str, float]:
    """Return the median milliseconds of a verdict on independent drafts, by rule."""
    target, drafter = draw_logits(np.random.default_rng(1), VOCAB, len(shape) + 1, kind="recorded")
    params = mv.SamplingParams()
    rules = [rule for rule in RULES["iid"] if takes(rule, shape)]
    found: dict[Rule, list[float]] = {rule: [] for rule in rules}
    order = random.Random(0)
    for turn in range(rounds + 1):
        draft = drawn(drafter, shape, "iid", params, turn)
        logits = target[draft.tree.depths]
        order.shuffle(rules)
        for rule in rules:
            start = time.perf_counter()
            mv.verify(draft, logits, params, rule=rule, seed=turn, position=1)
            if turn:  # The first turn warms up.
                found[rule].append((time.perf_counter() - start) * 1e3)
    return {rule: statistics.median(found[rule]) for rule in RULES["iid"] if rule in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the report goes")
    parser.add_argument("--drafts", type=int, default=40, help="of each place, law and shape")
    parser.add_argument("--rounds", type=int, default=31, help="timed verdicts of each rule")
    options = parser.parse_args()
    report: dict[str, Any] = {"drafts": options.drafts, "vocab": VOCAB, "lengths": [], "times": []}
    for temperature in TEMPERATURES:
        params = mv.SamplingParams(temperature=temperature)
        for shape in SHAPES:
            line: dict[str, Any] = {"temperature": temperature, "shape": list(shape)}
            for law in RULES:
                line[law] = lengths(shape, law, params, options.drafts)
            if len(shape) == 1:
                line["best"] = best(shape[0], params)
            report["lengths"].append(line)
            print(json.dumps(line))
    for shape in TIMED:
        line = {"shape": list(shape), "milliseconds": times(shape, options.rounds)}
        report["times"].append(line)
        print(json.dumps(line))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
