"""Decide trees by the rules `topdown` and `lifted`: rounds of tests that wait for masses.

The core tests one child after the other (`src/verify/rules`). Here a lane is a node, and all nodes
go on at once as far as they can: a node's tests depend on what it was delivered with and on its own
rows, not on chance below its earlier children, so each is carried on as if those had been refused.
What is decided is then read off: `topdown` goes down along accepted children, `lifted` stops at the
first node in post-order that accepts. Each rejection waits for the mass that it leaves (`mass`); a
round is the tests up to there. Nodes to which the walk cannot come any more ask for no masses.

An error is one only if the decision comes to it: it is noted with the node whose child's test ends
so.
"""

# Kernels take the compiler's own values, which have no types that a checker knows.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from mtp_verify.verifier.kernels.device import layout
from mtp_verify.verifier.kernels.device.triton_.noise import ACCEPT, uniform
from mtp_verify.verifier.kernels.device.triton_.rows import fold

__all__ = ["ALL", "TOUCHED", "TOUCHED_OF_TARGET", "decide"]

TOPDOWN = tl.constexpr(layout.TOPDOWN)
LIFTED = tl.constexpr(layout.LIFTED)

# `Tests.job`: sums of all blocks; of those alone that hold a removed token, the others being as
# they were; or as in the target's row.
ALL = tl.constexpr(1)
TOUCHED = tl.constexpr(2)
TOUCHED_OF_TARGET = tl.constexpr(3)

# `Tests.phase`: not delivered (yet); a child is under test; a mass is waited for; no more tests;
# none, and the walk of `lifted` stops here unless it did before.
UNMET = tl.constexpr(0)
TESTING = tl.constexpr(1)
WAITING = tl.constexpr(2)
SETTLED = tl.constexpr(3)
STOPS = tl.constexpr(4)

# Behind all places in post-order.
NEVER = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _at(values, lanes):
    """Return the values of other lanes; anything for lanes below 0."""
    return tl.gather(values, tl.maximum(lanes, 0), 0)


@triton.jit
def _masses(
    target_records,
    states,
    root,
    lane,
    is_waiting,
    before,
    BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
    FOLDED: tl.constexpr,
):
    """Return the residuals' totals after their sums were renewed; `before` for the other lanes."""
    end = tl.max(tl.where(is_waiting, lane + 1, 0), 0)
    folded = tl.arange(0, FOLDED)
    blocks = tl.arange(0, WIDTH)
    totals = before
    for start in range(0, end, FOLDED):
        own = is_waiting & (lane >= start) & (lane < start + FOLDED)
        if tl.max(own.to(tl.int32), 0) > 0:
            at = (root + start + folded).to(tl.int64)[:, None] * BLOCKS + blocks[None, :]
            is_in = (start + folded < end)[:, None] & (blocks < BLOCKS)[None, :]
            sums = fold(tl.load(states.residual_sums + at, is_in, 0.0))
            place = tl.minimum(tl.maximum(lane - start, 0), FOLDED - 1)
            totals = tl.where(own, tl.gather(sums, place, 0), totals)
    unit = 1.0 / tl.load(target_records.total + root + lane, is_waiting, 1.0)
    return tl.where(is_waiting, totals * unit, before)


@triton.jit
def _number_of(nodes, requests, given, request, row, is_asked):
    """Return the number in [0, 1) by which a row's node is accepted."""
    if given is not None:
        return tl.load(given + 2 * row, is_asked, 0.0)
    else:
        seed = tl.load(requests.seed + request)
        position = tl.load(requests.position + request)
        return uniform(seed, position, tl.load(nodes.number + row, is_asked, 0), ACCEPT)


@triton.jit
def _odds(tests, child, taken, total, is_asked, sampled):
    """Return the residual's weight of a child's token, and that by which it was drawn."""
    p = tl.load(tests.p + child, is_asked, 0.0)
    q = tl.load(tests.q + child, is_asked & sampled, 1.0)
    rest = tl.load(tests.rest + child, is_asked & sampled, 1.0)
    left = tl.where(sampled, p - taken * q, p)
    return tl.where(left > 0.0, left, 0.0), tl.where(sampled, total * (q / rest), total), rest


