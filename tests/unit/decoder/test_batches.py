"""Many requests at once: each gets what it gets alone, whoever comes, leaves or fails beside it."""

from __future__ import annotations

import contextlib
import gc
import weakref

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.testing import BatchTableTarget, TableTarget
from tests.models import KINDS, StubDrafter, TreeDrafter, prompt, tiny_model

GREEDY = mv.SamplingParams(temperature=0.0)
PARENTS = [-1, 0, 0, 0, 1, 1, 2, 5, 0, 8, 9]
LENGTHS = (9, 3, 17, 1, 6, 12, 9, 4)
POLICIES = ("each", "together")
# Per request: greedy and sampled ones side by side.
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


class Knowing(StubDrafter):
    """Knows what each of several sequences becomes; drafts trees or chains with it inside."""

    def __init__(self, texts, *, trees):
        super().__init__()
        self.texts = texts
        self.makes_trees = trees

    def draft(self, request, budget):
        size = request.prompt_len
        text = next(t for t in self.texts if t[:size] == request.tokens[:size])
        if self.makes_trees:
            return TreeDrafter(PARENTS, text=text).draft(request, budget)
        place = len(request.tokens)
        # Lengths differ from request to request, and the draft goes wrong now and then.
        tokens = text[place : place + min(1 + place % 4, budget)]
        if place % 3 == 0 and tokens:
            tokens[-1] = 0
        return mv.Draft.chain(tokens, root=request.tokens[-1])


def alone(model, seeds, count=14, rule="coupled"):
    return [
        Decoder(model, None, params, rule).generate(ids, max_new_tokens=count, seed=seed)
        for ids, params, seed in zip(prompts(), PARAMS, seeds, strict=True)
    ]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trees", [False, True], ids=["chains", "trees"])
def test_batch_equals_single_runs(kind, trees, policy):
    model = tiny_model(kind)
    seeds = list(range(50, 58))
    singles = alone(model, seeds)
    texts = [run.sequences[0].tolist() for run in singles]
    decoder = Decoder(model, Knowing(texts, trees=trees), None, "coupled", batching=policy)
    batch = decoder.generate(prompts(), max_new_tokens=14, seed=seeds, params=PARAMS)
    assert batch.tokens == [run.tokens[0] for run in singles]
    assert batch.finish_reasons == ["length"] * 8
    assert batch.stats.tau > 1.5
    assert batch.stats.emitted == 8 * 14
    for mine, run in zip(batch.logprobs, singles, strict=True):
        np.testing.assert_allclose(mine, run.logprobs[0], atol=1e-4)
    # Shorter prompts are padded on the left: new tokens stand side by side.
    assert batch.sequences[:, 17:].tolist() == batch.tokens
    # A permutation of the rows permutes the output.
    order = [3, 1, 7, 0, 2, 6, 5, 4]
    permuted = decoder.generate(
        [prompts()[i] for i in order],
        max_new_tokens=14,
        seed=[seeds[i] for i in order],
        params=[PARAMS[i] for i in order],
    )
    assert permuted.tokens == [batch.tokens[i] for i in order]


def test_each_gives_the_same_bits_as_alone():
    model = tiny_model("llama")
    ids = prompts()
    batch = Decoder(model, mv.drafters.NGram(), batching="each").generate(
        ids, max_new_tokens=10, seed=5, output_logits=True
    )
    for row, one in enumerate(ids):
        single = Decoder(model, mv.drafters.NGram()).generate(
            one, max_new_tokens=10, seed=mv.derive_seed(5, row), output_logits=True
        )
        assert single.tokens[0] == batch.tokens[row]
        assert torch.equal(single.logits[0], batch.logits[row])
        assert np.array_equal(single.logprobs[0], batch.logprobs[row])


