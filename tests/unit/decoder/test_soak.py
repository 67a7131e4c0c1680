"""A long life of a batch: arrivals, cancels and pool pressure for 100,000 steps.

The model is a table behind a sum: a token's entry is a whole number made of token and position, a
row is looked up under the sum of what the node sees. Sums are exact, so one wrong, missing or
foreign entry changes the row, and an output in the batch must equal its single run bit for bit.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.cache_utils import Cache, DynamicLayer

import mtp_verify as mv
from mtp_verify.caches.masks import slot_mask
from mtp_verify.caches.settings import Paged
from mtp_verify.decoder.decode import Decoder
from mtp_verify.testing import TableTarget
from tests.models import StubDrafter, TreeDrafter

VOCAB, ROOM, SIZE = 12, 64, 4093
rng = np.random.default_rng(0)
WEIGHTS = rng.integers(1, SIZE, ROOM)
TABLE = torch.from_numpy(rng.normal(0.0, 2.0, (SIZE, VOCAB)).astype(np.float32))


def row_after(tokens):
    """The row of a text, by a computation of its own."""
    total = sum((token + 1) * int(weight) for token, weight in zip(tokens, WEIGHTS, strict=False))
    return TABLE[total % SIZE].numpy()


class SumTarget:
    """A `BatchTarget` with caches of the real kinds: one layer, one head, one number per entry."""

    vocab_size, max_length, eos_ids = VOCAB, ROOM, ()
    tree_obstacle = batch_obstacle = None
    device = torch.device("cpu")

    def new_cache(self, past=None):
        raise AssertionError("nothing runs alone here")

    def new_kv(self):
        return Cache(layers=[DynamicLayer()])

    def forward(self, tokens, positions, tree_mask, cache, hidden_layers=(), *, num_logits):
        start = cache.kv.get_seq_length()
        self._write(tokens, start + torch.arange(tokens.shape[1])[None], cache)
        return torch.zeros(num_logits, VOCAB), ()

    def forward_slots(self, tokens, positions, ancestors, cache, hidden_layers=()):
        shape = cache.starts(self.device), cache.num_shown(tokens.shape[1]), positions, ancestors
        mask = slot_mask(*shape, torch.float64)
        cache.aim(tokens.shape[1], self.device)
        seen = self._write(tokens, positions, cache)
        totals = ((mask == 0).double() @ seen)[:, 0, :, 0]
        return TABLE[(totals % SIZE).long()], ()

    def _write(self, tokens, positions, cache):
        entries = (tokens + 1).double() * torch.from_numpy(WEIGHTS)[positions]
        return cache.kv.update(entries[:, None, :, None], entries[:, None, :, None], 0)[0]


class Forgetful(StubDrafter):
    """Keeps no record of 100,000 steps."""

    def propose(self, requests, budgets):
        for record in (self.calls, self.budgets, self.verdicts):
            record.clear()
        return super().propose(requests, budgets)


class Trees(Forgetful, TreeDrafter):
    """Random trees: mostly wrong."""


class Lucky(Forgetful):
    """Chains that are right for a while, by looking into the table."""

    def draft(self, request, budget):
        text, num_tokens = list(request.tokens), min(len(request.tokens) % 5, budget)
        for _ in range(num_tokens):
            text.append(int(row_after(text).argmax()))
        return mv.Draft.chain(text[len(request.tokens) :], root=request.tokens[-1])


def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def requests(count):
    """Kinds of requests; many have a prompt, or its beginning, in common."""
    prompts = [rng.integers(0, VOCAB, n).tolist() for n in (1, 3, 9, 12, 17)]
    params = [mv.SamplingParams(temperature=0.0), mv.SamplingParams(), mv.SamplingParams(top_k=3)]
    kinds = []
    for seed in range(count):
        prompt = prompts[seed % 5] + rng.integers(0, VOCAB, seed % 3).tolist()
        kinds.append(
            {
                "input_ids": prompt,
                "max_new_tokens": int(rng.integers(1, 24)),
                "params": params[int(rng.integers(3))],
                "seed": seed,
            }
        )
    return kinds


@pytest.mark.parametrize(
    "num_steps",
    [400, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])],
)
@pytest.mark.parametrize("cache", ["paged", "slots"])
def test_soak(num_steps, cache):
    kinds = requests(60)
    single = Decoder(TableTarget(row_after, VOCAB), None, rule="coupled")
    expected = [single.generate(**kind).tokens[0] for kind in kinds]
    drafters = [None, Lucky(), mv.drafters.NGram(), Trees([-1, 0, 0, 1, 1, 2], VOCAB)]
    # The largest request needs 11 blocks, and eight in flight some 50.
    pool = Paged(24, 4, prefix_cache=True) if cache == "paged" else None
    decoder = Decoder(SumTarget(), rule="coupled", batching="together", max_batch=8, cache=pool)
    chance = np.random.default_rng(1)
    in_flight, num_finished, num_cancelled, num_full, memory = {}, 0, 0, 0, []
    began = time.perf_counter()
    for step in range(num_steps):
        busy = step // 50 % 2
        if len(in_flight) < 16 and chance.random() < (0.9 if busy else 0.1):
            kind = int(chance.integers(len(kinds)))
            drafter = drafters[int(chance.integers(len(drafters)))]
            in_flight[decoder.submit(**kinds[kind], drafter=drafter)] = kind
        decoder.step()
        for number, result in decoder.results().items():
            assert result.errors == [None]
            assert result.tokens[0] == expected[in_flight.pop(number)]
            num_finished += 1
        if in_flight and chance.random() < 0.02:
            number = list(in_flight)[int(chance.integers(len(in_flight)))]
            emitted = decoder.cancel(number).tokens[0]
            assert emitted == expected[in_flight.pop(number)][: len(emitted)]
            num_cancelled += 1
        if pool:
            num_full += decoder.block_table.num_free < 2
        if step % (num_steps // 20) == 0:
            if pool:
                decoder.block_table.check_integrity()
            memory.append(resident_mb())
    rate = num_steps / (time.perf_counter() - began)
    while decoder.num_unfinished:
        decoder.step()
    for number, result in decoder.results().items():
        assert result.tokens[0] == expected[in_flight.pop(number)]
        num_finished += 1
    assert not in_flight
    print(
        f"{cache}: {num_steps} steps, {rate:.0f} steps/s, {num_finished} finished, {num_cancelled} "
        f"cancelled, {num_full} steps with a full pool, resident MB {memory[1]:.1f} to "
        f"{memory[-1]:.1f}"
    )
    assert num_finished > num_steps / 10
    assert num_cancelled > num_steps / 200
    if pool:
        decoder.block_table.check_integrity()
        assert decoder.block_table.num_free == 24
        assert num_full > num_steps / 20
    if num_steps > 10_000:
        # Flat: between a twentieth of the way and the end.
        assert memory[-1] - memory[1] < 8
