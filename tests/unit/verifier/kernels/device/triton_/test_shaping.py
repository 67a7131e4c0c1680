"""Rows are cut where a sort cuts them, and what is left weighs what it weighs in the core."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

import mtp_verify as mv
from mtp_verify.verifier.kernels.device import layout
from mtp_verify.verifier.kernels.device.layout import (
    Drafted,
    Edited,
    Nodes,
    Requests,
    Shaping,
    Step,
)
from mtp_verify.verifier.kernels.device.triton_ import selection, shaping
from mtp_verify.verifier.kernels.device.triton_.rows import target_source, weights
from mtp_verify.verifier.kernels.device.triton_.run import run
from mtp_verify.verifier.kernels.device.triton_.workspace import Records, Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

F32 = np.float32
ORDERS = ("transformers", "vllm")
PLAIN = mv.SamplingParams()
# So near to the goal of top-p that which token crosses it is a matter of rounding.
NEAR = 1e-12
# Nats below the largest logit within which all weights are above 0.
DEEP = 80.0
# The core's constants (`src/rows/simd/exp.rs`).
LOG2_E = F32(math.log2(math.e))
COEFFICIENTS = (
    0.00015453262, 0.0013390979, 0.009618082, 0.05550357, 0.2402265, math.log(2), 1.0,
)  # fmt: skip


def rows_step(
    logits: torch.Tensor,
    params: Sequence[mv.SamplingParams],
    *,
    drafter: torch.Tensor | None = None,
    bitmask: torch.Tensor | None = None,
    shadow: torch.Tensor | None = None,
) -> Step:
    """Return a step of one node a request, after each of which a token is drawn."""
    rows, vocab = logits.shape
    drafted = 0 if drafter is None else len(drafter)
    capacity = layout.Capacity(rows, rows, 1, 0, 0, 0, vocab, drafted, vocab if drafted else 0)
    number = torch.arange(rows, dtype=torch.int32)
    zero, none = torch.zeros_like(number), torch.full_like(number, -1)
    nodes = Nodes(number, zero, none, none, none, zero, zero, zero, zero, none, number)
    core = torch.full_like(number, layout.TARGET_ONLY)
    long = zero.long()
    requests = Requests(number, zero + 1, core, zero, zero, long, long, long)
    outcomes = layout.Outcomes(
        tokens=torch.zeros((rows, 1), dtype=torch.int32),
        path=torch.zeros((rows, 0), dtype=torch.int32),
        num_accepted=zero.clone(),
        logprobs=torch.zeros((rows, 1)),
        moves=torch.zeros((rows, 0, 2), dtype=torch.int64),
        length=long.clone(),
        state_select=zero.clone(),
        status=zero.clone(),
        fault=zero.clone(),
        margin=torch.zeros(rows, dtype=torch.float64),
    )
    own = shaping_of(params)
    return Step(
        capacity=capacity,
        nodes=nodes,
        requests=requests,
        shaping=own,
        truncates=True,
        logits=logits,
        drafted=None if drafter is None else Drafted(drafter, own, None),
        edited=Edited(bitmask, shadow, None if shadow is None else number),
        given=None,
        outcomes=outcomes,
    )


def shaping_of(params: Sequence[mv.SamplingParams]) -> Shaping:
    def column(values: list[Any], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype)

    return Shaping(
        temperature=column([0.0 if p.is_greedy else p.temperature for p in params], torch.float32),
        top_k=column([max(p.top_k, 0) for p in params], torch.int32),
        top_p=column([p.top_p for p in params], torch.float64),
        min_p=column([p.min_p for p in params], torch.float64),
        log_min_p=column(
            [math.log(p.min_p) if p.min_p > 0 else -math.inf for p in params], torch.float64
        ),
        min_p_first=column([int(p.preset == "vllm") for p in params], torch.int32),
    )


def shape(step: Step) -> Workspace:
    workspace = Workspace(step.capacity, "cpu")
    run(step, workspace)
    return workspace


def scaled(row: torch.Tensor, params: mv.SamplingParams) -> np.ndarray:
    return np.float32(row.float().numpy() / F32(params.temperature)) + F32(0)


def kept_by(records: Records, row: int, y: np.ndarray) -> np.ndarray:
    """Return which tokens a record keeps, those aside that weigh nothing beside its total."""
    y = y - F32(records.origin[row])
    cut, end = F32(records.cut[row]), int(records.tie_end[row])
    floor = (int(records.exponent[row]) - 124) * math.log(2)
    return ((y > cut) | ((y == cut) & (np.arange(len(y)) < end))) & (y >= floor)


def weights_of(y: np.ndarray, exponent: int) -> np.ndarray:
    """Return what the core weighs logits, by its source, in numbers of 64 bits that are rounded."""

    def fma(a: Any, b: Any, c: Any) -> np.ndarray:
        return (np.longdouble(a) * np.longdouble(b) + np.longdouble(c)).astype(F32)

    magic = F32(12_582_912) - F32(exponent)
    y = np.maximum(y, F32((exponent - 124) * math.log(2)))
    shifted = fma(y, LOG2_E, magic)
    r = fma(y, LOG2_E, magic - shifted)
    p = np.full_like(y, F32(COEFFICIENTS[0]))
    for coefficient in COEFFICIENTS[1:]:
        p = fma(p, r, F32(coefficient))
    return np.ldexp(p, (shifted - F32(12_582_912)).astype(int))


def fold(values: np.ndarray) -> np.ndarray:
    """Add halves onto halves along the last axis, after filling up with zeros."""
    size = 1 << (values.shape[-1] - 1).bit_length()
    values = np.concatenate([values, np.zeros((*values.shape[:-1], size - values.shape[-1]))], -1)
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        values = values[..., :half] + values[..., half:]
    return values[..., 0]


def block_sums(weights: np.ndarray) -> np.ndarray:
    """Return the sums of blocks: lane by lane, each in order."""
    blocks = -(-len(weights) // layout.BLOCK)
    padded = np.zeros(blocks * layout.BLOCK)
    padded[: len(weights)] = weights
    return fold(np.add.accumulate(padded.reshape(blocks, -1, layout.LANES), axis=1)[:, -1])


def kept_by_a_sort(y: np.ndarray, params: mv.SamplingParams) -> tuple[np.ndarray, float]:
    """Return which tokens stay, and how near top-p's goal the mass at one of them is."""
    if abs(y.max()) > 2**20:
        y = y - y.max()
    kept = y > -np.inf
    near = 1.0
    order = np.lexsort((np.arange(len(y)), -y))

    def by_min_p() -> np.ndarray:
        cut = float(y.max()) + (math.log(params.min_p) if params.min_p > 0 else -math.inf)
        return np.float64(y) >= cut

    if params.preset == "vllm":
        kept &= by_min_p()
    if 0 < params.top_k < len(y):
        kept &= y >= y[order[params.top_k - 1]]
    if params.top_p < 1:
        ranked = order[kept[order]]
        exponent = 2 * math.floor(float(y.max()) / math.log(4))
        mass = np.cumsum(np.float64(weights_of(y[ranked], exponent)))
        goal = params.top_p * mass[-1]
        near = float(np.abs(mass - goal).min() / mass[-1])
        kept[ranked[int((mass < goal).sum()) + 1 :]] = False
    if params.preset == "transformers":
        kept &= by_min_p()
    # What weighs less than 2**-124 of the rest counts as nothing.
    return kept & (y > y.max() - DEEP), near


