from __future__ import annotations

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify.certification.cells import Cells

# 8 strings of 2 tokens, 3 of them alike, 2 more that begin alike.
PILOT = np.array([[5, 5], [5, 5], [5, 5], [7, 1], [7, 2], [9, 9], [40_000, 3], [8, 1]])


def test_frequent_strings_have_cells_and_rarer_ones_share():
    cells = Cells.of_pilot(PILOT, most=4)
    assert cells.beginnings == ((5, 5), (7,))
    assert cells.of(PILOT).tolist() == [0, 0, 0, 1, 1, 3, 2, 2]
    # Unknown strings: by their beginning, then by the remainder of the first token.
    assert cells.of(np.array([[7, 49_151], [5, 6], [-1, -1]])).tolist() == [1, 3, 5]
    assert cells.is_single().tolist() == [True, False, False, False, False, False]
    assert len(cells) == 6


def test_every_string_is_in_one_cell_whatever_the_pilot(rng):
    strings = rng.zipf(1.5, (2_000, 3)) % 50_000
    for most in (1, 10, 100):
        cells = Cells.of_pilot(strings[:1_000], most)
        found = cells.of(strings)
        assert found.min() >= 0
        assert found.max() < len(cells) <= most + 4
        # Each chosen cell holds its share of the pilot.
        counts = np.bincount(cells.of(strings[:1_000]), minlength=len(cells))
        assert (counts[:-4] >= 1_000 / most).all()


def test_names_say_what_a_cell_holds():
    cells = Cells.of_pilot(PILOT, most=4)
    assert [cells.name(cell) for cell in range(3)] == [
        "5 5",
        "7 and any other token",
        "rare first tokens of remainder 0 by 4",
    ]


def test_cells_come_back_from_their_state():
    cells = Cells.of_pilot(PILOT, most=4)
    again = Cells(**cells.state())
    assert again.of(PILOT).tolist() == cells.of(PILOT).tolist()


def test_beginnings_that_are_too_long_are_refused():
    with pytest.raises(mv.errors.ParamsError, match="wanted 1 to 2 tokens each"):
        Cells([(1, 2, 3)], 2)
