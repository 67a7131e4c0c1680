"""The table target: it must see masks, positions and commits as a transformer does."""

from __future__ import annotations

import pytest
import torch

import mtp_verify as mv
from mtp_verify.models.target import Target, TargetCache
from mtp_verify.testing import TableCache, TableTarget


@pytest.fixture
def target():
    # The row spells out the path: its sum of tokens and its length.
    return TableTarget(lambda path: [float(sum(path)), float(len(path))], 2)


def test_table_satisfies_the_protocols(target):
    assert isinstance(target, Target)
    assert isinstance(target.new_cache(), TargetCache)


def test_chain_and_tree_rows_follow_paths(target):
    cache = target.new_cache([1, 1])
    rows, _ = target.forward(torch.tensor([[1, 0]]), None, None, cache, num_logits=2)
    assert rows.tolist() == [[3.0, 3.0], [3.0, 4.0]]
    #  0 - 1 - 3
    #   \- 2
    tree = mv.TokenTree([-1, 0, 0, 1])
    positions = cache.length + torch.from_numpy(tree.depths)[None]
    rows, _ = target.forward(
        torch.tensor([[1, 1, 0, 1]]), positions, torch.from_numpy(tree.mask()), cache, num_logits=4
    )
    assert rows.tolist() == [[4.0, 5.0], [5.0, 6.0], [4.0, 6.0], [6.0, 7.0]]
    cache.commit(mv.kv.commit_plan(tree, [2], 4))
    assert cache.tokens == [1, 1, 1, 0, 1, 0]


def test_wrong_positions_are_noticed(target):
    tree = mv.TokenTree([-1, 0, 0])
    with pytest.raises(ValueError, match="depths"):
        target.forward(
            torch.tensor([[1, 1, 0]]),
            torch.tensor([[0, 1, 2]]),
            torch.from_numpy(tree.mask()),
            target.new_cache(),
            num_logits=3,
        )


def test_moves_are_applied_in_order():
    cache = TableCache([5, 6, 7, 8])
    #  0 - 2 - 3 behind a node 1
    cache.commit(mv.kv.commit_plan(mv.TokenTree([-1, 0, 0, 2]), [2, 3], 0))
    assert cache.tokens == [5, 7, 8]
    assert cache.finish(2) == [-1, -1, 5, 7, 8]
