"""A paged cache driven by the block table: right entries, shared beginnings, pressure, no leaks."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache

import mtp_verify as mv
from mtp_verify.caches.paged import PagePool
from mtp_verify.caches.settings import Paged
from mtp_verify.decoder.decode import Decoder
from mtp_verify.models.target import TransformersTarget
from mtp_verify.testing import TableTarget
from tests.caches import fresh_cache
from tests.models import KINDS, WINDOW, StubDrafter, TreeDrafter, prompt, tiny_model

GREEDY = mv.SamplingParams(temperature=0.0)
PARENTS = [-1, 0, 0, 0, 1, 1, 2, 5, 0, 8, 9]
LENGTHS = (9, 3, 17, 1, 6, 12, 9, 4)
PARAMS = [
    GREEDY,
    mv.SamplingParams(temperature=0.8),
    mv.SamplingParams(temperature=1.2, top_k=5),
    mv.SamplingParams(top_p=0.9),
    GREEDY,
    mv.SamplingParams(temperature=0.5, min_p=0.05),
    mv.SamplingParams(),
    mv.SamplingParams(top_k=3),
]


def prompts():
    return [prompt(length, seed=20 + index)[0] for index, length in enumerate(LENGTHS)]


def alone(model, count=14):
    return [
        Decoder(model, None, params, "coupled").generate(ids, max_new_tokens=count, seed=seed)
        for seed, (ids, params) in enumerate(zip(prompts(), PARAMS, strict=True))
    ]


class Knowing(StubDrafter):
    """Drafts trees that hold the known continuations."""

    makes_trees = True

    def __init__(self, runs):
        super().__init__()
        self.texts = [run.sequences[0].tolist() for run in runs]

    def draft(self, request, budget):
        size = request.prompt_len
        text = next(t for t in self.texts if t[:size] == request.tokens[:size])
        return TreeDrafter(PARENTS, text=text).draft(request, budget)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_all_drafts_within_their_budgets_fit_together(data):
    size = data.draw(st.integers(1, 4))
    pool = PagePool(DynamicCache(), Paged(data.draw(st.integers(4, 24)), size))
    cache = pool.new_cache()
    prompts = data.draw(st.lists(st.lists(st.integers(0, 1), max_size=9), min_size=1, max_size=5))
    for tokens in prompts:
        try:
            cache.add(tokens, is_known=True)
        except mv.errors.OutOfBlocksError:
            break
        cache.lengths[-1] = len(tokens)
    count = len(cache.lengths)
    wanted = data.draw(st.lists(st.integers(0, 30), min_size=count, max_size=count))
    if not cache.has_space():
        # Of requests that share a block one copies less than is counted: that is never too few.
        with contextlib.suppress(mv.errors.OutOfBlocksError):
            cache.budgets(wanted)
        return
    budgets = cache.budgets(wanted)
    assert all(0 <= most <= want for most, want in zip(budgets, wanted, strict=True))
    cache.reserve([1 + data.draw(st.integers(0, most)) for most in budgets])
    for slot in range(count):
        cache.drop(slot)
    cache.reserve([1 + most for most in budgets])
    # Nobody is cut while a block is left over, but for a copy that was counted twice.
    cut = [slot for slot in range(count) if budgets[slot] < wanted[slot]]
    assert not cut or pool.table.num_free <= count


def test_free_blocks_are_shared_evenly_among_those_that_want_some():
    pool = PagePool(DynamicCache(), Paged(12, 2))
    cache = pool.new_cache()
    for tokens in ([1, 2, 3], [4, 5], [6]):
        cache.add(tokens, is_known=False)
    # Blocks held: 2, 1, 1; the second needs one for its root. Seven are free then.
    assert cache.budgets([99, 99, 99]) == [4, 5, 6]
    assert cache.budgets([0, 99, 99]) == [0, 7, 8]
    assert cache.budgets([3, 1, 2]) == [3, 1, 2]
    assert cache.budgets([99, 1, 0]) == [14, 1, 0]


def test_budgets_of_a_step_leave_room_for_the_drafts_of_all():
    class Large(StubDrafter):
        def propose(self, requests, budgets):
            free.append((decoder.block_table.num_free, list(budgets)))
            return super().propose(requests, budgets)

        def draft(self, request, budget):
            return mv.Draft.chain([0] * min(budget, 5), root=request.tokens[-1])

    free: list[tuple[int, list[int]]] = []
    decoder = Decoder(tiny_model("llama"), Large(), rule="coupled", cache=Paged(12, 1))
    for seed in range(2):
        decoder.submit([1 + seed, 2, 3], max_new_tokens=7, seed=seed)
    while decoder.num_unfinished:
        decoder.step()
    assert all(result.errors == [None] for result in decoder.results().values())
    # In blocks of one entry each root takes one.
    assert all(sum(budgets) + len(budgets) <= blocks for blocks, budgets in free)
    assert max(max(budgets) for _, budgets in free) > 2


def assert_empty(decoder):
    table = decoder.block_table
    table.check_integrity()
    assert table.num_free == table.num_blocks


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_committed_entries_equal_those_of_a_fresh_forward(kind):
    model = tiny_model(kind)
    runs = alone(model)[:3]
    decoder = Decoder(model, Knowing(runs), rule="coupled", cache=Paged(64, 4))
    for seed, ids in enumerate(prompts()[:3]):
        decoder.submit(ids, max_new_tokens=14, seed=seed, params=PARAMS[seed])
    pool = decoder._storage
    while decoder.num_unfinished:
        decoder.step()
        runner = decoder._session._runner
        for own, sequence in zip(runner.sequences, runner._cache._sequences, strict=True):
            tokens = own.request.tokens[:-1]
            (length,), (blocks,) = (
                pool.table.lengths([sequence]),
                pool.table.block_table([sequence]),
            )
            assert length == len(tokens)
            slots = (blocks[:, None] * 4 + np.arange(4)).ravel()[:length]
            fresh = fresh_cache(model, tokens)
            for mine, theirs in zip(pool.kv.layers, fresh.layers, strict=True):
                pair = (theirs.keys, theirs.values)
                for buffer, expected in zip(mine.buffers, pair, strict=True):
                    # The library keeps a window of a sliding layer; a pool keeps everything.
                    kept = torch.from_numpy(slots)[-expected.shape[2] :]
                    assert len(kept) in (length, WINDOW - 1)
                    torch.testing.assert_close(
                        buffer[kept].transpose(0, 1), expected[0], atol=1e-5, rtol=1e-5
                    )
        pool.table.check_integrity()
    assert_empty(decoder)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_equals_single_runs(kind):
    model = tiny_model(kind)
    runs = alone(model)
    decoder = Decoder(model, Knowing(runs), None, "coupled", cache="paged")
    batch = decoder.generate(prompts(), max_new_tokens=14, seed=list(range(8)), params=PARAMS)
    assert batch.tokens == [run.tokens[0] for run in runs]
    assert batch.stats.tau > 1.5
    assert_empty(decoder)
    single = decoder.generate(prompts()[2], max_new_tokens=14, seed=2, params=PARAMS[2])
    assert single.tokens == runs[2].tokens
    assert_empty(decoder)


@pytest.mark.parametrize("num_blocks", [8, 10, 14, 24])
def test_outputs_do_not_change_under_pressure(num_blocks):
    # One request needs up to 8 blocks of 4; all eight together 43 or so.
    model = tiny_model("llama")
    runs = alone(model)
    decoder = Decoder(model, Knowing(runs), rule="coupled", cache=Paged(num_blocks, 4))
    numbers = [
        decoder.submit(ids, max_new_tokens=14, seed=seed, params=params)
        for seed, (ids, params) in enumerate(zip(prompts(), PARAMS, strict=True))
    ]
    finished, smallest = {}, num_blocks
    for _ in range(300):
        decoder.step()
        decoder.block_table.check_integrity()
        smallest = min(smallest, decoder.block_table.num_free)
        finished |= decoder.results()
        if not decoder.num_unfinished:
            break
    assert [finished[n].tokens for n in numbers] == [run.tokens for run in runs]
    assert smallest <= 2
    assert_empty(decoder)


def test_request_larger_than_the_pool_fails_alone():
    model = tiny_model("llama")
    runs = alone(model)
    decoder = Decoder(model, mv.drafters.NGram(), rule="coupled", cache=Paged(6, 4))
    # The first needs 6 blocks, the second starts and finds no seventh, the third never starts.
    first = decoder.submit(prompts()[0], max_new_tokens=14, seed=0, params=PARAMS[0])
    second = decoder.submit(prompts()[2], max_new_tokens=14, seed=2, params=PARAMS[2])
    third = decoder.submit(prompt(30), max_new_tokens=4)
    last = decoder.submit(prompts()[1], max_new_tokens=14, seed=1, params=PARAMS[1])
    while decoder.num_unfinished:
        decoder.step()
    finished = decoder.results()
    assert finished[first].tokens == runs[0].tokens
    assert finished[last].tokens == runs[1].tokens
    for number in (second, third):
        assert finished[number].finish_reasons == ["error"]
        assert isinstance(finished[number].errors[0], mv.errors.OutOfBlocksError)
    emitted = finished[second].tokens[0]
    assert 0 < len(emitted) < 14
    assert emitted == runs[2].tokens[0][: len(emitted)]
    assert finished[third].tokens == [[]]
    assert_empty(decoder)
    with pytest.raises(mv.errors.OutOfBlocksError, match="blocks"):
        decoder.generate(prompt(30), max_new_tokens=4)
    assert_empty(decoder)


def test_samples_of_one_prompt_share_its_blocks():
    model = tiny_model("llama")
    ids = prompt(22)
    expected = Decoder(model, None, rule="coupled").generate(
        ids.repeat(5, 1), max_new_tokens=6, seed=3
    )
    # 21 entries of the prompt: 5 full blocks once, and one or two of its own for each sample.
    decoder = Decoder(model, mv.drafters.NGram(), rule="coupled", cache=Paged(16, 4))
    result = decoder.generate(ids, max_new_tokens=6, seed=3, num_return_sequences=5)
    assert result.tokens == expected.tokens
    assert result.stats.forwards == result.stats.steps + 1
    assert_empty(decoder)


def test_prompt_of_a_running_request_is_forked():
    model = tiny_model("llama")
    ids = prompt(10)
    decoder = Decoder(model, mv.drafters.NGram(), rule="coupled", cache=Paged(16, 4))
    numbers = []
    for seed in range(3):
        numbers.append(decoder.submit(ids, max_new_tokens=9, seed=seed))
        decoder.step()
        decoder.step()
    while decoder.num_unfinished:
        decoder.step()
    finished = decoder.results()
    for seed, number in enumerate(numbers):
        single = Decoder(model, None, rule="coupled").generate(ids, max_new_tokens=9, seed=seed)
        assert finished[number].tokens == single.tokens
    # The prompt ran once.
    stats = [finished[number].stats for number in numbers]
    assert sum(s.forwards - s.steps for s in stats) == 1
    assert_empty(decoder)


def test_prefix_cache_runs_a_known_beginning_once():
    model = tiny_model("gemma2")
    shared = prompt(40)[0]
    seen = []
    decoder = Decoder(model, None, GREEDY, cache=Paged(64, 8, prefix_cache=True))
    handle = model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    for seed in range(3):
        ids = torch.cat([shared, prompt(5, seed=50 + seed)[0]])
        result = decoder.generate(ids, max_new_tokens=6)
        handle_free = Decoder(model, None, GREEDY).generate(ids, max_new_tokens=6)
        assert result.tokens == handle_free.tokens
        assert_empty(decoder)
    handle.remove()
    # Prompts but for their last token: 44, then 4 behind 40 known ones.
    paged = [n for n in seen if n not in (1, 45)]
    assert paged == [44, 4, 4]


def test_cancel_and_model_errors_leak_nothing():
    model = tiny_model("llama")
    runs = alone(model)
    decoder = Decoder(model, Knowing(runs), rule="coupled", cache=Paged(20, 4))
    numbers = [
        decoder.submit(ids, max_new_tokens=14, seed=seed, params=params)
        for seed, (ids, params) in enumerate(zip(prompts(), PARAMS, strict=True))
    ]

    def fail(*args):
        raise RuntimeError("out of memory")

    decoder.step()
    partial = decoder.cancel(numbers[1])
    assert partial.tokens[0] == runs[1].tokens[0][: len(partial.tokens[0])]
    decoder.cancel(numbers[7])  # Waiting still, or preempted.
    for step in range(200):
        if step % 3 == 1 and decoder.num_unfinished:
            hook = model.model.layers[1].mlp.register_forward_hook(fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                decoder.step()
            hook.remove()
            decoder.block_table.check_integrity()
        decoder.step()
    finished = decoder.results()
    for index, number in enumerate(numbers):
        if index not in (1, 7):
            assert finished[number].tokens == runs[index].tokens
    assert_empty(decoder)


def test_drafter_gets_hidden_states_of_everything_once():
    class Curious(Knowing):
        hidden_layers = (-1,)

        def start(self, request):
            self.states[request.id] = []  # Again after a preemption.

        def propose(self, requests, budgets):
            self.last = [request.id for request in requests]
            return super().propose(requests, budgets)

        def commit(self, verdicts, hidden):
            for number, (states,) in zip(self.last, hidden, strict=True):
                self.states[number].append(states)

    model = tiny_model("llama")
    runs = alone(model)[:4]
    drafter = Curious(runs)
    drafter.states = {}
    decoder = Decoder(model, drafter, rule="coupled", cache=Paged(10, 4))
    numbers = [
        decoder.submit(ids, max_new_tokens=14, seed=seed, params=PARAMS[seed])
        for seed, ids in enumerate(prompts()[:4])
    ]
    while decoder.num_unfinished:
        decoder.step()
    finished = decoder.results()
    for run, number in zip(runs, numbers, strict=True):
        assert finished[number].tokens == run.tokens
        with torch.no_grad():
            output = model(run.sequences[:, :-1], output_hidden_states=True)
        torch.testing.assert_close(
            torch.cat(drafter.states[number]), output.hidden_states[-1][0], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"cache": "blocks"}, mv.errors.ParamsError, 'wanted None, "paged", "static", or settings'),
        ({"cache": "paged", "batching": "each"}, mv.errors.ParamsError, "a cache of its own"),
        ({"cache": Paged(0)}, mv.errors.ParamsError, "num_blocks"),
    ],
)
def test_bad_settings_are_named(options, error, match):
    with pytest.raises(error, match=match):
        Decoder(tiny_model("llama"), **options)


def test_models_that_cannot_be_paged_are_refused():
    with pytest.raises(mv.errors.UnsupportedModelError, match="recurrent layers"):
        Decoder(tiny_model("qwen3_next"), cache="paged")
    target = TableTarget(lambda path: np.zeros(4), 4)
    with pytest.raises(mv.errors.UnsupportedModelError, match="TableTarget has no forward"):
        Decoder(target, cache="paged")


def test_users_cache_is_refused():
    model = tiny_model("llama")
    decoder = Decoder(model, None, GREEDY, cache="paged")
    past = TransformersTarget(model).new_cache().kv
    with pytest.raises(mv.errors.ParamsError, match="not paged"):
        decoder.generate(prompt(), max_new_tokens=2, past_key_values=past)
