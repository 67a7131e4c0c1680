"""The law of device code by enumeration: what is enumerated, what holds, what is found."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify import _core
from mtp_verify.testing import device_law
from mtp_verify.testing.device_law import MODELS, PAIRS, Case, cases, find_law
from mtp_verify.testing.device_mutants import TORCH, Mutant, mutated
from mtp_verify.verifier.kernels.device.torch_ import Workspace, run

if TYPE_CHECKING:
    from mtp_verify.verifier.words import Law, RuleName

PACKAGE = "mtp_verify.verifier.kernels.device.torch_"


@pytest.mark.parametrize(("rule", "law"), PAIRS)
def test_drafts_and_cells_cover_everything(rule: RuleName, law: Law) -> None:
    for model in MODELS:
        case = Case(model, rule, law, PAIRS[rule, law][0])
        rows = device_law._Rows(case)
        drafts = list(device_law._drafts(case, rows))
        assert sum(draft.weight for draft in drafts) == pytest.approx(1, abs=1e-14)
        for draft in drafts:
            cells = list(device_law._cells(case, rows, draft))
            assert sum(cell.weight for cell in cells) == pytest.approx(1, abs=1e-14)


def test_cells_have_the_weights_of_the_core_s_own_enumeration() -> None:
    case = Case(MODELS[0], "lifted", "swor", (2, 1))
    rows = device_law._Rows(case)
    params = mv.SamplingParams()._core
    for draft in list(device_law._drafts(case, rows))[::7]:
        logits = np.array([rows.after(path, rows.target) for path in draft.paths])
        probs = np.array([rows.after(path, rows.drafter) for path in draft.paths])
        given = mv.Draft(mv.TokenTree(draft.parents), draft.tokens, "swor", probs=probs)
        wanted: dict[tuple[int, ...], float] = {}
        for verdict, weight in _core.verdicts(given, logits, params, "lifted"):
            assert isinstance(verdict, mv.Verdict)
            key = (*verdict.path.tolist(), int(verdict.tokens[-1]))
            wanted[key] = wanted.get(key, 0.0) + weight
        found: dict[tuple[int, ...], float] = {}
        for cell in device_law._cells(case, rows, draft):
            path, node = [], cell.node
            while node > 0:
                path, node = [node, *path], draft.parents[node]
            key = (*path, cell.token)
            found[key] = found.get(key, 0.0) + cell.weight
        assert found == pytest.approx(wanted, abs=1e-14)


@pytest.mark.parametrize(("rule", "law"), PAIRS)
def test_steps_in_torch_operators_have_the_target_s_law(rule: RuleName, law: Law) -> None:
    for number, shape in enumerate(PAIRS[rule, law][:2]):
        for is_logits in (False, True):
            case = Case(MODELS[number], rule, law, shape, is_logits=is_logits)
            found = find_law(case, run, Workspace)
            assert found.holds, (found.distance, found.left_out, found.mistakes[:3])
            assert found.asked > found.cells > found.drafts - 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_cases_have_the_target_s_law() -> None:
    for case in cases():
        found = find_law(case, run, Workspace)
        assert found.holds, (case, found.distance, found.left_out, found.mistakes[:3])


@pytest.mark.parametrize("mutant", TORCH, ids=lambda mutant: mutant.name)
def test_mistakes_in_the_source_are_found(mutant: Mutant) -> None:
    assert find_law(mutant.case, run, Workspace).holds
    with mutated(PACKAGE, mutant) as module:
        found = find_law(mutant.case, module.run, module.Workspace)
    assert not found.holds


def test_a_mistake_that_no_longer_fits_is_refused() -> None:
    stale = TORCH[0]._replace(before="nothing of the kind")
    with pytest.raises(ValueError, match="is not once"), mutated(PACKAGE, stale):
        pass


def test_middles_alone_give_the_law_too() -> None:
    case = Case(MODELS[0], "topdown", "chain", (1, 1))
    found = find_law(case, run, Workspace, asks_ends=False)
    assert found.holds
    assert found.asked == found.cells
    assert not dataclasses.replace(found, distance=1e-9).holds
