"""Describe a step on a device: tensors of fixed capacities, as kernels read them.

A step holds the trees of B requests as R nodes one after the other (a node of a tree, its root
included, is one row of logits). Everything of a node is an entry of an array over R, everything of
a request one of an array over B, so that nothing depends on the shape of a tree but the number of
rounds. Arrays are filled up to their capacities; entries that are not used say so (-1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BLOCK",
    "COUPLED",
    "EMPTY",
    "FALLBACK",
    "GREEDY",
    "LANES",
    "LIFTED",
    "NOT_FINITE",
    "NOT_NORMALISED",
    "TARGET_ONLY",
    "TOPDOWN",
    "ZERO_DRAFT",
    "Capacity",
    "Drafted",
    "Edited",
    "Nodes",
    "Outcomes",
    "Requests",
    "Shaping",
    "Step",
]

# As in the core: a block of a row, and the lanes by which it is summed.
BLOCK = 2048
LANES = 16

# Cores that run on a device: `Requests.core`.
GREEDY, TARGET_ONLY, COUPLED, TOPDOWN, LIFTED = range(5)

# Bits of `Outcomes.status`. All but the last are errors.
NOT_FINITE = 1  # A row that was read holds NaN or +inf.
EMPTY = 2  # A row leaves nothing to draw from.
NOT_NORMALISED = 4  # A row of probabilities sums to something else than about 1.
ZERO_DRAFT = 8  # A sampled token has the probability 0 in the drafter's row.
FALLBACK = 16  # Rounding had emptied a residual: the draw fell back to the target's row.


@dataclass(frozen=True)
class Capacity:
    """The most that a step may hold: sizes of tensors, and of a captured graph's launches.

    Attributes:
        requests: B.
        rows: R, the nodes of all trees, roots included.
        nodes: The most nodes of one tree.
        depth: D, the most levels below a root.
        children: The most children of a node.
        rounds: How many masses may have to wait for one another: `rounds` of src/batch/layout.rs.
            A step runs plan, then mass and plan so many times, and then draws.
        vocab: V, tokens of a row.
        drafted: Q, rows of the drafter; 0 without.
        columns: Tokens of a drafter's row: V, or those of a sub-vocabulary.
    """

    requests: int
    rows: int
    nodes: int
    depth: int
    children: int
    rounds: int
    vocab: int
    drafted: int = 0
    columns: int = 0


class Nodes(NamedTuple):
    """The nodes of all trees, each (R,) int32; a node's "row" is its place in these arrays.

    Attributes:
        request: To which request a row belongs; -1 for rows that are not used.
        number: The node's number in its own tree: what its noise is addressed by.
        parent: The row of its parent, -1 for a root.
        first_child: The row of its first child, -1 for a leaf.
        next_sibling: The row of the next child of its parent, -1 for the last.
        depth: Levels below the root.
        post: Its place in post-order among the nodes of its own tree.
        token: Its token; anything for a root.
        sampled: 1 if it was drawn from the drafter's row of its parent, else 0.
        drafted: The drafter's row from which its sampled children were drawn, or -1.
        place: Which row of the logits follows it.
    """

    request: Tensor
    number: Tensor
    parent: Tensor
    first_child: Tensor
    next_sibling: Tensor
    depth: Tensor
    post: Tensor
    token: Tensor
    sampled: Tensor
    drafted: Tensor
    place: Tensor


class Requests(NamedTuple):
    """The requests of a step, each (B,).

    Attributes:
        root: int32, the row of the root; -1 for requests that are not used.
        count: int32, the nodes of the tree.
        core: int32, GREEDY to LIFTED; sampled nodes go with the last two alone.
        without: int32, 1 where siblings were drawn without replacement (laws "swor", "mixed").
        has_set: int32, 1 where deterministic children stand behind sampled ones (laws
            "top_plus_one", "mixed"): nothing of the drafter's row is taken off their tokens.
        seed: int64, the bits of the seed.
        position: int64, the index of the root among its sequence's own tokens.
        start: int64, the cache's entry of the root; those of the other nodes follow it.
    """

    root: Tensor
    count: Tensor  # type: ignore[assignment]  # In place of a tuple's method.
    core: Tensor
    without: Tensor
    has_set: Tensor
    seed: Tensor
    position: Tensor
    start: Tensor


class Shaping(NamedTuple):
    """How rows of logits are shaped, one entry for each row.

    Attributes:
        temperature: float32; 0 for greedy rows.
        top_k: int32; 0 is off.
        top_p: float64; 1 is off.
        min_p: float64; 0 is off.
        log_min_p: float64, its natural logarithm as the core computes it.
        min_p_first: int32, 1 for the order of vLLM (min-p, top-k, top-p), 0 for transformers'
            (top-k, top-p, min-p).
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    log_min_p: Tensor
    min_p_first: Tensor