def test_rows_that_end_early_are_padded():
    model = tiny_model("llama")
    ids = torch.stack([prompt(6, seed=s)[0] for s in range(4)])
    plain = Decoder(model, None, GREEDY).generate(ids, max_new_tokens=12)
    eos = plain.tokens[1][4]
    result = Decoder(model, None, GREEDY).generate(
        ids, max_new_tokens=12, eos_token_id=eos, pad_token_id=31
    )
    for row in range(4):
        expected = plain.tokens[row]
        if eos in expected:
            expected = expected[: expected.index(eos) + 1]
            assert result.finish_reasons[row] == "stop"
        assert result.tokens[row] == expected
        tail = result.sequences[row, 6 + len(expected) :].tolist()
        assert tail == [31] * len(tail)
    assert result.past_key_values is None


def test_identical_prompts_run_once():
    model = tiny_model("llama")
    ids = prompt(12).repeat(5, 1)
    result = Decoder(model, None, rule="coupled").generate(ids, max_new_tokens=6, seed=3)
    assert result.stats.forwards == result.stats.steps + 1
    for row in range(5):
        single = Decoder(model, None, rule="coupled").generate(
            ids[:1], max_new_tokens=6, seed=mv.derive_seed(3, row)
        )
        assert result.tokens[row] == single.tokens[0]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_requests_join_and_leave_at_any_step(kind, policy):
    model = tiny_model(kind)
    seeds = list(range(8))
    singles = alone(model, seeds)
    texts = [run.sequences[0].tolist() for run in singles]
    decoder = Decoder(
        model, Knowing(texts, trees=True), rule="coupled", batching=policy, max_batch=3
    )
    numbers, partial, finished = {}, None, {}
    waiting = list(range(8))
    for step in range(200):
        while waiting and (step % 2 == 0 or len(waiting) > 6):
            i = waiting.pop(0)
            numbers[i] = decoder.submit(
                prompts()[i], max_new_tokens=14, seed=seeds[i], params=PARAMS[i]
            )
            if len(waiting) % 3 == 0:
                break
        emitted = decoder.step()
        assert len(emitted) <= 3
        if step == 2:
            partial = decoder.cancel(numbers[1])
        finished |= decoder.results()
        if not waiting and not decoder.num_unfinished:
            break
    assert decoder.num_unfinished == 0
    assert partial.finish_reasons == ["cancelled"]
    assert partial.tokens[0] == singles[1].tokens[0][: len(partial.tokens[0])]
    for i, number in numbers.items():
        if i != 1:
            assert finished[number].tokens == singles[i].tokens
    assert decoder.results() == {}
    with pytest.raises(mv.errors.CacheError, match="not in flight"):
        decoder.cancel(numbers[1])


def test_requests_may_have_drafters_of_their_own():
    model = tiny_model("llama")
    seeds = list(range(8))
    singles = alone(model, seeds)
    texts = [run.sequences[0].tolist() for run in singles]
    drafters = [None, Knowing(texts, trees=True), Knowing(texts, trees=False), mv.drafters.NGram()]
    small = mv.drafters.Model(tiny_model("llama", seed=2), num_tokens=3)
    drafters += [small, small, mv.drafters.Suffix(), mv.drafters.Recycling(max_nodes=6)]
    decoder = Decoder(model, rule="coupled")
    numbers = [
        decoder.submit(ids, max_new_tokens=14, seed=seed, params=params, drafter=drafter)
        for ids, seed, params, drafter in zip(prompts(), seeds, PARAMS, drafters, strict=True)
    ]
    while decoder.num_unfinished:
        decoder.step()
    finished = decoder.results()
    assert [finished[n].tokens[0] for n in numbers] == [run.tokens[0] for run in singles]
    assert small._states == {}


