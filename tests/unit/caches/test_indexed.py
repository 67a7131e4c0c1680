"""Layers of sparse attention: the indexer's keys move and go with the entries."""

from __future__ import annotations

import pytest
import torch
from transformers import cache_utils

from mtp_verify.caches.indexed import INDEXED, IndexedEntries, IndexedLayer

pytestmark = pytest.mark.skipif(not INDEXED, reason="this version of transformers has none")


def filled(count):
    layer = cache_utils.DynamicIndexedLayer()
    states = torch.arange(float(count)).reshape(1, 1, count, 1)
    layer.update(states, states + 100.0)
    layer.update_indexer(states[:, 0] + 200.0)
    return layer


def columns(layer):
    """Keys, values and keys of the indexer, one list each."""
    return [layer.keys.ravel().tolist(), layer.values.ravel().tolist(),
            layer.indexer_keys.ravel().tolist()]  # fmt: skip


def test_moved_and_cropped_entries_keep_their_keys():
    entries = IndexedEntries(filled(6))
    entries.move(torch.tensor([[4, 2], [5, 3]]))
    entries.crop(4)
    states = torch.full((1, 1, 1, 1), 9.0)
    entries.layer.update(states, states)
    assert entries.layer.update_indexer(states[0]).ravel().tolist() == [200, 201, 204, 205, 9]
    assert columns(entries.finish(1)) == [
        [0, 0, 1, 4, 5, 9], [0, 100, 101, 104, 105, 9], [0, 200, 201, 204, 205, 9],
    ]  # fmt: skip


def test_forward_that_failed_between_the_two_leaves_what_was_there():
    entries = IndexedEntries(filled(3))
    states = torch.zeros((1, 1, 2, 1))
    entries.layer.update(states, states)
    entries.crop(3)
    assert columns(entries.finish(0))[2] == [200, 201, 202]


def test_empty_layer_is_handed_back_empty():
    entries = IndexedEntries(cache_utils.DynamicIndexedLayer())
    assert isinstance(entries.layer, IndexedLayer)
    assert not entries.finish(2).is_initialized