def random_row(rng: np.random.Generator, vocab: int, kind: str) -> torch.Tensor:
    u = rng.random(vocab)
    row = {
        "broad": lambda: -8 * u,
        "bulk": lambda: rng.normal(0, 3, vocab),
        "peaked": lambda: -30 * u * rng.random(vocab),
        "steep": lambda: rng.normal(0, 60, vocab),
        "tied": lambda: np.floor(8 * u),
        "equal": lambda: np.full(vocab, rng.choice([1.5, 0.0, -3.25])),
        "zeros": lambda: np.where(u < 0.5, 0.0, -0.0),
        "masked": lambda: np.where(u < 0.95, -np.inf, 20 * rng.random(vocab)),
        "far": lambda: rng.normal(0, 40, vocab) + rng.choice([-4e6, 3e6]),
        "low": lambda: rng.normal(0, 3, vocab) - 1e5,
    }[kind]()
    row[vocab // 2] = max(row[vocab // 2], -6e4)
    if rng.random() < 0.5:
        row[vocab // 3] += 12 * rng.random()
    return torch.tensor(row, dtype=torch.float32)


KINDS = (
    "broad", "bulk", "peaked", "steep", "tied", "equal", "zeros", "masked", "far", "low",
)  # fmt: skip


def random_params(rng: np.random.Generator) -> mv.SamplingParams:
    return mv.SamplingParams(
        temperature=float(rng.choice([1.0, 1.0, 0.7, 2.0, 0.1])),
        top_k=int(rng.choice([0, 0, 1, 2, 5, 40, 300, 5000, 30_000])),
        top_p=float(rng.choice([1.0, 0.9, 0.5, 0.99, 1e-6, 1 - 1e-6, rng.uniform(0.01, 1)])),
        min_p=float(rng.choice([0.0, 0.0, 0.05, 1.0, 1e-12, rng.uniform()])),
        preset=ORDERS[rng.integers(2)],
    )


def assert_cut_as_by_a_sort(
    logits: torch.Tensor, params: Sequence[mv.SamplingParams], records: Records
) -> int:
    """Assert which tokens are kept, and their sums bit for bit; return how many rows are near."""
    count = 0
    for row, own in enumerate(params):
        y = scaled(logits[row], own)
        wanted, near = kept_by_a_sort(y, own)
        kept = kept_by(records, row, y)
        if near > NEAR:
            assert np.array_equal(kept & (y > y.max() - DEEP), wanted), f"row {row}: {own}"
        count += near <= NEAR
        exponent = int(records.exponent[row])
        weights = weights_of(y - F32(records.origin[row]), exponent) * kept
        sums = block_sums(np.float64(weights))
        assert records.sums[row].tolist() == sums.tolist(), f"row {row}: {own}"
        assert float(records.total[row]) == fold(sums)
        assert 1 <= fold(sums) < 4
    return count


@triton.jit
def probability(source, records, row, token, out):  # type: ignore[no-untyped-def]
    one = tl.arange(0, 1)
    w = weights(source, records, row, token + one, one >= 0).to(tl.float64)
    tl.store(out + one, w / tl.load(records.total + row))


def assert_weighs_as_in_the_core(step: Step, workspace: Workspace, own: mv.SamplingParams) -> None:
    """Compare the probabilities of a row's first, last kept and first left tokens with the core's.

    The core's mean number of accepted tokens of a draft of one token is its probability, to within
    one rounding.
    """
    logits = step.logits
    y = scaled(logits[0], own)
    found = kept_by(workspace.target, 0, y)
    order = np.lexsort((np.arange(len(y)), -y))
    ranked = order[found[order]]
    out = torch.zeros(1, dtype=torch.float64)
    tolerance = 1e-13 if own.top_p < 1 else 4.5e-16
    for token in {int(ranked[0]), int(ranked[-1]), int(order[min(len(ranked), len(y) - 1)])}:
        draft = mv.Draft.chain([token])
        wanted = mv.expected_accepted(draft, torch.cat([logits, logits]), own)
        probability[1,](target_source(step), workspace.target, 0, token, out)
        assert abs(float(out[0]) - wanted) <= tolerance * wanted, f"token {token}: {own}"


def check(rng: np.random.Generator, vocab: int, kind: str, dtype: torch.dtype) -> int:
    logits = random_row(rng, vocab, kind).to(dtype)[None]
    own = random_params(rng)
    step = rows_step(logits, [own])
    workspace = shape(step)
    near = assert_cut_as_by_a_sort(logits, [own], workspace.target)
    if not near:
        assert_weighs_as_in_the_core(step, workspace, own)
    return near


@pytest.mark.parametrize("kind", KINDS)
def test_cuts_are_those_of_a_sort(rng: np.random.Generator, kind: str) -> None:
    for vocab in (1, 2, 200):
        check(rng, vocab, kind, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_sixteen_bits_are_cut_alike(rng: np.random.Generator, dtype: torch.dtype) -> None:
    logits = random_row(rng, 400, "bulk").to(dtype)[None]
    own = [mv.SamplingParams(temperature=0.7, top_k=60, top_p=0.9, preset="vllm")]
    half, full = (shape(rows_step(values, own)).target for values in (logits, logits.float()))
    assert_cut_as_by_a_sort(logits, own, half)
    for values, others in zip(half, full, strict=True):
        assert torch.equal(values, others)


def test_ties_of_top_k_stay_and_the_lowest_of_top_p() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0, 2.0, 1.0]] * 3)
    params = [
        mv.SamplingParams(top_k=2),
        mv.SamplingParams(top_p=0.5),
        mv.SamplingParams(top_p=0.3, top_k=3),
    ]
    records = shape(rows_step(logits, params)).target
    kept = [np.flatnonzero(kept_by(records, row, logits[row].numpy())) for row in range(3)]
    assert [list(tokens) for tokens in kept] == [[1, 2, 4], [1, 2], [1]]


