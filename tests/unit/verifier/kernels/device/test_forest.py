"""Trees that only the device knows are laid out as the core lays them out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.errors import DraftError
from mtp_verify.verifier.kernels.device.drafts import DeviceDrafts
from mtp_verify.verifier.kernels.device.forest import NO_NODE, ancestors
from mtp_verify.verifier.kernels.device.plan import nodes_of, requests_of
from mtp_verify.verifier.kernels.device.verifier import DeviceVerifier
from tests.host_reads import HostReads

SIZE = 11


def random_parents(generator, most):
    count = int(generator.integers(0, most))
    return [-1, *(int(generator.integers(0, node)) for node in range(1, count + 1))]


def padded(parents, width):
    return parents + [NO_NODE] * (width - len(parents))


def verifier_for(count, rows):
    return DeviceVerifier(count + 1, rows + 20, SIZE, torch.float32, device="cpu")


def test_ancestors_are_those_of_the_tree():
    generator = np.random.default_rng(2)
    trees = [random_parents(generator, 12) for _ in range(40)]
    found = ancestors(torch.tensor([padded(parents, 13) for parents in trees]))
    for parents, own in zip(trees, found.numpy(), strict=True):
        count = len(parents)
        assert np.array_equal(own[:count, :count], mv.TokenTree(parents).mask())
        assert np.array_equal(own[count:], np.eye(13, dtype=bool)[count:])


@pytest.mark.parametrize("law", ["deterministic", "swor", "iid"])
def test_a_table_gives_what_the_trees_themselves_give(law):
    generator = np.random.default_rng(3)
    for _ in range(20):
        count = int(generator.integers(1, 5))
        trees = [random_parents(generator, 9) for _ in range(count)]
        widths = [len(parents) + int(generator.integers(0, 3)) for parents in trees]
        flags = int(law != "deterministic")
        parts = []
        for parents, width in zip(trees, widths, strict=True):
            part = np.full((4, width), 3)
            part[0] = padded(parents, width)
            part[1] = generator.integers(-2, SIZE + 2, width)
            part[2], part[2, 0] = flags, 0
            parts.append(part)
        table = torch.from_numpy(np.concatenate(parts, axis=1))
        offsets = np.cumsum([0, *widths])
        places = np.concatenate([range(-1, width - 1) for width in widths])
        rows = torch.zeros(sum(widths), SIZE)
        given = {"seeds": range(count), "positions": [4] * count}
        known = DeviceDrafts(
            np.cumsum([0, *map(len, trees)]), np.concatenate(trees),
            np.concatenate([np.arange(len(parents)) for parents in trees]), law, logits=rows,
            rows=np.zeros(sum(map(len, trees)), np.int64),
        )  # fmt: skip
        wanted = verifier_for(count, sum(widths))
        wanted.plan(known, rule="target_only", **given)
        away = DeviceDrafts(offsets, places, None, "deterministic", table=table, bounds=(9, 9))
        found = verifier_for(count, sum(widths))
        with HostReads() as reads:
            found.plan(away, rule="target_only", **given)
        assert reads.places == []
        one, other = (nodes_of(own._inputs.tensors) for own in (wanted, found))
        for request, (parents, start) in enumerate(zip(trees, offsets, strict=False)):
            size, first = len(parents), int(known.offsets[request])
            mine, theirs = slice(start, start + size), slice(first, first + size)
            for name in ("request", "number", "depth", "post"):
                assert torch.equal(getattr(other, name)[mine], getattr(one, name)[theirs]), name
            for name in ("parent", "first_child", "next_sibling"):
                shifted = getattr(one, name)[theirs]
                shifted = torch.where(shifted < 0, -1, shifted - first + start)
                assert torch.equal(getattr(other, name)[mine], shifted), name
            sampled = other.sampled[mine] > 0
            assert torch.equal(sampled, one.sampled[theirs] > 0)
            assert (other.drafted[mine] == 3).all()
            spare = slice(start + size, int(offsets[request + 1]))
            assert (other.request[spare] == -1).all()
            assert (other.first_child[spare] == -1).all()
        assert ((other.token >= 0) & (other.token < SIZE))[: offsets[-1]].all()
        counts = requests_of(found._inputs.tensors).count[:count]
        assert counts.tolist() == [*map(len, trees)]
        found.verify(torch.zeros(sum(widths), SIZE))
        found.host()
        for parents, own in zip(trees, found.trees, strict=True):
            assert own[: len(parents)].tolist() == parents


def test_drafts_without_tokens_need_a_table():
    verifier = verifier_for(1, 2)
    with pytest.raises(DraftError, match="tokens: found None"):
        verifier.plan(DeviceDrafts([0, 1], [-1], None, "chain"), seeds=[0], positions=[1])


def test_more_places_than_a_verifier_has_are_refused():
    table = torch.tensor([[-1, 0, 0], [0, 1, 2], [0, 0, 0], [-1, -1, -1]])
    verifier = DeviceVerifier(1, 4, SIZE, torch.float32, device="cpu", max_depth=1, max_children=1)
    drafts = DeviceDrafts([0, 3], [-1, 0, 0], None, "deterministic", table=table, bounds=(1, 2))
    with pytest.raises(DraftError, match="children of a node: found 2"):
        verifier.plan(drafts, seeds=[0], positions=[1])


def test_rows_may_be_in_another_order_than_the_nodes():
    parents = [-1, 0, 0, 1]
    tokens = [0, 4, 2, 3]
    logits = torch.from_numpy(np.random.default_rng(5).normal(size=(6, SIZE))).float()
    places = torch.tensor([2, 5, 0, 3])
    table = torch.tensor([parents, tokens, [0] * 4, [-1] * 4])
    drafts = DeviceDrafts(
        [0, 4], [-1, 0, 1, 2], None, "deterministic", table=table, bounds=(3, 3), places=places
    )
    verifier = verifier_for(1, 6)
    for seed in range(20):
        given = {"seeds": [seed], "positions": [4]}
        verifier.plan(drafts, **given)
        verifier.verify(logits)
        draft = mv.Draft(mv.TokenTree(parents), tokens)
        assert verifier.host() == mv.verify_batch([draft], [logits[places]], **given)
