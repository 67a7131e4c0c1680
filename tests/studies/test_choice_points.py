"""The count of hard terms: the note's figures, every place of the choice, every n."""

from __future__ import annotations

from fractions import Fraction

import pytest

from mtp_verify.errors import ParamsError
from studies.choice_points import count_terms, run


def test_the_figures_of_the_note() -> None:
    assert count_terms(8, 1, 3).share == Fraction(1, 7)
    terms = count_terms(10, 3, 4)
    assert (len(terms.hard), len(terms.hard) + len(terms.easy)) == (6, 21)


@pytest.mark.parametrize(
    ("length", "truncated", "wanted"),
    [
        (10, False, [3, 5, 6, 6, 6, 6, 6, 3, 1]),
        (8, True, [3, 5, 6, 6, 6, 5, 3]),
    ],
)
def test_every_place_of_the_choice(length: int, truncated: bool, wanted: list[int]) -> None:
    found = [count_terms(length, 3, c, truncated=truncated) for c in range(length - 1)]
    assert [len(terms.hard) for terms in found] == wanted
    assert {len(terms.hard) + len(terms.easy) for terms in found} == {18 if truncated else 21}


@pytest.mark.parametrize(("n", "share"), [(2, Fraction(3, 13)), (4, Fraction(10, 22))])
def test_other_horizons_truncated(n: int, share: Fraction) -> None:
    assert count_terms(8, n, 3, truncated=True).share == share


def test_in_the_middle_the_hard_terms_are_a_triangle() -> None:
    for n in range(1, 12):
        terms = count_terms(60, n, 30)
        assert len(terms.hard) == n * (n + 1) // 2
        assert terms.share == Fraction(n + 1, 2 * (60 - n))


@pytest.mark.parametrize("arguments", [(8, 0, 3), (3, 3, 1), (8, 2, 7), (8, 2, -1)])
def test_what_cannot_be_counted_is_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ParamsError, match="choice < length - 1"):
        count_terms(*arguments)


def test_the_finding_says_so() -> None:
    found = run(quick=True)
    assert found.verdict in {"reproduced", "mixed"}  # a quick pair says nothing
    assert found.data["noted"] == [(1, 7), (6, 21)]