@triton.jit
def _topdown(
    nodes,
    requests,
    given,
    target_records,
    states,
    tests,
    request,
    root,
    count,
    FIRST: tl.constexpr,
    LANES: tl.constexpr,
    BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
    FOLDED: tl.constexpr,
):
    """Test a child of each node: a rejected one leaves a mass, which the next one waits for."""
    lane = tl.arange(0, LANES)
    live = lane < count
    row = root + lane
    sampled = tl.load(nodes.sampled + row, live, 0) != 0
    if FIRST:
        child = tl.load(nodes.first_child + row, live, -1)
        phase = tl.where(child >= 0, TESTING, SETTLED)
        taken = tl.zeros((LANES,), tl.float64)
        total = tl.full((LANES,), 1.0, tl.float64)
        accepted = tl.full((LANES,), -1, tl.int32)
        status = tl.zeros((LANES,), tl.int32)
        gone = tl.zeros((LANES,), tl.int32)
        summed = tl.zeros((LANES,), tl.int32)
    else:
        child = tl.load(tests.child + row, live, -1)
        phase = tl.load(tests.phase + row, live, SETTLED)
        taken = tl.load(states.taken + row, live, 0.0)
        before = tl.load(states.residual_total + row, live, 1.0)
        accepted = tl.load(states.next + row, live, -1)
        status = tl.load(states.status + row, live, 0)
        gone = tl.load(states.gone + row, live, 0)
        summed = tl.load(tests.summed + row, live, 0)
        is_waiting = phase == WAITING
        total = _masses(
            target_records, states, root, lane, is_waiting, before, BLOCKS, WIDTH, FOLDED
        )
        child = tl.where(is_waiting, tl.load(nodes.next_sibling + child, is_waiting, -1), child)
        # Only by rounding is no mass left.
        phase = tl.where(is_waiting, tl.where(total > 0.0, TESTING, SETTLED), phase)
    tests_one = phase == TESTING
    # Deterministic children are not tested: the token that is drawn says which it is.
    is_drawn = tl.load(nodes.sampled + child, tests_one, 0) != 0
    phase = tl.where(tests_one & ~is_drawn, SETTLED, phase)
    tests_one = tests_one & is_drawn

    fault = tl.load(tests.fault + child, tests_one, 0)
    status = tl.where(tests_one, fault, status)
    tests_one = tests_one & (fault == 0)
    num, den, rest = _odds(tests, child, taken, total, tests_one, tests_one)
    u = _number_of(nodes, requests, given, request, child, tests_one)
    accepts = tests_one & (num > 0.0) & ((num >= den) | (u * den < num))
    accepted = tl.where(accepts, child, accepted)
    rejects = tests_one & ~accepts
    taken = tl.where(rejects, taken + total / rest, taken)
    following = tl.load(nodes.next_sibling + child, rejects, -1)
    is_more = tl.load(nodes.sampled + following, rejects & (following >= 0), 0) != 0
    phase = tl.where(phase == TESTING, tl.where(is_more, WAITING, SETTLED), phase)

    # Where the walk may come to: down along accepted children, those not tested, and those drawn.
    parent = tl.load(nodes.parent + row, live, -1) - root
    gone = gone | (_at(rejects.to(tl.int32), parent) & (_at(child, parent) == row).to(tl.int32))
    chosen = _at(accepted, parent)
    is_open = (gone == 0) & ((_at(phase, parent) == WAITING) | ~sampled)
    leads = tl.where(chosen >= 0, chosen == row, is_open) & (_at(status, parent) == 0)
    depth = tl.max(tl.load(nodes.depth + row, live, 0), 0)
    reached = (lane == 0).to(tl.int32)
    for _ in range(depth):
        reached = reached | (leads & live & (lane > 0) & (_at(reached, parent) != 0)).to(tl.int32)
    is_reached = reached != 0
    job = tl.where(rejects & is_reached, ALL, 0)
    phase = tl.where(is_reached, phase, SETTLED)
    wants = is_reached & (phase == SETTLED) & (accepted < 0) & (status == 0)

    tl.store(tests.child + row, child, live)
    tl.store(tests.phase + row, phase, live)
    tl.store(tests.job + row, job, live)
    tl.store(tests.summed + row, summed | (job != 0).to(tl.int32), live)
    tl.store(states.taken + row, taken, live)
    tl.store(states.residual_total + row, total, live)
    tl.store(states.next + row, accepted, live)
    tl.store(states.status + row, status, live)
    tl.store(states.gone + row, gone, live)
    tl.store(states.wants + row, wants.to(tl.int32), live)


