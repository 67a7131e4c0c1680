"""The engine's links as trees and back, on the host and on a device."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mtp_verify as mv
from mtp_verify.integrations import sglang
from mtp_verify.integrations.sglang.links import plant_links
from mtp_verify.testing import strategies
from mtp_verify.verifier.kernels.device.forest import NO_NODE
from tests.host_reads import HostReads
from tests.sglang_engine import random_tree

#   0
#  / \
# 1   2        columns 3, 4 hang below 1; column 5 is not linked
# |\
# 3 4
NEXT_TOKEN = [1, 3, -1, -1, -1, -1]
NEXT_SIBLING = [-1, 2, -1, 4, -1, -1]


def test_links_of_a_literal_tree():
    tree, columns = sglang.tree_from_links(NEXT_TOKEN, NEXT_SIBLING)
    assert tree.parents.tolist() == [-1, 0, 0, 1, 1]
    assert columns.tolist() == [0, 1, 2, 3, 4]
    back = sglang.links_from_tree(tree, 6)
    assert [links.tolist() for links in back] == [NEXT_TOKEN, NEXT_SIBLING]


def test_ten_thousand_random_trees_come_back():
    rng = np.random.default_rng(7)
    for _ in range(10_000):
        tree = random_tree(rng, int(rng.integers(0, 24)))
        width = tree.num_nodes + int(rng.integers(0, 4))
        found, columns = sglang.tree_from_links(*sglang.links_from_tree(tree, width))
        assert found == tree
        assert columns.tolist() == list(range(tree.num_nodes))


@given(
    tree=strategies.trees(max_nodes=20, max_depth=8),
    more=st.integers(0, 5),
    random=st.randoms(use_true_random=False),
)
@settings(max_examples=200)
def test_columns_in_any_order_give_the_same_tree(tree, more, random):
    num, width = tree.num_nodes, tree.num_nodes + more
    places = [0, *random.sample(range(1, width), num - 1)]
    next_token, next_sibling = [-1] * width, [-1] * width
    for node in range(num):
        children = tree.children(node)
        random.shuffle(children)
        if children:
            next_token[places[node]] = places[children[0]]
        for one, other in itertools.pairwise(children):
            next_sibling[places[one]] = places[other]
    found, columns = sglang.tree_from_links(next_token, next_sibling)
    nodes = [places.index(column) for column in columns]
    assert sorted(nodes) == list(range(num))
    assert nodes[0] == 0
    for node, parent in enumerate(found.parents[1:], 1):
        assert tree.parents[nodes[node]] == nodes[parent]


@pytest.mark.parametrize(
    ("next_token", "next_sibling", "message"),
    [
        ([1, 0], [-1, -1], "column 0 is linked twice"),
        ([1, -1, -1], [-1, 2, 1], "column 1 is linked twice"),
        ([2, -1], [-1, -1], "column 2 is not in 1 .. 1"),
        ([-2, -1], [-1, -1], "column -2 is not in"),
        ([1, -1], [-1], "1 next siblings"),
        ([], [], "the root at least"),
    ],
)
def test_links_that_are_no_tree_are_refused(next_token, next_sibling, message):
    with pytest.raises(mv.errors.DraftError, match=message):
        sglang.tree_from_links(next_token, next_sibling)


def test_a_width_below_the_trees_is_refused():
    with pytest.raises(mv.errors.DraftError, match="wanted 3 at least"):
        sglang.links_from_tree(mv.TokenTree([-1, 0, 0]), 2)


def test_the_engines_own_builder_agrees():
    # Selected entries of the candidates' table, as organize_draft_results hands them over: an entry
    # e of level l has parent group e // topk; group 0 is the root, group g the entry parents[g].
    rng = np.random.default_rng(2)
    for _ in range(200):
        topk, steps = int(rng.integers(1, 4)), int(rng.integers(2, 4))
        parents = np.concatenate([[-1], np.arange(topk * (steps - 1))])
        chosen = {0}
        for _ in range(6):
            entry = int(rng.integers(0, topk * (1 + topk * (steps - 1))))
            while True:
                chosen.add(entry)
                if entry < topk:
                    break
                entry = int(parents[entry // topk])
        selected = sorted(chosen)
        width = len(selected) + 1
        next_token, next_sibling = [-1] * width, [-1] * width
        expected = [-1]
        for entry in selected:
            group = entry // topk
            expected.append(0 if group == 0 else 1 + selected.index(int(parents[group])))
        for column in range(width - 1, 0, -1):  # the kernel's order: later columns first
            next_sibling[column] = next_token[expected[column]]
            next_token[expected[column]] = column
        tree, columns = sglang.tree_from_links(next_token, next_sibling)
        assert tree.parents.tolist() == expected
        assert columns.tolist() == list(range(width))


# ---- links that only a device knows --------------------------------------------------------------


def planted(tokens, next_token, next_sibling):
    given = [torch.tensor(rows) for rows in (tokens, next_token, next_sibling)]
    with HostReads() as reads:
        found = plant_links(*given)
    assert reads.places == []
    return found


def test_a_device_reads_the_trees_that_the_host_reads():
    rng = np.random.default_rng(4)
    for _ in range(60):
        count, width = int(rng.integers(1, 6)), int(rng.integers(1, 20))
        tokens = rng.integers(0, 9, (count, width))
        links = []
        for _ in range(count):
            tree = random_tree(rng, int(rng.integers(0, width)))
            next_token, next_sibling = sglang.links_from_tree(tree, width)
            if tree.num_nodes > 2 and rng.random() < 0.5:  # A column that nothing leads to.
                last = int(rng.integers(1, tree.num_nodes))
                next_token[next_token == last], next_sibling[next_sibling == last] = -1, -1
            links.append((next_token, next_sibling))
        table, columns = planted(tokens, *(np.stack(own) for own in zip(*links, strict=True)))
        parents, found_tokens, sampled, rows = table.view(4, count, width).numpy()
        assert not sampled.any()
        assert (rows == -1).all()
        for b, own in enumerate(links):
            tree, nodes = sglang.tree_from_links(*own)
            rest = width - tree.num_nodes
            assert parents[b].tolist() == tree.parents.tolist() + [NO_NODE] * rest
            assert columns[b, : tree.num_nodes].tolist() == nodes.tolist()
            assert sorted(columns[b].tolist()) == list(range(width))
            assert found_tokens[b, : tree.num_nodes].tolist() == tokens[b, nodes].tolist()


def test_columns_of_a_device_may_be_in_any_order():
    rng = np.random.default_rng(5)
    for _ in range(60):
        width = int(rng.integers(2, 20))
        tree = random_tree(rng, width - 1)
        places = [0, *(1 + rng.permutation(width - 1))]  # the column of each node
        links = np.full((2, width), -1)
        for own, name in zip(links, ("next_token", "next_sibling"), strict=True):
            for node, other in enumerate(getattr(tree, name)[:width]):
                own[places[node]] = -1 if other < 0 else places[other]
        tokens = rng.integers(0, 9, (1, width))
        table, columns = planted(tokens, *(own[None] for own in links))
        parents, columns = table[0].tolist(), columns[0].tolist()
        assert sorted(columns) == list(range(width))
        assert all(parent < node for node, parent in enumerate(parents))
        found, nodes = sglang.tree_from_links(*links)
        known = {nodes[i]: nodes[p] for i, p in enumerate(found.parents) if p >= 0}
        assert {columns[i]: columns[p] for i, p in enumerate(parents) if p >= 0} == known


@pytest.mark.parametrize(
    ("next_token", "next_sibling", "parents"),
    [
        ([0, -1, -1], [-1, -1, -1], [-1, -2, -2]),  # to itself
        ([1, 0, -1], [-1, -1, -1], [-1, 0, -2]),  # back to the root
        ([2, -1, 2], [-1, -1, -1], [-1, 0, -2]),  # to itself, and from the root
        ([1, -1, -1], [-1, 2, 1], [-1, 0, 0]),  # siblings in a ring
        ([1, 2, -1], [-1, 2, -1], [-1, 0, 1]),  # twice to column 2
        ([7, -5, -1], [9, -1, -1], [-1, -2, -2]),  # out of range
        ([-1, -1, -1], [1, 2, -1], [-1, -2, -2]),  # the root has no siblings
    ],
)
def test_links_of_a_device_that_are_no_tree_leave_one(next_token, next_sibling, parents):
    table, _ = planted([[5, 6, 7]], [next_token], [next_sibling])
    assert table[0].tolist() == parents