@pytest.mark.parametrize("policy", POLICIES)
def test_request_that_fails_fails_alone(policy):
    model = tiny_model("llama")
    seeds = list(range(8))
    singles = alone(model, seeds)

    class Careless(StubDrafter):
        def draft(self, request, budget):
            if len(request.tokens) >= len(prompts()[0]) + 4:
                return mv.Draft.chain([9] * (budget + 1), root=request.tokens[-1])
            return super().draft(request, budget)

    def complain(ids, _):
        raise ValueError(f"no {ids.shape[1]}")

    careless = Careless()
    decoder = Decoder(model, rule="coupled", batching=policy)
    options = [{} for _ in range(8)]
    options[0] = {"drafter": careless}
    options[2] = {"stopping_criteria": complain}
    numbers = [
        decoder.submit(ids, max_new_tokens=14, seed=seed, params=params, **option)
        for ids, seed, params, option in zip(prompts(), seeds, PARAMS, options, strict=True)
    ]
    while decoder.num_unfinished:
        decoder.step()
    finished = decoder.results()
    for i, number in enumerate(numbers):
        result = finished[number]
        if i not in (0, 2):
            assert result.tokens == singles[i].tokens
            assert result.errors == [None]
    first, third = finished[numbers[0]], finished[numbers[2]]
    assert first.finish_reasons == third.finish_reasons == ["error"]
    assert first.tokens[0] == singles[0].tokens[0][:4]
    assert isinstance(first.errors[0], mv.errors.DraftError)
    assert str(third.errors[0]) == "no 18"
    assert careless.calls[-1] == "release"


@pytest.mark.parametrize("policy", POLICIES)
def test_model_error_leaves_requests_as_they_were(policy):
    model = tiny_model("llama")
    singles = alone(model, list(range(8)))
    decoder = Decoder(model, mv.drafters.NGram(), rule="coupled", batching=policy)
    numbers = [
        decoder.submit(ids, max_new_tokens=14, seed=seed, params=params)
        for ids, seed, params in zip(prompts(), range(8), PARAMS, strict=True)
    ]

    def fail(*args):
        raise RuntimeError("out of memory")

    for step in range(100):
        if step % 3 == 1:
            hook = model.model.layers[1].mlp.register_forward_hook(fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                decoder.step()
            hook.remove()
        decoder.step()
        if not decoder.num_unfinished:
            break
    finished = decoder.results()
    assert [finished[n].tokens for n in numbers] == [run.tokens for run in singles]


def test_generate_with_an_error_lets_go_of_everything():
    class Broken(StubDrafter):
        def commit(self, verdicts, hidden):
            raise RuntimeError("drafter fails")

    drafter = Broken()
    decoder = Decoder(tiny_model("llama"), drafter, GREEDY)
    with pytest.raises(RuntimeError, match="drafter fails"):
        decoder.generate(prompts()[:3], max_new_tokens=4)
    assert drafter.calls.count("start") == drafter.calls.count("release") == 3


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("trees", [False, True], ids=["chains", "trees"])
def test_drafter_gets_the_hidden_states_of_what_was_committed(policy, trees):
    class Curious(Knowing):
        hidden_layers = (0, -1)

        def propose(self, requests, budgets):
            self.last = [request.id for request in requests]
            return super().propose(requests, budgets)

        def commit(self, verdicts, hidden):
            for request, states in zip(self.last, hidden, strict=True):
                seen = self.states.setdefault(request, ([], []))
                for layer, part in zip(seen, states, strict=True):
                    layer.append(part)

    model = tiny_model("llama")
    ids = prompts()[:4]
    singles = [Decoder(model, None, GREEDY).generate(one, max_new_tokens=12) for one in ids]
    drafter = Curious([run.sequences[0].tolist() for run in singles], trees=trees)
    drafter.states = {}
    batch = Decoder(model, drafter, GREEDY, batching=policy).generate(ids, max_new_tokens=12)
    assert batch.stats.tau > 1.5
    for run, request in zip(singles, sorted(drafter.states), strict=True):
        with torch.no_grad():
            output = model(run.sequences[:, :-1], output_hidden_states=True)
        for layer, parts in zip((0, -1), drafter.states[request], strict=True):
            expected = output.hidden_states[layer][0]
            torch.testing.assert_close(torch.cat(parts), expected, atol=1e-4, rtol=1e-4)


def test_targets_without_batches_run_each():
    target = TableTarget(lambda path: np.eye(8)[(path[-1] + 1) % 8] * 50.0, 8)
    result = Decoder(target, None, GREEDY).generate([[1], [2, 3, 4]], max_new_tokens=3)
    assert result.tokens == [[2, 3, 4], [5, 6, 7]]
    assert result.sequences.tolist() == [[0, 0, 1, 2, 3, 4], [2, 3, 4, 5, 6, 7]]
    with pytest.raises(mv.errors.UnsupportedModelError, match="TableTarget has no forward"):
        Decoder(target, batching="together")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batching": "all"}, "batching: found 'all', wanted one of: auto, together, each"),
        ({"max_batch": 0}, "max_batch: found 0"),
    ],
)
def test_bad_settings_are_named(options, match):
    with pytest.raises(mv.errors.ParamsError, match=match):
        Decoder(tiny_model("llama"), **options)