@pytest.mark.parametrize("kind", ["bulk", "equal", "tied", "masked"])
def test_lists_without_room_change_no_bit(
    rng: np.random.Generator, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.stack([random_row(rng, 500, kind)] * 3)
    params = [
        mv.SamplingParams(top_k=200),
        mv.SamplingParams(top_p=0.9),
        mv.SamplingParams(temperature=2.0, top_p=0.99, min_p=1e-3, preset="vllm"),
    ]
    whole = shape(rows_step(logits, params)).target
    for module in (selection, shaping):
        monkeypatch.setattr(module, "ROOM", tl.constexpr(16))
    narrow = shape(rows_step(logits, params)).target
    assert_cut_as_by_a_sort(logits, params, narrow)
    for values, others in zip(whole, narrow, strict=True):
        assert torch.equal(values, others)


def test_lists_have_no_order(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_row(rng, 400, "tied")[None]
    params = [mv.SamplingParams(top_k=200, top_p=0.77)]
    wanted = shape(rows_step(logits, params)).target
    select = shaping.select

    class Shuffled:
        def __getitem__(self, grid: Any) -> Any:
            def launch(*args: Any, **options: Any) -> None:
                found, tokens = args[-1]
                assert found[0] > 200
                tokens[0, : found[0]] = tokens[0, rng.permutation(int(found[0]))]
                select[grid](*args, **options)

            return launch

    monkeypatch.setattr(shaping, "select", Shuffled())
    found = shape(rows_step(logits, params)).target
    for values, others in zip(wanted, found, strict=True):
        assert torch.equal(values, others)


def test_the_drafter_s_logits_are_shaped_like_the_target_s(rng: np.random.Generator) -> None:
    logits = torch.stack([random_row(rng, 200, kind) for kind in ("bulk", "tied", "far")])
    params = [
        mv.SamplingParams(top_k=9),
        mv.SamplingParams(top_p=0.8),
        mv.SamplingParams(min_p=0.1),
    ]
    workspace = shape(rows_step(logits, params, drafter=logits))
    assert workspace.drafter is not None
    for values, others in zip(workspace.target, workspace.drafter, strict=True):
        assert torch.equal(values, others)


def test_rows_that_nothing_truncates_stay_as_they_are(rng: np.random.Generator) -> None:
    logits = torch.stack([random_row(rng, 300, "bulk")] * 3)
    greedy = mv.SamplingParams(temperature=0, top_k=5)
    params = [PLAIN, mv.SamplingParams(top_k=5), greedy]
    step = rows_step(logits, params)
    shaped = shape(step).target
    plain = shape(step._replace(truncates=False)).target
    for values, others in zip(shaped, plain, strict=True):
        assert torch.equal(values[[0, 2]], others[[0, 2]])
    assert shaped.total[1] != plain.total[1]


def test_faulty_rows_are_left_alone(rng: np.random.Generator) -> None:
    logits = torch.stack([random_row(rng, 50, "bulk")] * 4)
    logits[0, 7], logits[1, 8], logits[2] = torch.nan, torch.inf, -torch.inf
    records = shape(rows_step(logits, [mv.SamplingParams(top_k=3, top_p=0.9)] * 4)).target
    bits = [layout.NOT_FINITE, layout.NOT_FINITE, layout.EMPTY, 0]
    assert records.status.tolist() == bits
    assert kept_by(records, 3, logits[3].numpy()).sum() <= 3


def test_masked_and_replaced_rows_are_cut_as_they_are_read(rng: np.random.Generator) -> None:
    logits, other = (random_row(rng, 130, "bulk")[None] for _ in range(2))
    allowed = rng.random((1, 160)) < 0.5
    words = torch.tensor(np.packbits(allowed, axis=1, bitorder="little").view(np.int32))
    banned = torch.tensor(~allowed[:, :130])
    own = [mv.SamplingParams(top_k=20, top_p=0.9)]
    wanted = shape(rows_step(other.masked_fill(banned, -torch.inf), own)).target
    found = shape(rows_step(logits, own, bitmask=words, shadow=other)).target
    for values, others in zip(wanted, found, strict=True):
        assert torch.equal(values, others)


def test_largest_logits_out_of_reach_are_taken_off(rng: np.random.Generator) -> None:
    own = [PLAIN]
    for vocab, offset in ((2050, 3e6), (70, -4e6)):
        logits = random_row(rng, vocab, "bulk")[None] + offset
        step = rows_step(logits, own)._replace(truncates=False)
        workspace = shape(step)
        assert workspace.target.origin[0] == logits.max()
        assert_weighs_as_in_the_core(step, workspace, PLAIN)
        # Less their largest one, they are other logits of the same law.
        plain = shape(rows_step(logits - logits.max(), own)._replace(truncates=False)).target
        assert torch.equal(workspace.target.sums, plain.sums)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
def test_many_rows_are_cut_as_by_a_sort(rng: np.random.Generator, kind: str) -> None:
    dtypes = [torch.float32]
    if kind not in ("far", "low"):
        dtypes += [torch.bfloat16, torch.float16]
    near = 0
    for vocab in (1, 3, 17, 130, 700, 2047, 2048, 2049, 5000, 9000, 20_000):
        for dtype in dtypes:
            near += check(rng, vocab, kind, dtype)
    # Equal tokens often weigh what the goal is.
    assert near <= (6 if kind in ("equal", "zeros", "tied") else 1)
