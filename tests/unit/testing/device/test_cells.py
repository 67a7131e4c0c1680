"""Cells of numbers: they cover everything, and have the weights of the core's own enumeration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify import _core
from mtp_verify.testing.device.cases import MODELS, PAIRS, Case
from mtp_verify.testing.device.cells import SEED, cells, places_in, points
from mtp_verify.testing.device.drafts import drafts
from mtp_verify.testing.device.rows import Rows
from mtp_verify.verifier import reference

if TYPE_CHECKING:
    from mtp_verify.verifier.words import Law, RuleName


@pytest.mark.parametrize(("rule", "law"), PAIRS)
def test_cells_cover_everything(rule: RuleName, law: Law) -> None:
    params = mv.SamplingParams(temperature=0 if rule == "greedy" else 1)
    for model in MODELS[:4]:
        case = Case(model, rule, law, PAIRS[rule, law][0], params)
        rows = Rows(case)
        for draft in drafts(case, rows):
            found = list(cells(case, rows, draft))
            assert sum(cell.weight for cell in found) == pytest.approx(1, abs=1e-14)


def test_cells_have_the_weights_of_the_core_s_own_enumeration() -> None:
    case = Case(MODELS[0], "traversal", "swor", (2, 1))
    rows = Rows(case)
    params = mv.SamplingParams()._core
    for draft in list(drafts(case, rows))[::7]:
        logits = np.array([rows.logits(path) for path in draft.paths])
        probs = np.array([rows.drafter()[rows.number(path)] for path in draft.paths])
        given = mv.Draft(mv.TokenTree(draft.parents), draft.tokens, "swor", probs=probs)
        wanted: dict[tuple[int, ...], float] = {}
        for verdict, weight in _core.verdicts(given, logits, params, "traversal"):
            assert isinstance(verdict, mv.Verdict)
            key = (*verdict.path.tolist(), int(verdict.tokens[-1]))
            wanted[key] = wanted.get(key, 0.0) + weight
        found: dict[tuple[int, ...], float] = {}
        for cell in cells(case, rows, draft):
            key = (*draft.nodes_to(cell.node), cell.token)
            found[key] = found.get(key, 0.0) + cell.weight
        assert found == pytest.approx(wanted, abs=1e-14)


def test_points_are_in_the_middle_and_near_the_ends() -> None:
    case = Case(MODELS[0], "token", "chain", (1,))
    rows = Rows(case)
    cell = next(cells(case, rows, next(drafts(case, rows))))
    middle, *ends = points(cell, "ends")
    assert len(ends) == 2 * len(cell.intervals)
    for address, (low, high) in cell.intervals.items():
        assert middle[address] == (low + high) / 2
    corners = list(points(cell, "corners"))
    assert corners[0] == middle
    assert len(corners) == 3
    for point in (*ends, *corners):
        assert all(low <= point[at] < high for at, (low, high) in cell.intervals.items())
    assert list(points(cell, "middle")) == [middle]


@pytest.mark.parametrize("rule", ["coupled", "traversal"])
def test_at_the_positions_of_a_cell_the_reference_decides_so(rule: RuleName) -> None:
    case = Case(MODELS[4], rule, "swor", (2,), has_noise=True)
    rows = Rows(case)
    for draft in drafts(case, rows):
        tree = reference.Tree(
            draft.parents,
            draft.tokens,
            np.array([rows.p(path) for path in draft.paths]),
            np.array([rows.q(path) for path in draft.paths]),
            draft.sampled,
            case.law,
        )
        for cell in cells(case, rows, draft):
            positions = places_in(cell, "ends")
            assert len(positions) == 2
            for position in positions:
                noise = reference.Noise(SEED, position)
                assert reference.decide(tree, case.core, noise) == (cell.node, cell.token)


def test_a_cell_that_is_too_small_has_no_position() -> None:
    case = Case(MODELS[3], "coupled", "chain", (1, 1), has_noise=True)
    rows = Rows(case)
    found = [places_in(cell, "middle") for draft in drafts(case, rows)
             for cell in cells(case, rows, draft)]  # fmt: skip
    assert [] in found