class Drafted(NamedTuple):
    """The drafter's Q rows.

    Attributes:
        rows: (Q, columns) float32, bfloat16 or float16, unit stride in a row; more where `place`
            says which.
        shaping: None for rows of probabilities, else how these logits are shaped, (Q,) each.
        column: (V,) int32, the column of a token, -1 for none; None if columns are tokens.
        place: (Q,) int32, where in `rows` each row of logits lies; None for all, in order.
    """

    rows: Tensor
    shaping: Shaping | None
    column: Tensor | None
    place: Tensor | None = None

    @property
    def number(self) -> int:
        """Q."""
        return len(self.rows if self.place is None else self.place)


class Edited(NamedTuple):
    """What replaces or masks logits.

    Attributes:
        bitmask: (R, ceil(V/32)) int32, bit ``t % 32`` of word ``t // 32`` set: token t is allowed
            after that node; None for no mask.
        shadow: (S, V) float32, rows that are read in place of those of the logits; None for none.
        shadow_of: (R,) int32, which of them, -1 for the logits' own; None with `shadow`.
    """

    bitmask: Tensor | None = None
    shadow: Tensor | None = None
    shadow_of: Tensor | None = None


class Outcomes(NamedTuple):
    """What a step decided. Entries of requests that are not used stay as they are.

    Attributes:
        tokens: (B, D+1) int32, the emitted tokens, then -1.
        path: (B, D) int32, the accepted nodes by their numbers in the tree, then -1.
        num_accepted: (B,) int32.
        logprobs: (B, D+1) float32, of the emitted tokens under the shaped target, then 0.
        moves: (B, D, 2) int64, from entry to entry of the cache in order, then -1.
        length: (B,) int64, entries of the cache that stay.
        state_select: (B,) int32, the last accepted node, or 0.
        status: (B,) int32, bits.
        fault: (B,) int32, the node (by number) of the first row that an error is about, else -1.
        margin: (B,) float64, the least distance of a drawn point from a cell's edge, as a part of
            the row's total; where it is less than 2^-45 the core may draw the token beside.
    """

    tokens: Tensor
    path: Tensor
    num_accepted: Tensor
    logprobs: Tensor
    moves: Tensor
    length: Tensor
    state_select: Tensor
    status: Tensor
    fault: Tensor
    margin: Tensor


class Step(NamedTuple):
    """One step: everything that a backend's `run` reads and writes, on one device.

    Attributes:
        capacity: Sizes.
        nodes: The trees.
        requests: Who they belong to.
        shaping: Of the target's rows, (R,) each.
        truncates: Whether top-k, top-p or min-p may be on in any row (no kernel runs if not).
        logits: (rows, V) float32, bfloat16 or float16, unit stride in a row; not modified.
        drafted: The drafter's rows, or None where no node was sampled.
        edited: Masks and replaced rows.
        given: None, or (R, 2) float64: numbers in [0, 1) that take the place of the noise by which
            a node is accepted (first) and a token drawn after it (second); for proofs.
        outcomes: Written.
        races: Whether a request may be of the core COUPLED (no race is run if not).
    """

    capacity: Capacity
    nodes: Nodes
    requests: Requests
    shaping: Shaping
    truncates: bool
    logits: Tensor
    drafted: Drafted | None
    edited: Edited
    given: Tensor | None
    outcomes: Outcomes
    races: bool = True
