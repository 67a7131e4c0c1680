"""The drafts of a law: their probabilities are those of a distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mtp_verify.testing.device.cases import MODELS, PAIRS, Case
from mtp_verify.testing.device.drafts import drafts
from mtp_verify.testing.device.rows import Rows

if TYPE_CHECKING:
    from mtp_verify.verifier.words import Law


def drafted(law: Law, shape: tuple[int, ...], model: int = 0):
    case = Case(MODELS[model], "target_only", law, shape)
    return list(drafts(case, Rows(case)))


@pytest.mark.parametrize("law", dict.fromkeys(law for _, law in PAIRS))
def test_they_cover_everything(law: Law) -> None:
    for model in range(len(MODELS)):
        for shape in ((1,), (2, 1)) if law != "chain" else ((1,), (1, 1)):
            total = sum(draft.weight for draft in drafted(law, shape, model))
            assert total == pytest.approx(1, abs=1e-14)


def test_without_replacement_the_second_token_is_another_one() -> None:
    found = {tuple(draft.tokens[1:]): draft.weight for draft in drafted("swor", (2,))}
    q = np.array([3, 3, 4]) / 10
    assert len(found) == 6
    assert found[2, 0] == pytest.approx(q[2] * q[0] / (1 - q[2]), abs=1e-7)


def test_of_unknown_drafts_the_least_likely_token_is_pruned() -> None:
    found = drafted("unknown", (2,), model=2)
    assert {len(draft.tokens) for draft in found} == {2, 3}
    assert not any(3 in draft.tokens for draft in found)


def test_a_path_has_its_nodes() -> None:
    draft = drafted("chain", (1, 1))[0]
    assert [draft.nodes_to(node) for node in range(3)] == [(), (1,), (1, 2)]
