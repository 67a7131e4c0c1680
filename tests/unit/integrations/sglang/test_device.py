"""Trees that are verified where they are: errors without a wait, sizes, Triton's kernels."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.integrations import sglang
from mtp_verify.integrations.sglang import device, trees
from mtp_verify.testing.device import interpreter
from mtp_verify.testing.stats import l1_radius
from tests.host_reads import HostReads
from tests.sglang_engine import random_tree, run, tensors

V = 7
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _rows_count_as_a_devices(monkeypatch):
    device.stage_of.cache_clear()
    monkeypatch.setattr(trees, "is_on_host", lambda _: False)


def batch_of(rng, count, width, dtype=torch.float32):
    """A batch of trees in the engine's tensors, twice: ours to change, and the host's."""
    shapes = [random_tree(rng, int(rng.integers(0, width))) for _ in range(count)]
    tokens = [rng.integers(0, V, width).tolist() for _ in range(count)]
    logits = 2 * rng.normal(size=(count, width, V))
    given = [tensors(shapes, tokens, logits, width=width) for _ in range(2)]
    for own in given:
        own["logits"] = own["logits"].to(dtype)
    return given


def on_host(monkeypatch, given, *arguments, **options):
    with monkeypatch.context() as patch:
        patch.setattr(trees, "is_on_host", lambda _: True)
        return run(given, *arguments, **options)


def equal(found, wanted):
    names = ("predicts", "accept_index", "accept_token_num")
    return all(torch.equal(found[name], wanted[name]) for name in names)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batches_of_any_size_and_dtype_are_those_of_the_host(monkeypatch, dtype):
    rng = np.random.default_rng(1)
    for count, width in [(2, 3), (1, 1), (5, 8), (3, 8), (1, 17), (4, 2)]:
        found, wanted = batch_of(rng, count, width, dtype)
        seeds = rng.integers(0, 1 << 60, count).tolist()
        run(found, seeds=seeds)
        on_host(monkeypatch, wanted, seeds=seeds)
        assert equal(found, wanted)


def test_a_verifier_is_kept_until_a_batch_does_not_fit():
    rng = np.random.default_rng(2)
    stage = device.stage_of(torch.device("cpu"), torch.float32, V)
    kept = []
    for count, width in [(3, 4), (4, 4), (2, 5), (5, 4), (1, 4), (8, 8)]:
        run(batch_of(rng, count, width)[0])
        if not any(one is stage._verifier for one in kept):
            kept.append(stage._verifier)
    # Sizes are powers of two: 4 trees of 4; 5 columns; 5 trees, as of 8; and 64 rows of those.
    assert [one.capacity.requests for one in kept] == [4, 4, 8, 8]
    assert [one.capacity.nodes for one in kept] == [4, 8, 8, 8]


@pytest.mark.parametrize("samples", [False, True])
def test_triton_gives_what_the_host_gives(monkeypatch, samples):
    monkeypatch.setattr(
        device, "DeviceVerifier", functools.partial(device.DeviceVerifier, backend="triton")
    )
    rng = np.random.default_rng(3)
    with interpreter.hastened(), interpreter.numbers_as_on_a_device():
        for count, width in [(3, 5), (2, 4)]:
            found, wanted = batch_of(rng, count, width)
            options = {}
            if samples:
                chain = sglang.links_from_tree(mv.TokenTree([*range(-1, width - 1)]))
                for own in (found, wanted):
                    for name, links in zip(("token", "sibling"), chain, strict=True):
                        own[f"retrive_next_{name}"][:] = torch.from_numpy(links)
                probs = rng.dirichlet(np.ones(V), (count, width - 1))
                options["draft_probs"] = torch.from_numpy(probs).float()
            params = mv.SamplingParams(temperature=0.8, top_k=5)
            run(found, params, **options)
            on_host(monkeypatch, wanted, params, **options)
            assert equal(found, wanted)


def test_a_row_that_is_no_distribution_is_told_later_and_once():
    rng = np.random.default_rng(4)
    bad, good = batch_of(rng, 2, 4)
    bad["logits"][4:] = torch.nan
    with HostReads() as reads:
        run_quietly(bad)
    assert reads.places == []
    assert bad["accept_token_num"][1] == 0
    assert bad["predicts"][4] == 0
    with pytest.warns(RuntimeWarning, match="what was emitted there is no sample"):
        run_quietly(good)
    run_quietly(good)


def run_quietly(given):
    """Verify, and read nothing of the outcome."""
    count = len(given["accept_token_num"])
    sglang.verify_trees(
        **given, params=[mv.SamplingParams()] * count, seeds=range(count), positions=[5] * count
    )


def test_a_row_that_decides_nothing_may_be_anything(monkeypatch):
    found, wanted = batch_of(np.random.default_rng(5), 1, 2)
    for own in (found, wanted):
        own["retrive_next_token"][:] = -1  # Column 1 hangs in the air.
        own["logits"][1] = torch.nan
    run(found)
    on_host(monkeypatch, wanted)
    assert equal(found, wanted)
    run(found)  # Nothing to warn of.


def test_trees_of_a_device_have_the_targets_law():
    # The first token alone; 6,000 samples, and Weissman's radius at an error rate of 1e-9 finds a
    # total variation of 0.05.
    rng = np.random.default_rng(6)
    tree, tokens = mv.TokenTree([-1, 0, 0, 0, 1]), [0, 2, 2, 4, 1]
    rows = rng.dirichlet(np.ones(V), 5)
    count, rounds = 200, 30
    firsts = np.zeros(V)
    for part in range(rounds):
        given = tensors([tree] * count, [tokens] * count, [np.log(rows)] * count)
        found = run(given, seeds=range(part * count, (part + 1) * count))
        firsts += np.bincount([own[0] for own in found], minlength=V)
    distance = np.abs(firsts / (count * rounds) - rows[0]).sum()
    assert distance < l1_radius(V, count * rounds, 1e-9)
