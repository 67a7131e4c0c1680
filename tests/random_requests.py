"""Random requests for tests of device code: trees of every law, rows of many kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

import mtp_verify as mv
from mtp_verify.verifier.reference import shaped
from tests.steps import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtp_verify.verifier.words import Law, Rule

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RULES = {rule["name"]: rule for rule in mv.rules()}
CORES: tuple[Rule, ...] = ("target_only", "coupled", "topdown", "lifted")
SAMPLED: tuple[Law, ...] = ("chain", "iid", "swor", "top_plus_one", "mixed")
LAWS: tuple[Law, ...] = ("deterministic", *SAMPLED)
KINDS = ("plain", "peaked", "flat", "tied", "wide", "masked", "near", "holes")


def random_logits(
    rng: np.random.Generator,
    rows: int,
    vocab: int,
    dtype: torch.dtype,
    kinds: Sequence[str],
    spread: float = 3.0,
) -> torch.Tensor:
    """Return (rows, vocab) logits, each row of a random kind."""
    found = np.empty((rows, vocab), np.float32)
    common = int(rng.integers(vocab))
    for row in found:
        kind = kinds[rng.integers(len(kinds))]
        scale = {"peaked": 30.0, "flat": 0.01, "wide": 200.0, "near": 1.0}.get(kind, spread)
        middle = 0.0 if kind == "holes" else rng.normal(0, 5)
        row[:] = rng.normal(middle, scale, vocab)
        if kind == "tied":
            row[:] = np.round(row)
        if kind == "masked":
            row[rng.random(vocab) < 0.9] = -np.inf
            row[rng.integers(vocab)] = 1.0
        if kind == "holes":
            row[rng.random(vocab) < 0.1] = -np.inf
            row[common] = spread
    return torch.tensor(found).to(dtype)


def random_parents(rng: np.random.Generator, nodes: int, law: str) -> list[int]:
    """Return the parents of a random tree with `nodes` nodes below its root."""
    if law == "chain":
        return list(range(-1, nodes))
    deep = rng.random() < 0.5
    return [-1] + [int(rng.integers(max(0, i - 3) if deep else 0, i)) for i in range(1, nodes + 1)]


def random_mask(rng: np.random.Generator, rows: int, vocab: int) -> np.ndarray:
    """Return a mask that forbids few tokens or many, and not all."""
    bits = rng.random((rows, -(-vocab // 32) * 32)) < rng.choice([0.1, 0.5, 0.8, 0.99])
    bits[np.arange(rows), rng.integers(vocab, size=rows)] = True
    return np.ascontiguousarray(np.packbits(bits, axis=1, bitorder="little").view(np.int32))


def random_request(
    rng: np.random.Generator,
    law: Law,
    rule: Rule,
    *,
    vocab: int = 12,
    nodes: int = 6,
    parents: list[int] | None = None,
    target: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    drafter_dtype: torch.dtype | None = None,
    is_logits: bool = False,
    drafted_as: mv.SamplingParams | None = None,
    columns: list[int] | None = None,
    params: mv.SamplingParams | None = None,
    near: Sequence[float] = (1.0,),
    kinds: Sequence[str] = ("holes",),
    spread: float = 2.0,
    masked: bool = False,
) -> Request:
    """Return a request whose tokens were drawn as its law says.

    Args:
        rng: Where choices come from.
        law: Of the draft.
        rule: Its name.
        vocab: V.
        nodes: Below the root, at most.
        parents: A tree's shape in place of a random one.
        target: (N+1 or more, V) of `dtype`, the target's rows in place of random ones.
        dtype: Of the target's rows.
        drafter_dtype: Of the drafter's rows; None: as the target's.
        is_logits: Whether the drafter's rows are logits.
        drafted_as: How the drafter's rows are shaped, or were; None: as the target's.
        columns: The tokens of the drafter's sub-vocabulary; those of a step share it.
        params: Of the target's rows.
        near: How far the drafter's logits are from the target's, after each node one of these.
        kinds: Of the target's rows.
        spread: Of the logits.
        masked: Whether a mask forbids some tokens of the target.
    """
    params = params or mv.SamplingParams()
    drafted_as, drafter_dtype = drafted_as or params, drafter_dtype or dtype
    parents = parents or random_parents(rng, int(rng.integers(0, nodes + 1)), law)
    if target is None:
        target = random_logits(rng, len(parents), vocab, dtype, kinds, spread)
    target = target[: len(parents)]
    tokens_of = np.arange(vocab) if columns is None else np.array(columns)
    values = target.double().numpy()
    values = np.where(np.isfinite(values), np.clip(values, -30, 30), -3.0)[:, tokens_of]
    far = rng.choice(near, size=(len(parents), 1))
    drafter = torch.tensor(values + far * rng.standard_normal(values.shape)).to(drafter_dtype)
    q = np.array([shaped(row, drafted_as) for row in drafter.float().numpy()])
    if not is_logits:
        drafter = torch.tensor(q).to(drafter_dtype)
        q = drafter.double().numpy()
    order = q if law in SAMPLED else _wanted(rng, target)
    tokens, sampled, kept = _grow(rng, parents, law, order)
    number = np.cumsum(kept) - 1
    index = np.flatnonzero(kept)
    place = tokens_of if law in SAMPLED else np.arange(vocab)
    return Request(
        parents=[-1 if node == 0 else int(number[parents[node]]) for node in index],
        tokens=[-1 if node == 0 else int(place[tokens[node]]) for node in index],
        law=law,
        logits=target[index],
        params=params,
        rule=rule,
        seed=int(rng.integers(0, 1 << 64, dtype=np.uint64)),
        position=int(rng.integers(0, 1 << 20)),
        start=int(rng.integers(0, 1 << 20)),
        sampled=[sampled[node] for node in index],
        drafter=drafter[index] if law in SAMPLED else None,
        drafted_as=drafted_as if is_logits and law in SAMPLED else None,
        columns=columns if law in SAMPLED else None,
        bitmask=random_mask(rng, len(index), vocab) if masked else None,
    )


def _wanted(rng: np.random.Generator, target: torch.Tensor) -> np.ndarray:
    """Return by what tokens are chosen that nobody drew: the target's logits, or nothing."""
    logits = target.double().numpy()
    return logits if rng.random() < 0.5 else rng.random(logits.shape)


