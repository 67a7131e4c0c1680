"""The cost of drafts, by their nodes."""

import pytest

from mtp_verify.decoder.planning.drafting import DraftingCost


def cost_of(*drafts):
    cost = DraftingCost()
    for num_nodes, seconds in drafts:
        cost.count(num_nodes, seconds)
    return cost.price()


def test_of_one_size_a_node_is_thought_cheap():
    fixed, unit = cost_of((2, 0.8), (2, 0.8))
    assert unit == pytest.approx(0.1)
    assert fixed + 2 * unit == pytest.approx(0.8)


@pytest.mark.parametrize(("fixed", "unit"), [(3.0, 0.1), (0.0, 0.7), (1.0, 0.5), (2.0, 0.0)])
def test_sizes_that_differ_tell_one_from_the_other(fixed, unit):
    sizes = [2, 7, 3, 7, 1, 5] * 4
    found = cost_of(*((num, fixed + unit * num) for num in sizes))
    mean = fixed + unit * 4
    assert found[0] == pytest.approx(fixed, abs=0.15 * mean)
    assert found[1] == pytest.approx(unit, abs=0.04 * mean)


@pytest.mark.parametrize("drafts", [[(1, 5.0), (9, 1.0)], [(1, 1e-9), (9, 80.0)], [(1, 0.0)]])
def test_neither_part_is_ever_negative(drafts):
    fixed, unit = cost_of(*drafts)
    assert fixed >= 0.0
    assert unit >= 0.0
