"""`custom_generate`: what `generate` would return, and nothing ignored."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    MambaConfig,
    MambaForCausalLM,
    StaticCache,
)
from transformers.generation import (
    GenerateDecoderOnlyOutput,
    LogitsProcessorList,
    MinPLogitsWarper,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import mtp_verify as mv
from mtp_verify.decoder import decode
from mtp_verify.decoder.decode import Decoder
from mtp_verify.decoder.generation import Stats
from mtp_verify.decoder.planning import Costs
from mtp_verify.drafters import Model
from mtp_verify.integrations import hf
from tests.caches import with_cache
from tests.models import KINDS, ScriptDrafter, TreeDrafter, prompt, tiny_model

PARENTS = [-1, 0, 0, 0, 1, 1, 2, 5, 0]


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


def run(model, ids, drafter=None, mask=None, *, rule="auto", seed=None, **options):
    options = {"max_new_tokens": 12, "pad_token_id": 0, **options}
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask,
        custom_generate=mv.hf.speculative(drafter, rule=rule, seed=seed),
        **options,
    )


def reference(model, ids, mask=None, **options):
    options = {"max_new_tokens": 12, "pad_token_id": 0, "do_sample": False, **options}
    mask = torch.ones_like(ids) if mask is None else mask
    return model.generate(ids, attention_mask=mask, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_padding", [0, 4])
def test_greedy_output_equals_generates(kind, num_padding):
    model = tiny_model(kind)
    ids = torch.cat([torch.zeros((1, num_padding), dtype=torch.int64), prompt()], dim=1)
    mask = (torch.arange(ids.shape[1]) >= num_padding).long()[None]
    options = {
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
        "do_sample": False,
    }
    expected = reference(model, ids, mask, **options)
    text = expected.sequences[0, num_padding:].tolist()
    for drafter in (
        mv.drafters.NGram(),
        ScriptDrafter(text),
        TreeDrafter(PARENTS, text=text),
        Model(tiny_model(kind, seed=2), num_tokens=3),
        None,
    ):
        found = run(model, ids, drafter, mask, **options)
        assert isinstance(found, GenerateDecoderOnlyOutput)
        assert torch.equal(found.sequences, expected.sequences)
        assert found.attentions is None
        assert found.hidden_states is None
        for mine, theirs in ((found.scores, expected.scores), (found.logits, expected.logits)):
            assert len(mine) == len(theirs) == 12
            for one, other in zip(mine, theirs, strict=True):
                assert one.shape == other.shape
                assert one.dtype == other.dtype
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        cache, other_cache = found.past_key_values, expected.past_key_values
        assert type(cache) is type(other_cache)
        for mine, theirs in zip(cache.layers, other_cache.layers, strict=True):
            assert mine.get_seq_length() == theirs.get_seq_length()
            # Entries of padding are masked; their values differ and do not matter.
            shown = mine.keys.shape[-2] - num_padding
            torch.testing.assert_close(
                mine.keys[:, :, -shown:], theirs.keys[:, :, -shown:], atol=1e-4, rtol=1e-4
            )


def test_plain_tensor_without_return_dict(llama):
    found = run(llama, prompt(), mv.drafters.NGram(), do_sample=False)
    assert torch.equal(found, reference(llama, prompt()))


def test_generation_config_is_honoured(llama):
    config = GenerationConfig(do_sample=False, max_length=15, pad_token_id=0)
    found = llama.generate(
        prompt(), generation_config=config, custom_generate=mv.hf.speculative(mv.drafters.NGram())
    )
    assert torch.equal(found, llama.generate(prompt(), generation_config=config))
    assert found.shape == (1, 15)


def test_eos_of_the_config_stops(llama):
    plain = reference(llama, prompt())[0, 9:].tolist()
    eos = plain[5]
    length = plain.index(eos) + 1
    found = run(llama, prompt(), ScriptDrafter([]), do_sample=False, eos_token_id=[eos, 31])
    assert found[0, 9:].tolist() == plain[:length]


def test_users_stopping_criteria_stop_in_mid_path(llama):
    class AtLength(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            done = input_ids.shape[1] >= 13
            return torch.full((input_ids.shape[0],), done, dtype=torch.bool)

    text = reference(llama, prompt())[0].tolist()
    criteria = StoppingCriteriaList([AtLength()])
    found = run(
        llama, prompt(), ScriptDrafter(text, 8), do_sample=False, stopping_criteria=criteria
    )
    assert found[0].tolist() == text[:13]


def test_sampling_uses_the_processors_parameters(llama):
    options = {"temperature": 0.7, "top_k": 9, "top_p": 0.8, "min_p": 0.05}
    found = run(
        llama, prompt(), mv.drafters.NGram(), rule="coupled", seed=6, do_sample=True, **options
    )
    decoder = Decoder(llama, None, mv.SamplingParams(**options), "coupled")
    assert torch.equal(found, decoder.generate(prompt(), max_new_tokens=12, seed=6).sequences)


def test_sampling_alone_brings_top_k_50(llama):
    seen = {}
    original = Decoder.__init__

    def spy(self, model, drafter, params, *others, **options):
        seen["params"] = params
        original(self, model, drafter, params, *others, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "__init__", spy)
        run(llama, prompt(), do_sample=True)
    assert seen["params"] == mv.SamplingParams(top_k=50)


def test_scores_of_sampling_are_the_processed_rows(llama):
    found = run(
        llama, prompt(), mv.drafters.NGram(), seed=1, do_sample=True, temperature=0.5, top_k=4,
        return_dict_in_generate=True, output_scores=True, output_logits=True,
    )  # fmt: skip
    for token, scores, logits in zip(
        found.sequences[0, 9:], found.scores, found.logits, strict=True
    ):
        kept = scores[0].isfinite()
        assert kept.sum() == 4
        assert kept[token]
        torch.testing.assert_close(scores[0, kept], logits[0, kept] / 0.5)


def test_torchs_seed_reproduces(llama):
    outputs = []
    for _ in range(2):
        torch.manual_seed(8)
        outputs.append(run(llama, prompt(), mv.drafters.NGram(), do_sample=True))
    assert torch.equal(*outputs)


def test_streamer_and_stats_are_filled(llama):
    class Streamer:
        def __init__(self):
            self.tokens, self.ends = [], 0

        def put(self, value):
            self.tokens += value.reshape(-1).tolist()

        def end(self):
            self.ends += 1

    streamer, stats = Streamer(), Stats()
    call = mv.hf.speculative(mv.drafters.NGram(), streamer=streamer, stats=stats)
    for runs in (1, 2):
        found = llama.generate(
            prompt(), max_new_tokens=6, do_sample=False, pad_token_id=0, custom_generate=call
        )
        assert streamer.tokens == found[0].tolist()
        assert streamer.ends == runs
        assert stats.emitted == 6 * runs
        streamer.tokens.clear()


def test_returned_cache_is_continued_by_both(llama):
    options = {"return_dict_in_generate": True, "do_sample": False}
    first = run(llama, prompt(), mv.drafters.NGram(), max_new_tokens=5, **options)
    second = run(
        llama, first.sequences, mv.drafters.NGram(), max_new_tokens=4,
        **with_cache(llama, first.past_key_values), **options,
    )  # fmt: skip
    third = reference(
        llama, second.sequences, max_new_tokens=3, **with_cache(llama, second.past_key_values)
    )
    assert torch.equal(third, reference(llama, prompt()))


REFUSED = {
    "classifier-free guidance": ({"guidance_scale": 2.0}, "ClassifierFreeGuidance"),
    "beams": ({"num_beams": 2}, "num_beams"),
    "prompt lookup": ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
    "hidden states": (
        {"return_dict_in_generate": True, "output_hidden_states": True},
        "output_hidden_states",
    ),
    "attentions": (
        {"return_dict_in_generate": True, "output_attentions": True},
        "output_attentions",
    ),
    "own positions": ({"position_ids": torch.arange(9)[None] + 3}, "position_ids"),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda name: name.replace(" ", "-"))
@pytest.mark.filterwarnings("ignore")  # transformers comments on some of these settings
def test_unsupported_settings_are_refused_by_name(case, llama):
    options, name = REFUSED[case]
    drafter = ScriptDrafter([])
    with pytest.raises(mv.MtpVerifyError, match=name):
        run(llama, prompt(), drafter, **{"do_sample": False, **options})
    assert drafter.calls == []


@pytest.mark.parametrize("kind", ["encoder-decoder", "mamba"])
@pytest.mark.filterwarnings("ignore")  # transformers comments on random models of these kinds
def test_a_model_that_cannot_work_is_named_before_its_settings(kind):
    torch.manual_seed(0)
    if kind == "mamba":
        config = MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4)
        model, told = MambaForCausalLM(config).eval(), "MambaForCausalLM cannot decode"
    else:
        config = BartConfig(
            vocab_size=32, d_model=16, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
            decoder_ffn_dim=16, max_position_embeddings=32,
        )  # fmt: skip
        model, told = BartForConditionalGeneration(config).eval(), "is an encoder-decoder model"
    with pytest.raises(mv.errors.UnsupportedModelError, match=told):
        run(model, prompt(), mv.drafters.NGram(), do_sample=False)


def test_static_cache_is_used(llama):
    ids = prompt()
    expected = llama.generate(ids, do_sample=False, max_new_tokens=12, pad_token_id=0)
    for options in (
        {"cache_implementation": "static"},
        with_cache(llama, StaticCache(config=llama.config, max_cache_len=64)),
    ):
        output = run(
            llama, ids, ScriptDrafter(expected[0].tolist()), do_sample=False, max_new_tokens=12,
            return_dict_in_generate=True, **options,
        )  # fmt: skip
        assert torch.equal(output.sequences, expected)
        assert isinstance(output.past_key_values, StaticCache)
    with pytest.raises(
        mv.errors.UnsupportedModelError, match="a static cache serves a single sequence"
    ):
        run(llama, ids.repeat(2, 1), do_sample=False, cache_implementation="static")


def run_with(model, ids, options, mask=None, **settings):
    """Greedy tokens; `options` go to `speculative`, `settings` to `generate`."""
    call = mv.hf.speculative(mv.drafters.NGram(), **options)
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask,
        custom_generate=call,
        **{"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, **settings},
    )


def test_planner_chooses_what_is_drafted(llama):
    # A second token costs as much as nine plain steps: nothing pays.
    dear, cheap = {1: 0.01, 2: 0.1}, {1: 0.01, 33: 0.0101}
    for curve, drafts in ((dear, False), (cheap, True)):
        stats = Stats()
        planner = mv.Planner(Costs({1: curve}))
        found = run_with(llama, prompt(), {"planner": planner, "stats": stats})
        assert torch.equal(found, reference(llama, prompt()))
        assert sum(stats.budgets) == stats.steps
        assert (stats.drafted > 0) == drafts
    with pytest.raises(mv.errors.ParamsError, match="planner: found 'always'"):
        run_with(llama, prompt(), {"planner": "always"})


@pytest.mark.parametrize("cache", ["paged", decode.Paged(16, 4, prefix_cache=True)])
def test_paged_cache_of_one_and_of_many_rows(llama, cache):
    ids, mask = padded_batch()
    options = {"cache": cache}
    assert torch.equal(run_with(llama, ids, options, mask), reference(llama, ids, mask))
    found = run_with(llama, prompt(), options, return_dict_in_generate=True)
    assert torch.equal(found.sequences, reference(llama, prompt()))
    assert found.past_key_values is None


def test_what_a_paged_cache_cannot_take_is_refused_by_name(llama):
    filled = reference(llama, prompt(), return_dict_in_generate=True).past_key_values
    static = StaticCache(config=llama.config, max_cache_len=64)
    text = reference(llama, prompt())
    for settings in (with_cache(llama, filled), with_cache(llama, static),
                     {"cache_implementation": "static"}):  # fmt: skip
        name = next(iter(settings))
        with pytest.raises(mv.errors.ParamsError, match=f"unset {name}"):
            run_with(llama, text, {"cache": "paged"}, **settings)
    with pytest.raises(mv.errors.ParamsError, match="cache: found 'dynamic'"):
        run_with(llama, text, {"cache": "dynamic"})
    with pytest.raises(mv.errors.UnsupportedModelError, match="requests cannot share a forward"):
        run_with(tiny_model("qwen3_next"), prompt(), {"cache": "paged"})


def padded_batch():
    """Three prompts of different lengths, padded on the left."""
    rows = [prompt(length, seed=length) for length in (9, 4, 7)]
    ids = torch.zeros((3, 9), dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, 9 - row.shape[1] :] = row
    return ids, (ids != 0).long()


def test_padded_batch_equals_generate(llama):
    ids, mask = padded_batch()
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": 5}
    expected = llama.generate(ids, attention_mask=mask, **options)
    fast = llama.generate(
        ids,
        attention_mask=mask,
        custom_generate=mv.hf.speculative(mv.drafters.NGram()),
        **options,
    )
    assert torch.equal(fast, expected)


def test_batch_returns_scores_and_logits(llama):
    ids, mask = padded_batch()
    options = {
        "max_new_tokens": 6, "do_sample": True, "top_k": 5, "pad_token_id": 0,
        "return_dict_in_generate": True, "output_scores": True, "output_logits": True,
    }  # fmt: skip
    fast = llama.generate(
        ids,
        attention_mask=mask,
        custom_generate=mv.hf.speculative(mv.drafters.NGram(), seed=4),
        **options,
    )
    assert len(fast.scores) == len(fast.logits) == 6
    whole = torch.cat([mask, torch.ones(3, 6, dtype=torch.int64)], dim=1)
    with torch.no_grad():
        rows = llama(
            fast.sequences,
            attention_mask=whole,
            position_ids=(whole.cumsum(-1) - 1).clamp(min=0),
        ).logits[:, 8:-1]
    torch.testing.assert_close(torch.stack(fast.logits, 1), rows, atol=1e-4, rtol=1e-4)
    scores = torch.stack(fast.scores, 1)
    assert (torch.isfinite(scores).sum(-1) == 5).all()
    picked = scores.gather(2, fast.sequences[:, 9:, None])
    assert torch.isfinite(picked).all()


def test_several_sequences_of_one_prompt_run_it_once(llama):
    stats = decode.Stats()
    options = {"max_new_tokens": 8, "do_sample": True, "num_return_sequences": 3}
    fast = llama.generate(
        prompt(),
        attention_mask=torch.ones(1, 9, dtype=torch.int64),
        custom_generate=mv.hf.speculative(None, "coupled", seed=1, stats=stats),
        **options,
    )
    alone = [
        run(llama, prompt(), None, do_sample=True, rule="coupled", seed=mv.derive_seed(1, row))
        for row in range(3)
    ]
    assert fast.tolist() == [row[0, : 9 + 8].tolist() for row in alone]
    # Each forward is counted by each of its requests; the prompt's own came once.
    assert stats.forwards == stats.steps + 1


def test_params_from_processors_reads_the_librarys_order():
    processors = LogitsProcessorList(
        [
            TemperatureLogitsWarper(0.5),
            TopKLogitsWarper(7),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.1),
        ]
    )
    expected = mv.SamplingParams(temperature=0.5, top_k=7, top_p=0.9, min_p=0.1)
    assert hf.params_from_processors(processors, do_sample=True) == expected
    assert hf.params_from_processors(processors, do_sample=False).is_greedy
    assert hf.params_from_processors([], do_sample=True) == mv.SamplingParams()


@pytest.mark.parametrize(
    "processors",
    [
        [TopPLogitsWarper(0.9), TemperatureLogitsWarper(0.5)],
        [TemperatureLogitsWarper(0.5), TemperatureLogitsWarper(0.5)],
        [TopPLogitsWarper(0.9, min_tokens_to_keep=2)],
        [TopKLogitsWarper(3, filter_value=-10.0)],
    ],
    ids=["order", "twice", "min tokens", "filter value"],
)
def test_processors_without_a_counterpart_are_refused(processors):
    with pytest.raises(mv.errors.ParamsError, match="Warper"):
        hf.params_from_processors(processors, do_sample=True)