def _grow(
    rng: np.random.Generator, parents: list[int], law: str, order: np.ndarray
) -> tuple[list[int], list[bool], list[bool]]:
    """Return columns, whether they were drawn, and which nodes stay: some rows have too few tokens.

    `order` are a node's probabilities, or anything where nothing is drawn.
    """
    tokens, sampled = [-1] * len(parents), [False] * len(parents)
    kept = [True] * len(parents)
    for node in range(len(parents)):
        children = [child for child, parent in enumerate(parents) if parent == node]
        chosen, drawn = _children(rng, law, order[node], len(children) if kept[node] else 0)
        for place, child in enumerate(children):
            if place < len(chosen):
                tokens[child], sampled[child] = chosen[place], place < drawn
            else:
                kept[child] = False
    return tokens, sampled, kept


def _children(
    rng: np.random.Generator, law: str, order: np.ndarray, count: int
) -> tuple[list[int], int]:
    """Return the columns of a node's children, and how many of them were drawn."""
    likely = [int(token) for token in np.argsort(-order, kind="stable")]
    if law not in SAMPLED or count == 0:
        return likely[:count], 0
    drawn, fixed = count, likely[:0]
    left = order.astype(np.float64)
    if law in ("top_plus_one", "mixed"):
        drawn = int(rng.integers(0, 2 if law == "top_plus_one" else count + 1))
        fixed = likely[: count - drawn]
        left[fixed] = 0.0
    chosen: list[int] = []
    for _ in range(drawn):
        if left.sum() <= 0:
            break
        token = int(rng.choice(len(left), p=left / left.sum()))
        chosen.append(token)
        if law not in ("iid", "chain"):
            left[token] = 0.0
    return chosen + fixed, len(chosen)


def random_requests(
    rng: np.random.Generator,
    rules: Sequence[str],
    *,
    count: int | None = None,
    vocab: int | None = None,
    dtype: torch.dtype | None = None,
    nodes: int = 12,
    kinds: Sequence[str] = KINDS,
    shaping: Callable[[np.random.Generator], mv.SamplingParams] | None = None,
    masked: bool = False,
) -> list[Request]:
    """Return requests of one step, each under one of the rules and of a law that it takes.

    Args:
        rng: Where choices come from.
        rules: Names.
        count: Of the requests, or None for a random one.
        vocab: V, or None for a random one.
        dtype: Of the logits, or None for a random one.
        nodes: The most nodes below a root.
        kinds: Of rows.
        shaping: What returns a request's parameters; None: temperatures alone.
        masked: Whether rows have a random bitmask.
    """
    vocab = vocab or int(rng.choice([1, 2, 5, 17, 130, 700, 2048, 2049, 5000]))
    of_step: dict[str, Any] = {
        "vocab": vocab,
        "nodes": nodes,
        "dtype": dtype or DTYPES[rng.integers(3)],
        "drafter_dtype": DTYPES[rng.integers(3)],
        "is_logits": rng.random() < 0.3,
        "near": (0.0, 1e-3, 1.0),
        "kinds": kinds,
        "spread": 3.0,
        "masked": masked,
    }
    if rng.random() < 0.3:
        of_step["columns"] = sorted(rng.choice(vocab, (vocab + 1) // 2, False).tolist())
    requests = []
    for _ in range(count or int(rng.integers(1, 5))):
        rule = rules[rng.integers(len(rules))]
        params = random_temperature(rng) if shaping is None else shaping(rng)
        params = mv.SamplingParams(temperature=0) if rule == "greedy" else params
        near = params.temperature if rng.random() < 0.5 else rng.uniform(0.5, 2)
        laws: list[Law] = [
            law
            for law in (*LAWS, "coupled", "unknown")
            if rule == "auto" or law in RULES[rule]["laws"]
        ]
        requests.append(
            random_request(
                rng,
                laws[rng.integers(len(laws))],
                cast("Rule", rule),
                params=params,
                drafted_as=mv.SamplingParams(temperature=max(float(near), 0.1)),
                **of_step,
            )
        )
    return requests


def random_temperature(rng: np.random.Generator) -> mv.SamplingParams:
    """Return parameters without truncation."""
    return mv.SamplingParams(temperature=float(rng.choice([1.0, 1.0, 0.7, 0.1, 1.7, 3.0])))


def random_shaping(
    rng: np.random.Generator,
    *,
    temperature: Sequence[float] = (1.0, 0.7, 1.7),
    top_k: Sequence[int] = (0, 1, 3, 50),
    top_p: Sequence[float] = (1.0, 0.9, 0.3),
    min_p: Sequence[float] = (0.0, 0.0, 0.05),
) -> mv.SamplingParams:
    """Return parameters with some of top-k, top-p and min-p, in either order."""
    return mv.SamplingParams(
        temperature=float(rng.choice(temperature)),
        top_k=int(rng.choice(top_k)),
        top_p=float(rng.choice(top_p)),
        min_p=float(rng.choice(min_p)),
        preset=("transformers", "vllm")[rng.integers(2)],
    )
