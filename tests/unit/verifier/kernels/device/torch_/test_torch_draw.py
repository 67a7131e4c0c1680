"""Draws of a step in torch operators: edges of cells, and rows that rounding has emptied."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

import mtp_verify as mv
from mtp_verify.verifier.kernels.device.layout import Edited
from mtp_verify.verifier.kernels.device.torch_ import Workspace
from mtp_verify.verifier.kernels.device.torch_.drafter import Drafter
from mtp_verify.verifier.kernels.device.torch_.draw import draw
from mtp_verify.verifier.kernels.device.torch_.residual import Rows
from mtp_verify.verifier.kernels.device.torch_.rounds import State
from mtp_verify.verifier.kernels.device.torch_.rows import Logits
from mtp_verify.verifier.kernels.device.torch_.shaping import shape
from mtp_verify.verifier.kernels.device.torch_.trees import tables
from tests import steps

if TYPE_CHECKING:
    from mtp_verify.verifier.kernels.device.layout import Step


def start(row: np.ndarray, parents: list[int], tokens: list[int]) -> tuple[Step, Rows, State]:
    """Return a step whose target and drafter have one row everywhere, before any test."""
    logits = torch.from_numpy(np.tile(row.astype(np.float32), (len(parents), 1)))
    request = steps.Request(
        parents, tokens, "iid", logits, mv.SamplingParams(), "topdown", drafter=logits.softmax(1)
    )
    step = steps.step_of([request], spare=(0, 0))
    workspace = Workspace(step.capacity)
    own = Logits(step.logits, step.nodes.place.long(), step.shaping, Edited())
    rows = Rows(
        tables(step),
        own,
        shape(own, truncates=False, workspace=workspace),
        Drafter.of(step, workspace),
        step.nodes.drafted.long(),
    )
    return step, rows, State.start(rows)


def test_a_point_on_an_edge_belongs_to_the_token_behind_it() -> None:
    # The third token is less than the rounding of the sum before it: no number draws it.
    step, rows, state = start(np.log([1, 1, 1e-30, 2]), [-1, 0], [-1, 0])
    for number, wanted in [(0.0, 0), (0.25, 1), (0.5, 3), (1 - 2.0**-53, 3)]:
        u = torch.full((2,), number, dtype=torch.float64)
        assert draw(step, rows, state, u).token.tolist() == [wanted] * 2
    # What cannot be drawn is in nobody's cell, at the ends of the row, too.
    step, rows, state = start(np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf]), [-1, 0], [-1, 1])
    for number, wanted in [(0.0, 1), (0.5, 3), (1 - 2.0**-53, 3)]:
        u = torch.full((2,), number, dtype=torch.float64)
        assert draw(step, rows, state, u).token.tolist() == [wanted] * 2


def test_an_emptied_residual_falls_back_to_the_target_without_what_was_rejected() -> None:
    step, rows, state = start(np.zeros(5000), [-1, 0, 0], [-1, 1, 4000])
    everything = replace(
        state,
        b=torch.full_like(state.b, 2.0),  # Far more than there is.
        gone=torch.tensor([False, True, True]),
        sums=torch.zeros_like(state.sums),
    )
    # 4998 tokens are left behind the root: all but the first up to 3998 move by one, then by two.
    for place, wanted in [(0, 0), (1, 2), (3998, 3999), (3999, 4001), (4997, 4999)]:
        u = torch.full((3,), (place + 0.5) / 4998, dtype=torch.float64)
        drawn = draw(step, rows, everything, u)
        assert drawn.fell_back.tolist() == [True] * 3
        assert int(drawn.token[0]) == wanted
    # The leaves have rejected nothing.
    half = draw(step, rows, everything, torch.full((3,), 0.5, dtype=torch.float64))
    assert half.token[1:].tolist() == [2500, 2500]


def test_if_nothing_else_is_left_the_whole_row_is_drawn_from() -> None:
    step, rows, state = start(np.array([0.0, -np.inf, -np.inf]), [-1, 0], [-1, 0])
    everything = replace(
        state,
        b=torch.full_like(state.b, 2.0),
        gone=torch.tensor([False, True]),
        sums=torch.zeros_like(state.sums),
    )
    drawn = draw(step, rows, everything, torch.tensor([0.3, 0.3], dtype=torch.float64))
    assert drawn.token.tolist() == [0, 0]
    assert drawn.fell_back.all()


def test_margins_are_distances_from_edges() -> None:
    step, rows, state = start(np.zeros(4), [-1, 0], [-1, 0])
    u = torch.tensor([0.3, 0.5 + 2.0**-48], dtype=torch.float64)
    edge = draw(step, rows, state, u).edge
    assert edge.tolist() == [0.3 - 0.25, 2.0**-48]
