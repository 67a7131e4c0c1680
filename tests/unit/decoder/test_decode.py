"""The decoding loop: same tokens with and without drafts, stops, masks, streams, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import DynamicCache

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.testing import TableTarget
from tests.caches import with_cache
from tests.models import (
    KINDS,
    VOCAB,
    ScriptDrafter,
    StubDrafter,
    TreeDrafter,
    greedy_tokens,
    prompt,
    tiny_model,
)

GREEDY = mv.SamplingParams(temperature=0.0)
SAMPLED = mv.SamplingParams(temperature=0.9, top_k=20)
PARENTS = [-1, 0, 0, 0, 1, 1, 2, 5, 0, 8, 9]


def counting_target(**options):
    """After a token x comes x + 1, certainly."""
    return TableTarget(lambda path: np.eye(8)[(path[-1] + 1) % 8] * 50.0, 8, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("draft", ["script", "wrong", "tree", "lucky tree", "ngram", "suffix"])
def test_greedy_equals_transformers_whatever_is_drafted(kind, draft):
    model = tiny_model(kind)
    ids = prompt()
    expected = greedy_tokens(model, ids, 24)
    text = ids[0].tolist() + expected
    drafter = {
        "script": lambda: ScriptDrafter(text),
        "wrong": lambda: ScriptDrafter([(t + 1) % VOCAB for t in text]),
        "tree": lambda: TreeDrafter(PARENTS),
        "lucky tree": lambda: TreeDrafter(PARENTS, text=text),
        "ngram": lambda: mv.drafters.NGram(),
        "suffix": lambda: mv.drafters.Suffix(max_nodes=8),
    }[draft]()
    result = Decoder(model, drafter, GREEDY).generate(ids, max_new_tokens=24, seed=0)
    assert result.tokens == [expected]
    assert result.sequences.tolist() == [text]
    assert result.finish_reasons == ["length"]
    assert result.past_key_values.get_seq_length() == len(text) - 1
    if draft == "script":
        assert result.stats.tau > 4
    if draft == "lucky tree":
        assert result.stats.tau > 2
    if draft == "wrong":
        assert result.stats.accepted == 0


@pytest.mark.parametrize("kind", KINDS)
def test_coupled_sampling_does_not_depend_on_the_drafter(kind):
    model = tiny_model(kind)
    ids = prompt()
    plain = Decoder(model, None, SAMPLED, "coupled").generate(ids, max_new_tokens=24, seed=11)
    text = plain.sequences[0].tolist()
    for drafter in (ScriptDrafter(text), TreeDrafter(PARENTS, text=text), mv.drafters.NGram()):
        decoder = Decoder(model, drafter, SAMPLED, "coupled")
        for speculate in (True, False):
            again = decoder.generate(ids, max_new_tokens=24, seed=11, speculate=speculate)
            assert again.tokens == plain.tokens
            np.testing.assert_allclose(again.logprobs[0], plain.logprobs[0], atol=1e-4)
    other = decoder.generate(ids, max_new_tokens=24, seed=12)
    assert other.tokens != plain.tokens


def test_tree_drafts_on_a_table_follow_the_path_of_each_node():
    rows = np.random.default_rng(5).normal(size=(997, 8)) * 3
    target = TableTarget(lambda path: rows[hash(path) % 997], 8)
    plain = Decoder(target, None, SAMPLED, "coupled").generate([1, 2], max_new_tokens=40, seed=3)
    text = plain.sequences[0].tolist()
    drafter = TreeDrafter(PARENTS, vocab=8, text=text)
    fast = Decoder(target, drafter, SAMPLED, "coupled").generate([1, 2], max_new_tokens=40, seed=3)
    assert fast.tokens == plain.tokens
    assert fast.stats.tau > 2
    assert fast.past_key_values == text[:-1]


def test_first_draft_rides_on_the_prompts_forward():
    target = counting_target()
    drafter = ScriptDrafter([0, 1, 2, 3, 4, 5, 6, 7, 0, 1])
    result = Decoder(target, drafter, GREEDY).generate([0, 1, 2], max_new_tokens=5, seed=0)
    assert result.tokens == [[3, 4, 5, 6, 7]]
    assert target.num_forwards == result.stats.forwards == result.stats.steps == 1


def test_budget_leaves_the_last_token_to_the_verifier():
    drafter = ScriptDrafter(list(range(8)) * 4, num_tokens=100)
    decoder = Decoder(counting_target(), drafter, GREEDY)
    for count in (1, 2, 7):
        result = decoder.generate([0], max_new_tokens=count, seed=0)
        assert result.tokens[0] == [i % 8 for i in range(1, count + 1)]
        assert drafter.budgets.pop() == count - 1
        assert result.stats.steps == 1


@pytest.mark.parametrize("speculate", [True, False])
@pytest.mark.parametrize(("eos", "length"), [(5, 3), ([7, 5], 3), (torch.tensor([5]), 3), ((), 12)])
def test_eos_cuts_in_mid_path(speculate, eos, length):
    drafter = ScriptDrafter(list(range(8)) * 4, num_tokens=8)
    result = Decoder(counting_target(eos_ids=(4,)), drafter, GREEDY).generate(
        [0, 1, 2], max_new_tokens=12, seed=0, eos_token_id=eos, speculate=speculate
    )
    assert result.tokens == [[(3 + i) % 8 for i in range(length)]]
    assert result.finish_reasons == ["stop" if length == 3 else "length"]
    assert len(result.logprobs[0]) == length
    assert result.past_key_values == result.sequences[0, :-1].tolist()
    assert result.stats.emitted == length
    if speculate and length == 3:
        assert drafter.verdicts[-1].tokens.tolist() == [3, 4, 5]


def test_models_own_eos_is_the_default():
    result = Decoder(counting_target(eos_ids=(4,)), None, GREEDY).generate([2], max_new_tokens=9)
    assert result.tokens == [[3, 4]]
    assert result.finish_reasons == ["stop"]


def test_eos_in_the_prompt_does_not_stop():
    result = Decoder(counting_target(eos_ids=(4,)), None, GREEDY).generate([4], max_new_tokens=2)
    assert result.tokens == [[5, 6]]


@pytest.mark.parametrize("speculate", [True, False])
def test_criteria_see_each_token_in_order(speculate):
    seen = []

    def criterion(ids, scores):
        assert scores is None
        seen.append(ids[0].tolist())
        return torch.tensor([ids[0, -1] == 5])

    drafter = ScriptDrafter(list(range(8)) * 4, num_tokens=8)
    result = Decoder(counting_target(), drafter, GREEDY).generate(
        [0, 1, 2], max_new_tokens=12, seed=0, stopping_criteria=criterion, speculate=speculate
    )
    assert seen == [[0, 1, 2, *range(3, last + 1)] for last in (3, 4, 5)]
    assert result.tokens == [[3, 4, 5]]
    assert result.finish_reasons == ["criteria"]
    assert result.past_key_values == [0, 1, 2, 3, 4]


def test_earliest_stop_wins():
    result = Decoder(counting_target(), None, GREEDY).generate(
        [2],
        max_new_tokens=12,
        eos_token_id=6,
        stopping_criteria=[lambda ids, _: bool(ids[0, -1] == 4), lambda ids, _: False],
    )
    assert (result.tokens, result.finish_reasons) == ([[3, 4]], ["criteria"])


def test_streamer_gets_prompt_then_steps_then_one_end():
    class Streamer:
        def __init__(self):
            self.got, self.ends = [], 0

        def put(self, value):
            self.got.append(value.tolist())

        def end(self):
            self.ends += 1

    streamer = Streamer()
    drafter = ScriptDrafter(list(range(8)) * 4, num_tokens=2)
    Decoder(counting_target(), drafter, GREEDY).generate(
        [0, 1], max_new_tokens=7, streamer=streamer
    )
    assert streamer.got == [[[0, 1]], [2, 3, 4], [5, 6, 7], [0]]
    assert streamer.ends == 1


@pytest.mark.parametrize("kind", KINDS)
def test_left_padding_changes_nothing_but_the_sequences(kind):
    model = tiny_model(kind)
    ids = prompt()
    padded = torch.cat([torch.zeros((1, 5), dtype=torch.int64), ids], dim=1)
    mask = (torch.arange(padded.shape[1]) >= 5).long()[None]
    drafter = TreeDrafter(PARENTS, text=ids[0].tolist() + greedy_tokens(model, ids, 12))
    decoder = Decoder(model, drafter, SAMPLED, "coupled")
    alone = decoder.generate(ids, max_new_tokens=12, seed=1)
    result = decoder.generate(padded, mask, max_new_tokens=12, seed=1)
    assert result.tokens == alone.tokens
    assert result.sequences.tolist() == [[0] * 5 + alone.sequences[0].tolist()]
    # The cache can be continued by the library, with a mask over the padding.
    whole = torch.ones_like(result.sequences)
    whole[:, :5] = 0
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(result.sequences, attention_mask=whole, **options)
    continued = model.generate(
        result.sequences,
        attention_mask=whole,
        **with_cache(model, result.past_key_values),
        **options,
    )
    assert torch.equal(continued, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_returned_cache_continues_a_generation(kind):
    model = tiny_model(kind)
    ids = prompt()
    expected = greedy_tokens(model, ids, 20)
    decoder = Decoder(model, ScriptDrafter(ids[0].tolist() + expected), GREEDY)
    first = decoder.generate(ids, max_new_tokens=8)
    second = decoder.generate(
        first.sequences, max_new_tokens=12, past_key_values=first.past_key_values
    )
    assert first.tokens[0] + second.tokens[0] == expected
    assert second.past_key_values is first.past_key_values
    assert second.past_key_values.get_seq_length() == second.sequences.shape[1] - 1


def test_output_logits_are_the_rows_that_tokens_come_from():
    model = tiny_model("llama")
    ids = prompt()
    text = ids[0].tolist() + greedy_tokens(model, ids, 12)
    result = Decoder(model, TreeDrafter(PARENTS, text=text), GREEDY).generate(
        ids, max_new_tokens=12, output_logits=True
    )
    with torch.no_grad():
        expected = model(result.sequences).logits[0, ids.shape[1] - 1 : -1]
    torch.testing.assert_close(result.logits[0], expected, atol=1e-4, rtol=1e-4)


def test_logprobs_are_the_shaped_targets():
    model = tiny_model("llama")
    ids = prompt()
    params = mv.SamplingParams(temperature=0.7)
    result = Decoder(model, mv.drafters.NGram(), params).generate(ids, max_new_tokens=16, seed=2)
    with torch.no_grad():
        rows = model(result.sequences).logits[0, ids.shape[1] - 1 : -1].double() / 0.7
    picked = rows.log_softmax(-1)[torch.arange(16), torch.tensor(result.tokens[0])]
    np.testing.assert_allclose(result.logprobs[0], picked, atol=1e-4)


def test_stats_add_up():
    drafter = ScriptDrafter([0, 1, 2, 3, 4, 6, 6, 7] * 3, num_tokens=3)
    result = Decoder(counting_target(), drafter, GREEDY).generate([0], max_new_tokens=8, seed=0)
    stats = result.stats
    assert stats.emitted == 8 == sum(n * count for n, count in enumerate(stats.lengths))
    assert stats.steps == sum(stats.lengths) == len(drafter.verdicts)
    assert stats.accepted == sum(stats.accepted_at) == stats.emitted - stats.steps
    assert all(a <= n for a, n in zip(stats.accepted_at, stats.attempted, strict=True))
    assert stats.attempted[0] == sum(budget > 0 for budget in drafter.budgets)
    assert stats.tau == 8 / stats.steps
    parts = [*stats.seconds, "other"]
    assert sum(stats.share(part) for part in parts) == pytest.approx(1.0)
    twice = type(stats)()
    twice.merge(stats)
    twice.merge(stats)
    assert twice.as_dict()["lengths"] == [2 * n for n in stats.lengths]
    assert twice.tau == stats.tau


def test_drafters_life_ends_with_release_even_after_an_error():
    class Broken(StubDrafter):
        def commit(self, verdicts, hidden):
            super().commit(verdicts, hidden)
            if len(self.calls) > 4:
                raise RuntimeError("drafter fails")

    drafter = Broken()
    model = tiny_model("llama")
    cache = DynamicCache(config=model.config)
    with pytest.raises(RuntimeError, match="drafter fails"):
        Decoder(model, drafter, GREEDY).generate(prompt(), max_new_tokens=9, past_key_values=cache)
    assert drafter.calls == ["start", *["propose", "commit"] * 2, "release"]
    assert {type(layer).__name__ for layer in cache.layers} == {"DynamicLayer"}


def test_users_cache_keeps_no_draft_after_an_error():
    class Poisoned(TableTarget):
        def forward(self, *args, **options):
            rows, hidden = super().forward(*args, **options)
            return (rows * float("nan") if self.num_forwards == 2 else rows), hidden

    eye = np.eye(8) * 50
    target = Poisoned(lambda path: eye[(path[-1] + 1) % 8], 8)
    kept = []
    target.new_cache = lambda past: kept.append(TableTarget.new_cache(target, past)) or kept[0]
    decoder = Decoder(target, ScriptDrafter([*range(8)] * 2, num_tokens=2), GREEDY)
    with pytest.raises(mv.errors.NumericsError):
        decoder.generate([0, 1], max_new_tokens=9)
    assert kept[0].tokens == [0, 1, 2, 3]


def test_seed_none_takes_one_draw_from_torchs_generator():
    decoder = Decoder(counting_target(), None, mv.SamplingParams(temperature=50.0))
    torch.manual_seed(4)
    first = decoder.generate([0], max_new_tokens=20)
    after = torch.rand(1)
    torch.manual_seed(4)
    second = decoder.generate([0], max_new_tokens=20)
    assert second.tokens == first.tokens
    assert torch.equal(torch.rand(1), after)
    torch.manual_seed(4)
    torch.randint(0, 2**63 - 1, ())
    assert torch.equal(torch.rand(1), after)


def test_given_seed_leaves_torchs_generator_alone():
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    Decoder(counting_target(), None).generate([0], max_new_tokens=5, seed=1)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    "ids",
    [
        [1, 2, 3],
        [[1, 2, 3]],
        np.array([1, 2, 3]),
        np.array([[1, 2, 3]], np.int32),
        torch.tensor([1, 2, 3]),
        [torch.tensor([1, 2, 3])],
    ],
)
def test_prompt_forms(ids):
    result = Decoder(counting_target(), None, GREEDY).generate(ids, max_new_tokens=2)
    assert result.sequences.tolist() == [[1, 2, 3, 4, 5]]


BAD_CALLS = {
    "an empty row": ({"input_ids": [[1], []]}, r"input_ids\[1\]: found shape \(0,\)"),
    "three dimensions": ({"input_ids": torch.zeros((2, 3, 1), dtype=torch.int64)}, r"\(B, T\)"),
    "streamed batch": ({"input_ids": [[1], [2, 3]], "streamer": object()}, "2 are asked for"),
    "cached batch": ({"input_ids": [[1], [2, 3]], "past_key_values": [1]}, "2 are asked for"),
    "bad row of a batch": ({"input_ids": [[1], [2, 9]]}, r"input_ids\[1, 1\]: found 9"),
    "mask of one row": (
        {"input_ids": [[1, 2], [2, 3]], "attention_mask": [[1, 1]]},
        r"found \[2\] entries, wanted \[2, 2\]",
    ),
    "hole in a second row": (
        {"input_ids": [[1, 2], [2, 3]], "attention_mask": [[0, 1], [1, 0]]},
        r"attention_mask\[1\]",
    ),
    "params of one row": (
        {"input_ids": [[1, 2], [2, 3]], "params": [GREEDY]},
        r"params: found \[.*\], wanted one SamplingParams, or a list of 2",
    ),
    "no tokens": ({"input_ids": []}, "T >= 1"),
    "floats": ({"input_ids": torch.zeros((1, 3))}, "integers"),
    "token too large": ({"input_ids": [1, 8]}, r"input_ids\[0, 1\]: found 8, wanted 0 to 7"),
    "negative token": ({"input_ids": [-1, 2]}, r"input_ids\[0, 0\]: found -1"),
    "right padding": ({"attention_mask": [[1, 1, 0]]}, 'padding_side="left"'),
    "hole": ({"attention_mask": [[1, 0, 1]]}, 'padding_side="left"'),
    "all padding": ({"attention_mask": [[0, 0, 0]]}, "zeros on the left"),
    "mask of another shape": ({"attention_mask": [[1, 1]]}, r"found \[2\] entries, wanted \[3\]"),
    "no new tokens": ({"max_new_tokens": 0}, "max_new_tokens: found 0, wanted an integer >= 1"),
    "fractional length": ({"max_new_tokens": 1.5}, "max_new_tokens: found 1.5"),
    "negative seed": ({"seed": -1}, "seed: found -1"),
    "huge seed": ({"seed": 2**64}, "2\\*\\*64 - 1"),
    "text seed": ({"seed": "a"}, "seed: found 'a'"),
    "two seeds": ({"seed": [1, 2]}, "2 seeds"),
    "past too long": ({"past_key_values": [1, 2, 3]}, "all of the prompt but its last"),
    "past and padding": (
        {"past_key_values": [2], "attention_mask": [[0, 1, 1]]},
        "no padding",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS, ids=lambda name: name.replace(" ", "-"))
def test_bad_arguments_are_named_before_anything_runs(case):
    options, message = BAD_CALLS[case]
    target = counting_target()
    drafter = StubDrafter()
    call = {"input_ids": [1, 2, 3], "max_new_tokens": 4, **options}
    with pytest.raises(mv.errors.ParamsError, match=message):
        Decoder(target, drafter, GREEDY).generate(**call)
    assert target.num_forwards == 0
    assert drafter.calls == []


def test_prompt_longer_than_the_context_is_refused():
    model = tiny_model("gpt2")
    with pytest.raises(
        mv.errors.ParamsError, match=r"found 64 tokens, wanted fewer than .* context of 64"
    ):
        Decoder(model, None, GREEDY).generate(prompt(64), max_new_tokens=1)


@pytest.mark.parametrize("call", ["generate", "submit"])
def test_the_warning_of_a_short_context_names_the_callers_line(call):
    decoder = Decoder(tiny_model("gpt2"), None, GREEDY)
    with pytest.warns(UserWarning, match="leaves 1 of the 2") as caught:
        getattr(decoder, call)(prompt(63), max_new_tokens=2, seed=0)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("speculate", [True, False])
def test_generation_ends_at_the_contexts_end(speculate):
    model = tiny_model("gpt2")
    ids = prompt(50)
    drafter = ScriptDrafter(ids[0].tolist() + greedy_tokens(model, ids, 14), num_tokens=8)
    with pytest.warns(UserWarning, match="leaves 14 of the 100"):
        result = Decoder(model, drafter, GREEDY).generate(
            ids, max_new_tokens=100, speculate=speculate
        )
    assert result.sequences.shape[1] == 64
    assert result.finish_reasons == ["length"]


@pytest.mark.parametrize("form", ["deeper", "wider"])
def test_draft_larger_than_asked_for_is_refused(form):
    class Greedy(StubDrafter):
        def draft(self, request, budget):
            tokens = list(range(budget + 2))
            parents = range(-1, budget + 1) if form == "deeper" else [-1] + [0] * (budget + 1)
            return mv.Draft(mv.TokenTree(parents), tokens)

    with pytest.raises(
        mv.errors.DraftError, match=r"Greedy.propose: found 4 nodes, wanted 3"
    ) as error:
        Decoder(counting_target(), Greedy(), GREEDY).generate([0], max_new_tokens=4)
    assert error.value.slug == "draft_too_large"


def test_rows_with_nan_are_refused_and_the_drafter_released():
    drafter = StubDrafter()
    target = TableTarget(lambda path: [float("nan")] * 8, 8)
    with pytest.raises(mv.errors.NumericsError):
        Decoder(target, drafter).generate([0], max_new_tokens=4)
    assert drafter.calls[-1] == "release"


def test_illegal_rule_is_refused_by_name():
    with pytest.raises(mv.errors.RuleError):
        Decoder(counting_target(), None, rule="fastest").generate([0], max_new_tokens=4)


def test_lossy_decoding_says_so_and_plain_decoding_stays_lossless():
    # Every token may follow, and any draft is accepted.
    target = TableTarget(lambda path: np.zeros(8), 8)
    drafter = ScriptDrafter([0, 3, 1, 4, 1, 5, 1, 2, 6, 5, 3, 5], num_tokens=4)
    decoder = Decoder(target, drafter, lossy=mv.lossy.topk(1))
    result = decoder.generate([0], max_new_tokens=11, seed=1)
    assert result.tokens[0][:4] == [3, 1, 4, 1]
    assert result.stats.accepted_at[0] == result.stats.attempted[0]
    assert not result.stats.lossless
    assert result.stats.as_dict()["lossless"] is False
    plain = decoder.generate([0], max_new_tokens=11, seed=1, speculate=False)
    assert plain.stats.lossless
    merged = type(plain.stats)()
    merged.merge(plain.stats)
    assert merged.lossless
    merged.merge(result.stats)
    assert not merged.lossless


@pytest.mark.parametrize("options", [{"rule": "block"}, {"params": GREEDY}], ids=repr)
def test_lossy_acceptance_that_does_not_fit_is_refused_at_once(options):
    with pytest.raises(mv.errors.RuleError, match='lossy acceptance "topk"'):
        Decoder(counting_target(), None, **options, lossy=mv.lossy.topk(2))


def test_bfloat16_rows_are_verified():
    model = tiny_model("llama").to(torch.bfloat16)
    result = Decoder(model, mv.drafters.NGram(), SAMPLED).generate(prompt(), max_new_tokens=8)
    assert len(result.tokens[0]) == 8


@pytest.mark.parametrize("draft", [mv.drafters.Model, mv.drafters.ModelTree])
def test_float64_rows_are_read_as_generate_reads_them(draft):
    model, small = tiny_model("llama").double(), tiny_model("llama", 2).double()
    expected = greedy_tokens(model, prompt(), 8)
    decoder = Decoder(model, draft(small), GREEDY)
    result = decoder.generate(torch.cat([prompt(), prompt()]), max_new_tokens=8, output_logits=True)
    assert result.tokens == [expected, expected]
    assert result.logits[0].dtype == torch.float32
