"""What drafts have earned: counts by node, and drafts compared with the text that follows."""

from __future__ import annotations

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify.decoder.planning.acceptance import Rates, Watch


def test_rates_follow_what_is_seen():
    rates = Rates(4)
    for _ in range(100):
        rates.count_draft(2, 4)
        rates.count_nodes([1, 2], [1])
    drafted, kept = rates.estimate(4)
    assert drafted[1] == pytest.approx(1.0, abs=0.01)
    assert drafted[2] < 0.2
    assert kept[0] > 0.85
    assert kept[1] < 0.15


def test_rates_forget():
    rates = Rates(1)
    for outcome in [()] * 50 + [(1,)] * 30:
        rates.count_nodes([1], outcome)
    assert rates.estimate(1)[1][0] > 0.75


def test_a_trained_drafter_is_trusted_before_one_that_copies():
    copies, guesses = Rates(4), Rates(4, copies=False)
    assert np.all(guesses.estimate(4)[1] > copies.estimate(4)[1])
    for rates in (copies, guesses):
        for _ in range(50):
            rates.count_nodes([1], [])
    assert guesses.estimate(1)[1][0] < 0.1, "what is seen outweighs that"


def test_nodes_beyond_the_budget_are_neither_drafted_nor_missing():
    rates = Rates(4)
    for _ in range(30):
        rates.count_draft(2, 2)
    drafted, _ = rates.estimate(4)
    assert drafted[3] == 1.0
    assert rates.estimate(1)[0].tolist()[1:] == [0.0, 0.0, 0.0]


def test_a_good_first_node_speaks_for_the_next_ones():
    rates = Rates(8)
    before = rates.estimate(8)[1]
    rates.count_nodes([1], [1])
    assert np.all(rates.estimate(8)[1] > before)


#     0
#    / \
#   1   2
#  / \    \
# 3   4    5
PARENTS, TOKENS = [-1, 0, 0, 1, 1, 2], [9, 11, 12, 13, 14, 15]


def watch(rates):
    return Watch.over(mv.Draft(mv.TokenTree(PARENTS), TOKENS), 1, rates)


@pytest.mark.parametrize(
    ("after", "first", "accepted"),
    [
        ([12, 15], True, {2, 5}),
        ([11, 14, 7], True, {1, 4}),
        ([11, 7], True, {1}),
        ([7], False, set()),
    ],
)
def test_watch_finds_the_path_that_the_text_takes(after, first, accepted):
    rates = Rates(5)
    kept = watch(rates)
    # All at once or token by token: the same counts.
    assert kept.read([8, 9, *after]) is first
    assert kept.undecided == []
    one_by_one = Rates(5)
    slow = watch(one_by_one)
    for end in range(2, 3 + len(after)):
        slow.read([8, 9, *after][:end])
    expected = Rates(5)
    for node in range(1, 6):
        expected.count_nodes([node], accepted)
    for found in (rates, one_by_one):
        np.testing.assert_allclose(found.estimate(5)[1], expected.estimate(5)[1])


def test_watch_waits_for_the_text():
    rates = Rates(5)
    kept = watch(rates)
    assert kept.read([8, 9]) is None
    assert kept.read([8, 9, 11]) is True
    assert kept.undecided == [3, 4]
    assert kept.read([8, 9, 11]) is None