@triton.jit
def _lifted(
    nodes,
    requests,
    given,
    target_records,
    states,
    tests,
    stops,
    request,
    root,
    count,
    FIRST: tl.constexpr,
    LANES: tl.constexpr,
    BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
    FOLDED: tl.constexpr,
):
    """Carry the probability of delivery down, and test a child of each node that has one."""
    lane = tl.arange(0, LANES)
    live = lane < count
    row = root + lane
    is_root = lane == 0
    parent = tl.load(nodes.parent + row, live, -1) - root
    sampled = tl.load(nodes.sampled + row, live, 0) != 0
    first = tl.load(nodes.first_child + row, live, -1)
    # The row after a node is read before the node is accepted, and plain decoding might never come
    # there: one that is no distribution makes the node a leaf.
    readable = is_root | (tl.load(target_records.status + row, live, 0) == 0)
    first = tl.where(readable, first, -1)
    if FIRST:
        child = first
        phase = tl.where(is_root, TESTING, tl.where(live, UNMET, SETTLED))
        taken = tl.zeros((LANES,), tl.float64)
        total = tl.full((LANES,), 1.0, tl.float64)
        delivered = tl.where(is_root, total, 0.0)
        status = tl.zeros((LANES,), tl.int32)
        gone = tl.zeros((LANES,), tl.int32)
        summed = tl.zeros((LANES,), tl.int32)
    else:
        child = tl.load(tests.child + row, live, -1)
        phase = tl.load(tests.phase + row, live, SETTLED)
        taken = tl.load(states.taken + row, live, 0.0)
        before = tl.load(states.residual_total + row, live, 1.0)
        delivered = tl.load(tests.delivered + row, live, 0.0)
        status = tl.load(states.status + row, live, 0)
        gone = tl.load(states.gone + row, live, 0)
        summed = tl.load(tests.summed + row, live, 0)
        is_waiting = phase == WAITING
        total = _masses(
            target_records, states, root, lane, is_waiting, before, BLOCKS, WIDTH, FOLDED
        )
        mass = delivered * total / tl.where(is_waiting, before, 1.0)
        left = mass + tl.where(mass > 0.0, 1.0 - delivered, 1.0)
        delivered = tl.where(is_waiting, tl.where(mass > 0.0, mass / left, 0.0), delivered)
        child = tl.where(is_waiting, tl.load(nodes.next_sibling + child, is_waiting, -1), child)
        phase = tl.where(is_waiting, TESTING, phase)

    # A child whose turn it is: what it is delivered with waits for its parent's alone.
    is_turn = (phase == UNMET) & (_at(child, parent) == row)
    fault = tl.load(tests.fault + row, is_turn, 0)
    is_turn = is_turn & (fault == 0)
    weight, den, _ = _odds(tests, row, _at(taken, parent), _at(total, parent), is_turn, sampled)
    den = tl.where(is_turn & (den > 0.0), den, 1.0)
    carried = tl.where(phase == TESTING, delivered, 0.0)
    depth = tl.max(tl.load(nodes.depth + row, live, 0), 0)
    for _ in range(depth):
        above = _at(carried, parent)
        num = above * weight
        ratio = tl.where(num >= den, 1.0, num / den)
        carried = tl.where(is_turn & (above > 0.0), ratio, carried)
    is_met = is_turn & (carried > 0.0)
    delivered = tl.where(is_met, carried, delivered)
    phase = tl.where(is_met, TESTING, phase)

    steps = phase == TESTING
    tests_one = steps & (child >= 0) & (delivered > 0.0)
    fault = tl.load(tests.fault + child, tests_one, 0)
    status = tl.where(tests_one, fault, status)
    u = _number_of(nodes, requests, given, request, row, live)
    accepts = is_root | ((delivered > 0.0) & ((delivered >= 1.0) | (u < delivered)))
    following = tl.load(nodes.next_sibling + child, tests_one, -1)
    # What is delivered only falls: a node that refuses before its last mass refuses after it.
    rejects = tests_one & (fault == 0) & ((following >= 0) | accepts)
    stands = steps & ~tests_one & accepts
    phase = tl.where(steps, tl.where(rejects, WAITING, tl.where(stands, STOPS, SETTLED)), phase)

    # An error is where its child would come in post-order.
    place = tl.load(nodes.post + row, live, NEVER)
    failed = tl.load(nodes.post + child, live & (status != 0), NEVER)
    place_of = tl.where(status != 0, failed, tl.where(phase == STOPS, place, NEVER))
    earliest = tl.min(place_of, 0)
    phase = tl.where((phase == WAITING) & (place > earliest), SETTLED, phase)
    rejects = rejects & (phase == WAITING)
    is_drawn = tl.load(nodes.sampled + child, rejects, 0) != 0
    rest = tl.load(tests.rest + child, rejects & is_drawn, 1.0)
    divisor = tl.where(rejects & is_drawn, delivered * rest, 1.0)
    taken = tl.where(rejects & is_drawn, taken + total / divisor, taken)
    gone = gone | (_at(rejects.to(tl.int32), parent) & (_at(child, parent) == row).to(tl.int32))
    again = tl.where(summed != 0, TOUCHED, TOUCHED_OF_TARGET)
    job = tl.where(rejects, tl.where(is_drawn, ALL, again), 0)

    stop = tl.min(tl.where((place_of == earliest) & (earliest < NEVER), row, NEVER), 0)
    error = tl.max(tl.where(row == stop, status, 0), 0)
    tl.store(stops.row + request, tl.where(earliest < NEVER, stop, -1))
    tl.store(stops.status + request, error)
    tl.store(tests.child + row, child, live)
    tl.store(tests.phase + row, phase, live)
    tl.store(tests.job + row, job, live)
    tl.store(tests.summed + row, summed | (job != 0).to(tl.int32), live)
    tl.store(tests.delivered + row, delivered, live)
    tl.store(states.taken + row, taken, live)
    tl.store(states.residual_total + row, total, live)
    tl.store(states.status + row, status, live)
    tl.store(states.gone + row, gone, live)
    tl.store(states.wants + row, ((row == stop) & (error == 0)).to(tl.int32), live)


