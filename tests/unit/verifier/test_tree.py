"""`TokenTree`: structure, masks and links."""

import numpy as np
import pytest

import mtp_verify as mv

#  0
#  +- 1
#  |  +- 3
#  +- 2
#     +- 4
#     +- 5
PARENTS = [-1, 0, 0, 1, 2, 2]


def test_structure() -> None:
    tree = mv.TokenTree(PARENTS)
    assert tree.num_nodes == len(tree) == 6
    assert tree.parents.tolist() == PARENTS
    assert tree.depths.tolist() == [0, 1, 1, 2, 2, 2]
    assert tree.children(2) == [4, 5]
    assert tree.path(5) == [2, 5]
    assert tree.path(0) == []
    assert tree.next_token.tolist() == [1, 3, 4, -1, -1, -1]
    assert tree.next_sibling.tolist() == [-1, 2, -1, -1, 5, -1]
    assert tree.next_token.dtype == tree.parents.dtype == np.int64
    assert repr(tree) == "TokenTree([-1, 0, 0, 1, 2, 2])"


def test_mask_is_ancestor_or_self() -> None:
    tree = mv.TokenTree(PARENTS)
    mask = tree.mask()
    assert mask.dtype == bool
    for node in range(6):
        assert np.flatnonzero(mask[node]).tolist() == sorted({0, *tree.path(node), node})


def test_a_root_alone_is_legal() -> None:
    tree = mv.TokenTree([-1])
    assert tree.num_nodes == 1
    assert tree.is_chain
    assert tree.mask().tolist() == [[True]]


@pytest.mark.parametrize(
    ("parents", "node"),
    [
        ([0], 0),
        ([-1, -1], 1),  # Two roots.
        ([-1, 2, 1], 1),  # A cycle, which is a forward reference.
        ([-1, 0, 2], 2),  # Its own parent.
        ([-1, 0, -7], 2),
    ],
)
def test_bad_parents_are_named(parents: list[int], node: int) -> None:
    with pytest.raises(mv.errors.DraftError) as caught:
        mv.TokenTree(parents)
    assert caught.value.slug == "bad_parent"
    assert caught.value.node == node


@pytest.mark.parametrize("parents", [[], [-1, 0.5], "ab", [[-1, 0]], 3, np.zeros(2)])
def test_what_is_no_integer_array_is_refused(parents: object) -> None:
    with pytest.raises(mv.errors.DraftError):
        mv.TokenTree(parents)


@pytest.mark.parametrize("node", [-1, 6])
def test_unknown_nodes_are_refused(node: int) -> None:
    with pytest.raises(mv.errors.CacheError, match="no such node"):
        mv.TokenTree(PARENTS).path(node)


def test_equality() -> None:
    assert mv.TokenTree(PARENTS) == mv.TokenTree(np.array(PARENTS, np.int32))
    assert mv.TokenTree(PARENTS) != mv.TokenTree([-1])


def test_commit_plan_moves_the_path_to_the_front() -> None:
    plan = mv.kv.commit_plan(mv.TokenTree(PARENTS), np.array([2, 5]), start=100)
    assert plan.moves.tolist() == [[102, 101], [105, 102]]
    assert plan.moves.dtype == np.int64
    assert plan.length == 103
    assert plan.state_select == 5
    assert plan.freed.tolist() == []
    assert mv.kv.commit_plan(mv.TokenTree(PARENTS), [], start=0).moves.shape == (0, 2)
