"""The tests of `topdown` and `lifted`, all nodes of all trees side by side.

A node's children are tested in order, and what a rejection leaves has to be summed before the next
one is tested. So the work falls into rounds: in a round every node tests one child, and then the
rejections of the round are summed in one pass over the rows.

`topdown` starts at all nodes at once, as if the walk came to each of them: whether it does is seen
in the end. `lifted` hands the weight `w` with which a path was delivered from a node to the child
that is tested, so a node starts in the round in which its parent tests it; first children follow
their parents within a round. Children are taken for rejected here, whatever their own subtrees say:
a node's tests count where nothing before them stops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mtp_verify.verifier.kernels.device.layout import (
    LIFTED,
    NOT_NORMALISED,
    TOPDOWN,
    ZERO_DRAFT,
)
from mtp_verify.verifier.kernels.device.torch_.drafter import rests
from mtp_verify.verifier.kernels.device.torch_.weights import fold

if TYPE_CHECKING:
    from torch import Tensor

    from mtp_verify.verifier.kernels.device.layout import Step
    from mtp_verify.verifier.kernels.device.torch_.residual import Rows
    from mtp_verify.verifier.kernels.device.torch_.workspace import Workspace

__all__ = ["State", "settle"]


@dataclass
class State:
    """Where the tests of nodes stand; each (R,).

    Attributes:
        b: Wide, how much of q is taken off p.
        gone: Of a child: whether its token is removed after its parent.
        sums: (R, blocks) wide, of what is left.
        total: Wide, what is left as a share of the target's row.
        w: Wide, with which probability a path is delivered to a node (topdown: 1).
        w_before: Wide, the same before the last child was rejected.
        is_open: Whether a node's children are tested.
        is_visited: Lifted: whether the traversal comes to a node if nothing stops it before.
        accepted: int64, topdown: the row of the accepted child, or -1.
        error: int32, bits of the error with which the tests of a node (lifted: the test of a
            child) end, or 0.
        fault: int32, the number of the node that it is about.
    """

    b: Tensor
    gone: Tensor
    sums: Tensor
    total: Tensor
    w: Tensor
    w_before: Tensor
    is_open: Tensor
    is_visited: Tensor
    accepted: Tensor
    error: Tensor
    fault: Tensor

    @classmethod
    def start(cls, rows: Rows) -> State:
        """Return the state before any test."""
        trees = rows.trees
        total = torch.ones_like(rows.target.total)
        is_topdown = trees.used & (trees.core == TOPDOWN)
        is_lifted = trees.used & (trees.core == LIFTED)
        # A row that is no distribution ends a path of lifted; the draw says so if it comes there.
        is_sound = trees.is_root | (rows.target.status == 0)
        return cls(
            b=torch.zeros_like(total),
            gone=torch.zeros_like(trees.used),
            sums=rows.target.sums,
            total=total,
            w=torch.where(is_topdown | (is_lifted & trees.is_root), total, 0.0),
            w_before=total,
            is_open=is_topdown | (is_lifted & is_sound),
            is_visited=is_lifted & trees.is_root,
            accepted=torch.full_like(trees.parent, -1),
            error=torch.zeros_like(rows.target.status),
            fault=torch.zeros_like(rows.target.status),
        )


@dataclass(frozen=True)
class _Children:
    """What a child's test needs and no test changes; each (R,) by child.

    Attributes:
        p: Wide, its token's probability under the target after its parent.
        q: Wide, under the drafter.
        rest: Wide, the mass of q where the child could be.
        error: int32, the bits of the error of its test, or 0.
        fault: int32, the number of the node that it is about.
        u: Wide, the number by which it is accepted.
        due: int64, the round of its test; -1 for what is never tested.
    """

    p: Tensor
    q: Tensor
    rest: Tensor
    error: Tensor
    fault: Tensor
    u: Tensor
    due: Tensor


def settle(step: Step, rows: Rows, u: Tensor, workspace: Workspace) -> State:
    """Test the children of all nodes.

    Args:
        step: Its capacity says how many rounds there may be.
        rows: The rows after the nodes.
        u: (R,) wide, the numbers by which nodes are accepted.
        workspace: Types and sizes.
    """
    state = State.start(rows)
    rounds = step.capacity.rounds
    if rounds == 0:
        return state
    children = _children(step, rows, u)
    for number in range(rounds):
        tested = _test(step, rows, children, state, number)
        _reject(rows, children, state, tested, workspace)
    return state


def _children(step: Step, rows: Rows, u: Tensor) -> _Children:
    trees, drafter = rows.trees, rows.drafter
    parent, token, is_lifted = trees.parent, trees.token[:, None], trees.core == LIFTED
    p = rows.at(parent, token)[:, 0] / rows.target.total[parent]
    number, of_target = step.nodes.number, rows.target.status[parent]
    if drafter is None:
        q, rest, error = torch.ones_like(p), torch.ones_like(p), of_target
    else:
        row = rows.drafted[parent]
        q = drafter.at(row, token)[:, 0] / drafter.total[row]
        rest = rests(trees, drafter, row)
        is_off = drafter.is_off[row] & trees.is_root[parent]
        of_row = drafter.status[row]
        of_row = torch.where((of_row == 0) & is_off, NOT_NORMALISED, of_row)
        of_child = torch.where(of_row > 0, of_row, torch.where(q > 0, 0, ZERO_DRAFT))
        of_child = torch.where(trees.sampled, of_child, 0)
        error = torch.where(of_target > 0, of_target, of_child)
    fault = torch.where(error == ZERO_DRAFT, number, number[parent])

    # Lifted: a parent starts when it is tested itself, and each rejection takes a round.
    due = torch.zeros_like(trees.place)
    for _ in range(step.capacity.depth):
        start = torch.where(trees.is_root[parent] | ~is_lifted, 0, due[parent])
        due = start + trees.place
    is_tested = trees.used & ~trees.is_root & (is_lifted | trees.sampled)
    due = torch.where(is_tested, due, -1)
    return _Children(p, q, rest, error.to(torch.int32), fault.to(torch.int32), u, due)


def _test(step: Step, rows: Rows, children: _Children, state: State, number: int) -> Tensor:
    """Test the children that are due; return (R,) bool, which of them were rejected."""
    trees, parent = rows.trees, rows.trees.parent
    is_due = (children.due == number) & state.is_open[parent] & (state.accepted[parent] < 0)
    is_lifted = trees.core == LIFTED
    b = torch.where(trees.sampled, state.b[parent], 0.0)
    weight = torch.where(b > 0, children.p - b * children.q, children.p)
    weight = torch.where((weight > 0) & ~state.gone, weight, 0.0)
    whole = state.total[parent]
    den = torch.where(trees.sampled, whole * (children.q / children.rest), whole)
    is_wrong = children.error > 0

    # Topdown: by its own number.
    is_asked = is_due & ~is_lifted & (state.error[parent] == 0)
    is_failed = is_asked & is_wrong
    state.error = _to_parents(state.error, children.error, is_failed, parent)
    state.fault = _to_parents(state.fault, children.fault, is_failed, parent)
    is_asked = is_asked & ~is_wrong
    is_accepted = is_asked & (weight > 0) & ((weight >= den) | (children.u * den < weight))
    own_row = torch.arange(len(parent), device=parent.device)
    state.accepted = _to_parents(state.accepted, own_row, is_accepted, parent)
    rejected = is_asked & ~is_accepted

    # Lifted: from the parents down, a level at a time.
    for depth in range(1, step.capacity.depth + 1):
        w = state.w[parent]
        is_asked = is_due & is_lifted & (step.nodes.depth == depth)
        is_asked = is_asked & state.is_visited[parent] & (w > 0)
        own = torch.where(w * weight >= den, 1.0, w * weight / den)
        is_fine = is_asked & ~is_wrong
        state.w = torch.where(is_fine, own, state.w)
        state.is_visited = state.is_visited | (is_fine & (own > 0))
        state.error = torch.where(is_asked & is_wrong, children.error, state.error)
        state.fault = torch.where(is_asked & is_wrong, children.fault, state.fault)
        rejected = rejected | is_fine
    return rejected


def _reject(
    rows: Rows, children: _Children, state: State, rejected: Tensor, workspace: Workspace
) -> None:
    """Take the rejections (R,) of a round off the residuals of the parents."""
    trees, parent = rows.trees, rows.trees.parent
    share = state.total[parent] / (state.w[parent] * children.rest)
    share = torch.where(trees.sampled, share, 0.0)
    state.b = _to_parents(state.b, state.b[parent] + share, rejected, parent)
    state.gone = state.gone | rejected
    is_changed = _to_parents(torch.zeros_like(rejected), rejected, rejected, parent)
    is_last = _to_parents(torch.zeros_like(rejected), trees.is_last, rejected, parent)

    sums = rows.left_sums(state.b, state.gone, workspace)
    total = fold(sums) * (1.0 / rows.target.total)
    mass = state.w * total / state.total
    left = torch.where(mass > 0, mass / (mass + (1.0 - state.w)), 0.0)
    is_lifted = is_changed & (trees.core == LIFTED)
    state.w_before = torch.where(is_lifted & is_last, state.w, state.w_before)
    state.w = torch.where(is_lifted, left, state.w)
    # Only by rounding: exactly, a rejection of topdown leaves mass.
    state.is_open = state.is_open & ~(is_changed & ~(mass > 0))
    state.sums = torch.where(is_changed[:, None], sums, state.sums)
    state.total = torch.where(is_changed, total, state.total)


def _to_parents(values: Tensor, new: Tensor, where: Tensor, parent: Tensor) -> Tensor:
    """Return `values` (R,) with those of some children's (R,) written to their parents.

    At most one child of a parent is meant.
    """
    spare = torch.where(where, parent, len(parent))
    return torch.cat([values, values[:1]]).scatter(0, spare, new.to(values.dtype))[:-1]
