"""Hold what the kernels of a step leave for each other: tensors of fixed sizes, made once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from mtp_verify.verifier.kernels.device.layout import BLOCK, LANES

if TYPE_CHECKING:
    from torch import Tensor

    from mtp_verify.verifier.kernels.device.layout import Capacity

__all__ = [
    "PART",
    "ROOM",
    "Candidates",
    "Races",
    "Records",
    "States",
    "Stops",
    "Tests",
    "Workspace",
]

# Tokens of a row among which one program runs a race.
PART = 8 * BLOCK

# Tokens of a row that are listed where top-k, top-p and min-p look for a cut.
ROOM = 4096


class Records(NamedTuple):
    """What is known of n rows of W tokens; NB = ceil(W / BLOCK).

    A token of scaled logit y has the weight ``exp(y - origin) 2**-exponent`` if it is kept: if
    ``y - origin > cut``, or ``== cut`` and the token is below `tie_end`. Rows of probabilities are
    weights themselves: of theirs only `sums`, `total` and `status` say something.

    Attributes:
        sums: (n, NB) float64, the sums of weights of blocks.
        exponent: (n,) int32, even.
        total: (n,) float64, the fold of `sums`; in [1, 4) unless the row is greedy.
        cut: (n,) float32.
        tie_end: (n,) int32.
        origin: (n,) float32.
        only: (n,) int32, the one token that greedy decoding leaves, else -1.
        status: (n,) int32, bits of `layout` that hold if the row is read.
        leaf: (n, LANES NB) float32, the largest scaled logit of lane l of block j at
            ``LANES j + l``, before an origin is taken off; NaN if one of them is.
        block_exponent: (n, NB) int32, of `sums` until they are brought to `exponent`.
    """

    sums: Tensor
    exponent: Tensor
    total: Tensor
    cut: Tensor
    tie_end: Tensor
    origin: Tensor
    only: Tensor
    status: Tensor
    leaf: Tensor
    block_exponent: Tensor


class States(NamedTuple):
    """The state of each node while its children are tested, (R,) each; `stats` resets it.

    Attributes:
        taken: float64, b: how much of the drafter's row is taken off; 0 at first.
        gone: int32, 1 if this node's token is removed from its parent's residual; 0 at first.
        residual_sums: (R, NB) float64, the sums of blocks of the residual's weights.
        residual_total: float64, what they sum to as a probability; 1 before any test.
        next: int32, the row of the child at which the walk goes on, -1 at first.
        wants: int32, 1 if a token is drawn after this node; at first so in requests of TARGET_ONLY.
        drawn: int32, that token, -1 at first (greedy rows: theirs).
        edge: float64, how near the drawn point was to its cell's edge; infinite at first.
        fell_back: int32, 1 if rounding had emptied the residual; 0 at first.
        status: int32, bits of `layout` that hold if the walk comes to this node; 0 at first.
    """

    taken: Tensor
    gone: Tensor
    residual_sums: Tensor
    residual_total: Tensor
    next: Tensor
    wants: Tensor
    drawn: Tensor
    edge: Tensor
    fell_back: Tensor
    status: Tensor


class Tests(NamedTuple):
    """What `rounds` knows of each node, (R,) each.

    The first four are of a node as a child of its parent: what its test needs.

    Attributes:
        p: float64, its token's probability under the target.
        q: float64, that under the drafter, if it was sampled.
        rest: float64, the mass of the drafter's row that it was drawn from.
        fault: int32, bits of errors that its test ends in, 0 for none.
        delivered: float64, w: with what probability the walk of `lifted` stops here or below.
        child: int32, the row of the child that is tested, or was last; -1 for none.
        phase: int32, how far its tests are.
        job: int32, which sums of blocks are wanted; 0 for none.
        summed: int32, 1 once `residual_sums` hold something.
    """

    p: Tensor
    q: Tensor
    rest: Tensor
    fault: Tensor
    delivered: Tensor
    child: Tensor
    phase: Tensor
    job: Tensor
    summed: Tensor


class Stops(NamedTuple):
    """Where requests of LIFTED stop, (B,) int32 each.

    Attributes:
        row: The row after which they draw, or of the node that an error is about.
        status: Bits of errors that came up before, else 0.
    """

    row: Tensor
    status: Tensor


class Races(NamedTuple):
    """How races of COUPLED went in parts of rows.

    Attributes:
        times: (R, parts) float64, the earliest time of each part.
        tokens: (R, parts) int32, its token.
        parts: Of a row, each of PART tokens.
    """

    times: Tensor
    tokens: Tensor
    parts: int


class Candidates(NamedTuple):
    """Tokens of the n rows of target and drafter among which cuts are looked for.

    Attributes:
        found: (n,) int32, how many there are.
        tokens: (n, ROOM) int32, in any order: all of them if there is room.
    """

    found: Tensor
    tokens: Tensor


class Workspace:
    """The tensors of a capacity on a device.

    Attributes:
        target: Records of the target's rows, by node.
        drafter: Records of the drafter's rows; None where there are none.
        states: Of nodes.
        tests: Of nodes, while rounds last.
        races: Of nodes.
        stops: Of requests.
        candidates: Of the target's rows, then of the drafter's.
    """

    target: Records
    drafter: Records | None
    states: States
    tests: Tests
    races: Races
    stops: Stops
    candidates: Candidates

    def __init__(self, capacity: Capacity, device: torch.device | str) -> None:
        """Allocate the tensors; none of them has to hold anything at first."""

        def make(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        def records(rows: int, width: int) -> Records:
            blocks = -(-width // BLOCK)
            return Records(
                sums=make(torch.float64, rows, blocks),
                exponent=make(torch.int32, rows),
                total=make(torch.float64, rows),
                cut=make(torch.float32, rows),
                tie_end=make(torch.int32, rows),
                origin=make(torch.float32, rows),
                only=make(torch.int32, rows),
                status=make(torch.int32, rows),
                leaf=make(torch.float32, rows, LANES * blocks),
                block_exponent=make(torch.int32, rows, blocks),
            )

        rows = capacity.rows
        self.target = records(rows, capacity.vocab)
        self.drafter = records(capacity.drafted, capacity.columns) if capacity.drafted else None
        self.states = States(
            taken=make(torch.float64, rows),
            gone=make(torch.int32, rows),
            residual_sums=make(torch.float64, rows, -(-capacity.vocab // BLOCK)),
            residual_total=make(torch.float64, rows),
            next=make(torch.int32, rows),
            wants=make(torch.int32, rows),
            drawn=make(torch.int32, rows),
            edge=make(torch.float64, rows),
            fell_back=make(torch.int32, rows),
            status=make(torch.int32, rows),
        )
        self.tests = Tests(
            p=make(torch.float64, rows),
            q=make(torch.float64, rows),
            rest=make(torch.float64, rows),
            fault=make(torch.int32, rows),
            delivered=make(torch.float64, rows),
            child=make(torch.int32, rows),
            phase=make(torch.int32, rows),
            job=make(torch.int32, rows),
            summed=make(torch.int32, rows),
        )
        parts = -(-capacity.vocab // PART)
        times, tokens = make(torch.float64, rows, parts), make(torch.int32, rows, parts)
        self.races = Races(times, tokens, parts)
        requests = capacity.requests
        self.stops = Stops(make(torch.int32, requests), make(torch.int32, requests))
        both = rows + capacity.drafted
        self.candidates = Candidates(make(torch.int32, both), make(torch.int32, both, ROOM))