def test_submit_refuses_what_cannot_be_right():
    decoder = Decoder(tiny_model("gpt2"), None, GREEDY)
    with pytest.raises(mv.errors.ParamsError, match="found 2 sequences, wanted one"):
        decoder.submit([[1], [2]], max_new_tokens=2)
    with pytest.raises(mv.errors.ParamsError, match="context of 64"):
        decoder.submit(prompt(64), max_new_tokens=2)
    with pytest.raises(mv.errors.ParamsError, match="max_new_tokens: found 0"):
        decoder.submit([1], max_new_tokens=0)
    assert decoder.num_unfinished == 0
    assert decoder.step() == {}


@pytest.mark.parametrize("policy", POLICIES)
def test_each_prompt_is_continued_several_times(policy):
    model = tiny_model("llama")
    decoder = Decoder(model, mv.drafters.NGram(), rule="coupled", batching=policy)
    ids = [prompt(5)[0], prompt(8)[0]]
    result = decoder.generate(ids, max_new_tokens=6, seed=3, num_return_sequences=3)
    assert result.sequences.shape == (6, 14)
    for row in range(6):
        single = decoder.generate(ids[row // 3], max_new_tokens=6, seed=mv.derive_seed(3, row))
        assert result.tokens[row] == single.tokens[0]
    with pytest.raises(mv.errors.ParamsError, match="num_return_sequences: found 0"):
        decoder.generate(ids, max_new_tokens=6, num_return_sequences=0)
    with pytest.raises(mv.errors.ParamsError, match="single sequence, and 2 are asked for"):
        decoder.generate(ids[0], max_new_tokens=2, num_return_sequences=2, streamer=StubDrafter())


@pytest.mark.parametrize("batching", ["each", "together"])
@pytest.mark.parametrize("fails", [False, True])
def test_rows_of_a_step_are_freed_when_it_ends(batching, fails):
    seen = []

    class Mine(BatchTableTarget):
        def _read(self, *args):
            found = super()._read(*args)
            seen.append(weakref.ref(found[0]))
            return found

        def forward(self, *args, **options):
            found = super().forward(*args, **options)
            seen.append(weakref.ref(found[0]))
            return found

    class Raises(StubDrafter):
        def observe(self, requests, drafts, logits):
            if fails:
                raise RuntimeError("observe")

    decoder = Decoder(Mine(lambda path: [0.0, 1.0], 2), Raises(), batching=batching)
    for _ in range(2):
        decoder.submit([0, 1], max_new_tokens=5, eos_token_id=())
    with contextlib.suppress(RuntimeError):
        decoder.step()
    gc.collect()
    assert seen
    assert not any(ref() is not None for ref in seen)
    # Of a shared forward each holds a view, which keeps the memory but not the tensor.
    assert not any("output" in vars(sequence) for sequence in decoder._session.sequences)
    assert decoder.num_unfinished == 2
