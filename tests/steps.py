"""Steps for tests of device code: made of requests, and compared with the core's verdicts.

A `Request` holds what both the core and a device need; `step_of` puts many into one `Step`.
`tests/random_requests.py` makes such requests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import mtp_verify as mv
from mtp_verify import _core
from mtp_verify.errors import MtpVerifyError
from mtp_verify.verifier.kernels.device import layout
from mtp_verify.verifier.kernels.device.plan import truncates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.verifier.words import Law, Rule

# What outcomes hold before a step writes them.
UNWRITTEN = 77
# Requests and rows beyond what a step holds, so that nothing rests on full tensors.
SPARE = (2, 2)
# Draws that are nearer to a cell's edge may be another token than the core's.
NEAR = 2.0**-45
_ERRORS = {
    "row_not_finite": layout.NOT_FINITE,
    "row_empty": layout.EMPTY,
    "row_not_normalised": layout.NOT_NORMALISED,
    "zero_draft_probability": layout.ZERO_DRAFT,
}


@dataclass
class Request:
    """One request: its draft, the rows of both models, and how they are verified.

    Attributes:
        parents: Of each node, -1 for the root.
        tokens: Of each node.
        law: How the tokens were chosen.
        logits: (N+1, V) float32, float16 or bfloat16.
        params: Of the target's rows.
        rule: Its name.
        seed: Of the noise.
        position: Of the root.
        start: The root's entry of the cache.
        sampled: Which nodes were drawn from the drafter's rows, for laws that must be told.
        drafter: (M, columns) of one of these dtypes, or None.
        rows: Which of these rows follows each node, -1 for none; None: each node's own.
        drafted_as: How the drafter's rows are shaped if they are logits; None for probabilities.
        columns: The tokens of the drafter's columns, or None.
        bitmask: (N+1, ceil(V/32)) int32, or None.
        shadow: By node, (V,) float32 that is read in place of its row of the logits.
    """

    parents: list[int]
    tokens: list[int]
    law: Law
    logits: torch.Tensor
    params: mv.SamplingParams
    rule: Rule
    seed: int = 1
    position: int = 0
    start: int = 0
    sampled: list[bool] | None = None
    drafter: torch.Tensor | None = None
    rows: list[int] | None = None
    drafted_as: mv.SamplingParams | None = None
    columns: list[int] | None = None
    bitmask: Any = None
    shadow: dict[int, torch.Tensor] = field(default_factory=dict)
    draft: mv.Draft = field(init=False)

    def __post_init__(self) -> None:
        given: dict[str, Any] = {}
        if self.drafter is not None:
            given["probs" if self.drafted_as is None else "logits"] = self.drafter
            given |= {"params": self.drafted_as, "rows": self.rows}
            given["vocab"] = None if self.columns is None else np.array(self.columns)
        if self.law in ("mixed", "top_plus_one"):
            given["sampled"] = self.sampled
        self.draft = mv.Draft(mv.TokenTree(self.parents), self.tokens, self.law, **given)

    def verdict(self) -> mv.Verdict:
        """Return the core's verdict."""
        logits = self.logits
        if self.shadow:
            logits = logits.float().clone()
            for node, row in self.shadow.items():
                logits[node] = row
        return mv.verify(
            self.draft,
            logits,
            self.params,
            rule=self.rule,
            seed=self.seed,
            position=self.position,
            bitmask=self.bitmask,
        )