@triton.jit
def decide(
    nodes, requests, given, target_records, states, tests, stops, FIRST: tl.constexpr,
    LANES: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr, FOLDED: tl.constexpr,
):  # fmt: skip
    """Carry the tests of all nodes on until each is settled or waits for a mass: grid (B,).

    Args:
        nodes: Of the step, as the following.
        requests: See `nodes`.
        given: See `nodes`.
        target_records: Of the workspace, as the following.
        states: Read unless FIRST; written.
        tests: As `states`.
        stops: Written.
        FIRST: Whether it is the first round of a step.
        LANES: A power of two that no tree's nodes exceed.
        BLOCKS: Blocks of a row.
        WIDTH: A power of two that they do not exceed.
        FOLDED: Rows whose sums are folded at a time.
    """
    request = tl.program_id(0)
    root = tl.load(requests.root + request)
    if root >= 0:
        count = tl.load(requests.count + request)
        core = tl.load(requests.core + request)
        if core == TOPDOWN:
            _topdown(
                nodes, requests, given, target_records, states, tests, request, root, count,
                FIRST, LANES, BLOCKS, WIDTH, FOLDED,
            )  # fmt: skip
        elif core == LIFTED:
            _lifted(
                nodes, requests, given, target_records, states, tests, stops, request, root, count,
                FIRST, LANES, BLOCKS, WIDTH, FOLDED,
            )  # fmt: skip
        elif FIRST:
            # Nothing is tested, and no tests of an earlier step count.
            lane = tl.arange(0, LANES)
            tl.store(tests.job + root + lane, 0, lane < count)
            tl.store(tests.summed + root + lane, 0, lane < count)
