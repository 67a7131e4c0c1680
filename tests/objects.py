"""One of each public object that holds data, for the tests of what all of them have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import mtp_verify as mv
from mtp_verify import drafters, heads
from mtp_verify.commands.shared.compare import Identity, Race
from mtp_verify.decoder import decode, planning
from mtp_verify.heads.probe import Reading
from mtp_verify.integrations import ops
from mtp_verify.testing import stats
from mtp_verify.verifier import growers
from mtp_verify.verifier.growers import TreeShape

if TYPE_CHECKING:
    from collections.abc import Callable

TREE = mv.TokenTree([-1, 0, 0, 1])
NOISE = {"seed": 1, "position": 0}


def rows(count: int, dtype: Any = np.float32, width: int = 5) -> np.ndarray:
    return np.random.default_rng(1).dirichlet(np.ones(width), count).astype(dtype)


def table(prefix_cache: bool = True) -> mv.kv.BlockTable:
    """Forks, an open reservation, blocks that only the prefix cache knows, and free ones."""
    blocks = mv.kv.BlockTable(16, 2, prefix_cache)
    for seq, tokens in enumerate(([1, 2, 3, 4, 5], [1, 2, 3, 9], [7, 8, 7, 8])):
        blocks.add_sequence(seq, len(tokens), tokens)
        blocks.reserve(seq, 2)
        blocks.commit(seq, mv.TokenTree([-1, 0]), [1], [seq, 6])
    blocks.fork(0, 10)
    blocks.release(2)
    blocks.rollback(1, 3)
    blocks.reserve(0, 3)
    return blocks


def near_table() -> mv.kv.BlockTable:
    """A window that has left blocks behind, keys, and sequences from before a reset."""
    blocks = mv.kv.BlockTable(8, 2, True, window=2)
    prompt = {"keys": {"salt": "a", "adapter": "é"}, "items": [(1, 4, "image"), (5, 6, "")]}
    for seq in range(3):
        if seq == 1:
            blocks.reset_prefix_cache()
        blocks.add_sequence(seq, 6, [1, 2, 3, 4, 5, 6], **prompt)
        blocks.reserve(seq, 2)
        blocks.commit(seq, mv.TokenTree([-1, 0]), [1], [seq, 6])
    blocks.reserve(0, 1)
    blocks.release(2)
    # Takes blocks that were known.
    blocks.add_sequence(10, 4)
    return blocks


def plans() -> mv.kv.CommitPlanBatch:
    blocks = table()
    blocks.reserve(1, 4)
    drafts = [mv.Draft.chain([1, 2]), mv.Draft(TREE, [4, 1, 2, 3])]
    verdicts = [verdict(), mv.Verdict([2, 7], [2], [-0.5, -1.0], "greedy")]
    return blocks.commit_batch([0, 1], drafts, verdicts)


def verdict(top_logprobs: int = 0) -> mv.Verdict:
    draft = mv.Draft.chain([1, 2], rows(2))
    logits = np.log(rows(3))
    return mv.verify(draft, logits, top_logprobs=top_logprobs, **NOISE)


def batch(**options: Any) -> mv.DraftBatch:
    return mv.DraftBatch([0, 3, 4], [-1, 0, 1, -1], [7, 3, 4, 5], "chain", **options)


def generation() -> decode.Generation:
    steps = decode.Stats()
    steps.record(2, 2, 1, 2)
    return decode.Generation(
        sequences=torch.tensor([[1, 2, 3, 4]]), tokens=[[3, 4]], finish_reasons=["error"],
        logprobs=[np.zeros(2, np.float32)], stats=steps, past_key_values=None,
        logits=[torch.zeros(2, 5)], top_logprobs=[verdict(2).top_logprobs],
        errors=[mv.errors.OutOfBlocksError("no block", missing=1, holders=[3])],
    )  # fmt: skip


def params() -> mv.SamplingParams:
    return mv.SamplingParams(0.7, 3, 0.9, logit_bias={3: -1.5}, banned=[4], stop_ids=range(2))


_FAR = TreeShape.optimal([0.5, 0.2], max_nodes=4, max_depth=2)

OBJECTS: dict[str, Callable[[], Any]] = {
    "SamplingParams": params,
    "TokenTree": lambda: TREE,
    "TokenTree of many": lambda: mv.TokenTree(range(-1, 99)),
    "Draft": lambda: mv.Draft.chain([1, 2]),
    "Draft of probs": lambda: mv.Draft(
        TREE, [-1, 1, 2, 3], "swor", rows(2, np.float64), rows=[1, 0, -1, -1]
    ),
    "Draft of half": lambda: mv.Draft.chain([1, 2], rows(2, np.float16)),
    "Draft of bfloat16": lambda: mv.Draft.chain([1, 2], torch.from_numpy(rows(2)).bfloat16()),
    "Draft of logits": lambda: mv.Draft(
        mv.TokenTree([-1, 0, 0]), [-1, 9, 40], "mixed", logits=np.log(rows(1)), params=params(),
        vocab=[9, 2, 40, 7, 5], sampled=[False, True, False],
    ),
    "DraftBatch": lambda: batch(probs=rows(4)),
    "DraftBatch of logits": lambda: batch(logits=rows(3), rows=[2, 0, -1, -1], params=params()),
    "Draft of a batch": lambda: batch(probs=rows(4, width=99))[0],
    "Verdict": verdict,
    "Verdict with the likely tokens": lambda: verdict(3),
    "VerdictBatch": lambda: mv.VerdictBatch([verdict(2), verdict(), verdict().cut(1)]),
    "TopLogprobs": lambda: verdict(2).top_logprobs,
    "CommitPlan": lambda: mv.kv.commit_plan(TREE, [2], 5),
    "CommitPlanBatch": plans,
    "Reservation": lambda: table().reserve(10, 3),
    "ReservationBatch": lambda: table().reserve_batch([10, 1], [2, 5]),
    "BlockTable": table,
    "BlockTable without a prefix cache": lambda: table(prefix_cache=False),
    "BlockTable with a window": near_table,
    "Lossy": lambda: mv.lossy.typical(0.3, 0.1),
    "TreeShape": lambda: _FAR,
    "ops.Verdicts": lambda: ops.Verdicts(*(torch.ones(2, n) for n in (3, 2, 1, 3))),
    "Costs": lambda: planning.Costs({1: {1: 0.01, 4: 0.02}, 2: {1: 0.02}}),
    "Plan": lambda: planning.Plan(3),
    "Stats": lambda: generation().stats,
    "Generation": generation,
    "Paged": lambda: decode.Paged(4),
    "Static": lambda: decode.Static(graphs=True),
    "HeadSpec": lambda: heads.family("eagle3"),
    "Layout": lambda: heads.family("eagle3").layout,
    "Sizes": lambda: heads.Sizes(hidden_size=8, vocab_size=9),
    "Probe": lambda: heads.Probe((Reading({"feed": "post"}, (0.5, 0.25), (4, 2)),), 0, 9),
    "Fit": lambda: stats.Fit(1.0, 2, 0.5, 10, 0),
    "Interval": lambda: stats.Interval(0.1, 0.0, 0.2),
    "Identity": lambda: Identity(True, 3, None, None, None),
    "Race": lambda: Race({"plain": 1.0}, generation().stats, [3]),
    "MtpVerifyError": lambda: mv.MtpVerifyError("text", slug="s", node=1, row=2, sequence=3),
    "OutOfBlocksError": lambda: generation().errors[0],
}  # fmt: skip

# Objects that learn from the requests they serve: equal to themselves alone.
IDLE: dict[str, Callable[[], Any]] = {
    "NGram": drafters.NGram,
    "Suffix": lambda: drafters.Suffix(max_nodes=4),
    "Recycling": lambda: drafters.Recycling(max_nodes=4),
    "Combined": lambda: drafters.Combined([drafters.Suffix(), drafters.NGram()]),
    "Planner": lambda: planning.Planner(planning.Costs({1: {1: 0.01}}), max_nodes=3),
    "Request": lambda: drafters.Request(id=1, tokens=[1, 2], prompt_len=2, seed=3),
}


def in_flight() -> dict[str, Any]:
    """Objects that are neither pickled nor copied."""
    request = IDLE["Request"]()
    drafter = drafters.NGram()
    drafter.start(request)
    suffix = drafters.Suffix()
    suffix.start(request)
    planner = IDLE["Planner"]()
    planner.plan([request], [drafter], [2])
    return {
        "NGram": drafter,
        "Suffix": suffix,
        "SuffixStore": drafters.SuffixStore(),
        "Planner": planner,
        "Grower": growers.Chain(2, **NOISE),
        "CoreParams": params()._core,
    }


def classes() -> set[type]:
    """The classes of all of them."""
    made = [make() for make in (*OBJECTS.values(), *IDLE.values())]
    return {type(value) for value in made}


def echo(values: list[Any]) -> list[Any]:
    """What a process of a pool gives back."""
    return values