def step_of(
    requests: Sequence[Request],
    *,
    given: torch.Tensor | None = None,
    spare: tuple[int, int] = SPARE,
    order: np.random.Generator | None = None,
    device: str = "cpu",
) -> layout.Step:
    """Put requests with rows of one shape and kind into one step.

    `DeviceVerifier` takes drafts whose rows are one matrix, shaped alike; here each request has
    its own. Rows stand in the opposite order of the nodes, and those that are not used are NaN.

    Args:
        requests: Their drafter's rows are all logits or all probabilities, over the same columns.
        given: (R, 2) float64, numbers in place of the noise.
        spare: How many requests, and how many rows, more the step could hold.
        order: Puts rows in a random order.
        device: Where.
    """
    nodes, table, shaping, _, sizes = _core.tables_of_drafts(
        [r.draft for r in requests],
        [r.params._core for r in requests],
        [r.rule for r in requests],
    )
    total, count = nodes.shape[1], len(requests) + spare[0]
    rows, vocab = total + spare[1], requests[0].logits.shape[1]
    place = np.arange(rows)[::-1] if order is None else order.permutation(rows)
    logits = torch.full((rows, vocab), torch.nan, dtype=requests[0].logits.dtype)
    logits[place[:total].copy()] = torch.cat([r.logits for r in requests])
    reads = [r.drafter is not None and table[2, b] > layout.COUPLED for b, r in enumerate(requests)]
    drafted, own = _drafted(requests, device) if any(reads) else (None, np.full(total, -1))

    def padded(values: Any, length: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        found = torch.full((length,), -1, dtype=dtype)
        found[: len(values)] = torch.from_numpy(np.array(values, np.int64))
        return found.to(device)

    seeds = np.array([r.seed for r in requests], np.uint64).view(np.int64)
    addresses = seeds, [r.position for r in requests], [r.start for r in requests]
    return layout.Step(
        capacity=layout.Capacity(
            count,
            rows,
            int(table[1].max()) + spare[1],
            *sizes,
            vocab,
            *((0, 0) if drafted is None else drafted.rows.shape),
        ),
        # The place is that of a row which is there, for those who read all and look later.
        nodes=layout.Nodes(*(padded(column, rows) for column in (*nodes, own, place))),
        # The root of a request that is not used is -1; nothing else of it is read.
        requests=layout.Requests(
            *(padded(column, count) for column in table),
            *(padded(column, count, torch.int64) for column in addresses),
        ),
        shaping=_shaping(shaping[:, nodes[0]], rows, device),
        truncates=truncates(shaping) or _cuts_drafter(requests),
        logits=logits.to(device),
        drafted=drafted,
        edited=_edited(requests, rows, device),
        given=given,
        outcomes=_outcomes(count, sizes[0], device),
        races=bool((table[2] == layout.COUPLED).any()),
    )


def _cuts_drafter(requests: Sequence[Request]) -> bool:
    params = [r.drafted_as for r in requests if r.drafted_as is not None]
    roots = [mv.Draft.chain([]) for _ in params]
    tables = _core.tables_of_drafts(roots, [own._core for own in params], "auto")
    return bool(params) and truncates(tables[2])


def _shaping(columns: np.ndarray, length: int, device: str) -> layout.Shaping:
    """Return how rows are shaped, padded to some length with rows that are as they are."""
    types = (torch.float32, torch.int32, *[torch.float64] * 3, torch.int32)
    found = []
    for column, filler, dtype in zip(columns, (1, 0, 1, 0, -np.inf, 0), types, strict=True):
        values = np.append(column, np.full(length - len(column), filler))
        found.append(torch.tensor(values).to(dtype).to(device))
    return layout.Shaping(*found)


def _drafted(requests: Sequence[Request], device: str) -> tuple[layout.Drafted, np.ndarray]:
    """Return the drafter's rows, the last request's first, and which of them follows each node."""
    parts: list[torch.Tensor] = []
    params: list[mv.SamplingParams] = []
    index: list[int] = []
    owners = [r for r in requests if r.drafter is not None]
    after = sum(len(r.drafter) for r in owners if r.drafter is not None)
    for r in requests:
        nodes = range(len(r.parents))
        if r.drafter is None:
            index += [-1 for _ in nodes]
            continue
        assert r.columns == owners[0].columns
        assert (r.drafted_as is None) == (owners[0].drafted_as is None)
        after -= len(r.drafter)
        own = r.rows or [node if node < len(r.drafter) else -1 for node in nodes]
        index += [row if row < 0 else after + row for row in own]
        parts.insert(0, r.drafter)
        params = [r.drafted_as or mv.SamplingParams()] * len(r.drafter) + params
    blank = torch.full_like(parts[0][:1], torch.nan)
    matrix = torch.cat([*parts, blank]).to(device)
    shaping = column = None
    if owners[0].drafted_as is not None:
        roots = [mv.Draft.chain([]) for _ in params]
        columns = _core.tables_of_drafts(roots, [own._core for own in params], "auto")[2]
        shaping = _shaping(columns, len(matrix), device)
    if (tokens := owners[0].columns) is not None:
        column = torch.full((owners[0].logits.shape[1],), -1, dtype=torch.int32)
        column[torch.tensor(tokens)] = torch.arange(len(tokens), dtype=torch.int32)
        column = column.to(device)
    return layout.Drafted(matrix, shaping, column), np.array(index)


def _edited(requests: Sequence[Request], rows: int, device: str) -> layout.Edited:
    bitmask = shadow = shadow_of = None
    if any(r.bitmask is not None for r in requests):
        words = -(-requests[0].logits.shape[1] // 32)
        bitmask, start = torch.zeros((rows, words), dtype=torch.int32), 0
        for r in requests:
            allowed = -1 if r.bitmask is None else torch.from_numpy(r.bitmask)
            bitmask[start : start + len(r.parents)] = allowed
            start += len(r.parents)
        bitmask = bitmask.to(device)
    if any(r.shadow for r in requests):
        shadow_of, start, replaced = torch.full((rows,), -1, dtype=torch.int32), 0, []
        for r in requests:
            for node, row in r.shadow.items():
                shadow_of[start + node] = len(replaced)
                replaced.append(row.float())
            start += len(r.parents)
        shadow, shadow_of = torch.stack(replaced).to(device), shadow_of.to(device)
    return layout.Edited(bitmask, shadow, shadow_of)


def _outcomes(requests: int, depth: int, device: str) -> layout.Outcomes:
    def make(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.full((requests, *shape), UNWRITTEN, dtype=dtype, device=device)

    return layout.Outcomes(
        tokens=make(torch.int32, depth + 1),
        path=make(torch.int32, depth),
        num_accepted=make(torch.int32),
        logprobs=make(torch.float32, depth + 1),
        moves=make(torch.int64, depth, 2),
        length=make(torch.int64),
        state_select=make(torch.int32),
        status=make(torch.int32),
        fault=make(torch.int32),
        margin=make(torch.float64),
    )


def again(step: layout.Step) -> layout.Step:
    """Return the step with outcomes of its own, not written yet."""
    fresh = layout.Outcomes(*(torch.full_like(values, UNWRITTEN) for values in step.outcomes))
    return step._replace(outcomes=fresh)


def assert_equal_to_core(step: layout.Step, requests: Sequence[Request]) -> int:
    """Compare outcomes with the core's verdicts or errors; return how many draws were near an edge.

    Draws nearer than `NEAR` to a cell's edge may differ, and are not compared.
    """
    out, near = layout.Outcomes(*(values.cpu() for values in step.outcomes)), 0
    for b, request in enumerate(requests):
        where = f"request {b}: {request.law} {request.rule} {request.parents} {request.tokens}"
        error = int(out.status[b]) & ~layout.FALLBACK
        try:
            verdict = request.verdict()
        except MtpVerifyError as wanted:
            bit, node = _ERRORS[str(wanted.slug)], wanted.node if wanted.row is None else wanted.row
            assert (error, int(out.fault[b])) == (bit, node), where
            continue
        assert error == 0, where
        assert int(out.fault[b]) == -1, where
        if float(out.margin[b]) < NEAR:
            near += 1
            continue
        n, depth = verdict.num_accepted, out.path.shape[1]
        assert int(out.num_accepted[b]) == n, where
        assert out.path[b].tolist() == verdict.path.tolist() + [-1] * (depth - n), where
        assert out.tokens[b].tolist() == verdict.tokens.tolist() + [-1] * (depth - n), where
        found = out.logprobs[b].numpy()
        np.testing.assert_array_max_ulp(found[: n + 1], verdict.logprobs, maxulp=1)
        assert not found[n + 1 :].any()
        plan = mv.kv.commit_plan(request.draft.tree, verdict.path, request.start)
        moves = np.asarray(plan.moves).reshape(-1, 2).tolist()
        assert out.moves[b].tolist() == moves + [[-1, -1]] * (depth - len(moves)), where
        assert int(out.length[b]) == plan.length
        assert int(out.state_select[b]) == plan.state_select
    # What is no request keeps its outcomes.
    for values in out:
        assert (values[len(requests) :] == UNWRITTEN).all()
    return near
