"""Settings of transformers' `generate`, and what becomes of each where drafts are verified.

`tests/unit/integrations/hf/test_generate_settings.py` runs every one of them;
`docs/reference/generate-settings.md` is their table:

    python -m tests.generate_settings
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    StaticCache,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)
from transformers.generation import (
    EosTokenCriteria,
    LogitsProcessorList,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TextIteratorStreamer,
    TopKLogitsWarper,
)

from tests.generate_context import (
    VOCAB,
    Context,
    High,
    Length,
    OddsOff,
    Pieces,
    Tokens,
    Turning,
)
from tests.models import prompt, tiny_model

__all__ = ["GROUPS", "PAGE", "Setting", "page"]

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "generate-settings.md"

Options = dict[str, Any] | Callable[[Context], dict[str, Any]]


@dataclass(frozen=True)
class Setting:
    """One setting, and what is expected of it.

    Attributes:
        options: of `generate`, beside those of all settings; or what makes them anew for each run.
        name: on the page; None writes the options.
        said: by `mv.hf.speculative`: "equal", "library" (transformers itself refuses, with and
            without us), "custom code" (it refuses beside custom code), "another loop" (it runs one
            of its own instead: nothing is run here), or else a part of our refusal; two of them
            with a "|" between, where that depends on the machine.
        in_one: the same of `mv.hf.generate`, where it differs.
        ids: of the context, the prompt; or what makes it.
        model: None is the context's; "vlm KIND" is and "compiled FORM" are of
            `tests.other_models`.
        without: of what is given back, that differs from plain generation by design.
    """

    options: Options
    name: str | None = None
    said: str = "equal"
    in_one: str | None = None
    ids: str | Callable[[Context], Any] = "ids"
    model: str | Callable[[Context], Any] | None = None
    without: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        if self.name is not None:
            return self.name
        assert isinstance(self.options, dict)
        return ", ".join(f"`{name}={value!r}`" for name, value in self.options.items())

    def made(self, context: Context) -> dict[str, Any]:
        return self.options(context) if callable(self.options) else dict(self.options)


def _allowed(row: int, tokens: torch.Tensor) -> list[int]:
    return [t for t in range(VOCAB) if (t + int(tokens[-1]) + row) % 3]


def _list(*processors: Any) -> LogitsProcessorList:
    return LogitsProcessorList(processors)


def _config(**options: Any) -> GenerationConfig:
    return GenerationConfig(**options)


def _sampled(**options: Any) -> Setting:
    return Setting({"do_sample": True, **options})


_BEAMS = "num_beams"
_PLAIN: dict[str, Any] = {
    "return_dict_in_generate": False, "output_scores": False, "output_logits": False,
}  # fmt: skip

GROUPS: dict[str, list[Setting]] = {
    "Lengths and ends": [
        Setting({}, "greedy, `max_new_tokens=12`"),
        Setting({"max_length": 14, "max_new_tokens": None}),
        Setting({"max_length": 14}, "`max_length` beside `max_new_tokens`"),
        Setting({"max_new_tokens": 1}),
        Setting({"max_new_tokens": 0}, said="library"),
        Setting({"max_length": 5, "max_new_tokens": None}, said="library"),
        Setting({"max_new_tokens": None}, "no length at all: 20 new tokens"),
        Setting({"min_length": 16}),
        Setting({"min_new_tokens": 7}),
        Setting({"min_length": 12, "min_new_tokens": 5}),
        Setting({"eos_token_id": None}),
        Setting(lambda c: {"eos_token_id": c.free[14]}, "`eos_token_id`, met in the text"),
        Setting(lambda c: {"eos_token_id": [c.free[15], 40]}, "`eos_token_id`, a list"),
        Setting(lambda c: {"eos_token_id": torch.tensor([c.free[15]])}, "`eos_token_id`, a tensor"),
        Setting({"bos_token_id": 1}),
        Setting({"pad_token_id": None}, "no `pad_token_id`"),
        Setting({"pad_token_id": 9}),
        Setting({"decoder_start_token_id": 3}),
        Setting({"forced_bos_token_id": 4}),
        Setting({"forced_bos_token_id": 4}, "`forced_bos_token_id`, a prompt of one token",
                ids=lambda c: c.ids[:, :1]),
        Setting({"forced_eos_token_id": 8}),
        Setting({"forced_eos_token_id": [8, 9]}),
        Setting({"max_time": 1000.0}),
        Setting({"max_time": 0.0}, "`max_time=0.0`: one token"),
        Setting(lambda c: {"stop_strings": [c.tokenizer.decode(c.free[13:15])],
                           "tokenizer": c.tokenizer},
                "`stop_strings` and `tokenizer`", said="custom code", in_one="equal"),
        Setting({"stop_strings": ["q"]}, "`stop_strings` without `tokenizer`", said="library",
                in_one="found no tokenizer"),
        Setting({"early_stopping": True}, "`early_stopping` (of beams, none here)"),
        Setting({"length_penalty": 2.0}, "`length_penalty` (of beams, none here)"),
    ],
    "Rows, greedy": [
        Setting({"repetition_penalty": 1.3}),
        Setting({"repetition_penalty": 0.6}),
        Setting({"encoder_repetition_penalty": 1.5}),
        Setting({"no_repeat_ngram_size": 1, "max_new_tokens": 8}),
        Setting({"no_repeat_ngram_size": 2}),
        Setting({"encoder_no_repeat_ngram_size": 2}),
        Setting({"bad_words_ids": [[3], [9], [17]]}),
        Setting({"bad_words_ids": [[3], [9, 4], [1, 2, 8]]}),
        Setting({"sequence_bias": [[[3], 1.5], [[7], -2.0]]}),
        Setting({"sequence_bias": [[[3], 1.5], [[7, 9], 4.0]]}),
        Setting({"sequence_bias": [[[7, 9], 4.0]], "repetition_penalty": 1.2,
                 "no_repeat_ngram_size": 2}),
        Setting({"suppress_tokens": [1, 2, 3, 4]}),
        Setting({"begin_suppress_tokens": list(range(0, VOCAB, 2))}, "`begin_suppress_tokens`"),
        Setting({"exponential_decay_length_penalty": (2, 1.4)}),
        Setting({"remove_invalid_values": True}),
        Setting({"renormalize_logits": True, "repetition_penalty": 1.2}),
        Setting({"watermarking_config": WatermarkingConfig(bias=2.0)}, "`WatermarkingConfig`"),
        Setting({"watermarking_config": WatermarkingConfig(bias=2.0, seeding_scheme="selfhash"),
                 "max_new_tokens": 4}, "`WatermarkingConfig`, self-hash"),
        Setting({"watermarking_config": SynthIDTextWatermarkingConfig(5, [654, 400])},
                "`SynthIDTextWatermarkingConfig`", said="watermarking_config"),
        Setting({"guidance_scale": 1.5}, said="guidance_scale"),
        Setting({"guidance_scale": 1.0}),
        Setting(lambda c: {"negative_prompt_ids": c.ids[:, :3],
                           "negative_prompt_attention_mask": torch.ones(1, 3)},
                "`negative_prompt_ids` and `negative_prompt_attention_mask` without guidance"),
        Setting(lambda c: {"logits_processor": _list(OddsOff())},
                "`logits_processor` of your own"),
        Setting(lambda c: {"logits_processor": _list(lambda ids, rows: rows.roll(1, 1))},
                "`logits_processor`, a function"),
        Setting(lambda c: {"logits_processor": _list(Turning())},
                "`logits_processor` that counts its calls"),
        Setting(lambda c: {"logits_processor": _list(TemperatureLogitsWarper(0.5),
                                                     TopKLogitsWarper(3))},
                "`logits_processor`, the library's warpers"),
        Setting(lambda c: {"logits_processor": _list(OddsOff()), "repetition_penalty": 1.2,
                           "suppress_tokens": [4]},
                "`logits_processor` behind penalties"),
        Setting({"prefix_allowed_tokens_fn": _allowed}, "`prefix_allowed_tokens_fn`"),
        Setting({"temperature": 0.5}, "`temperature` without sampling"),
    ],
    "Rows, sampled": [
        _sampled(),
        _sampled(top_k=0),
        _sampled(temperature=0.6),
        _sampled(top_k=4),
        _sampled(top_p=0.7),
        _sampled(min_p=0.2),
        _sampled(top_h=0.5),
        _sampled(typical_p=0.6),
        _sampled(epsilon_cutoff=0.03),
        _sampled(eta_cutoff=0.05),
        _sampled(temperature=1.4, top_k=20, top_p=0.9, min_p=0.02),
        _sampled(repetition_penalty=1.3, no_repeat_ngram_size=2, temperature=1.2),
        _sampled(min_new_tokens=9, top_p=0.9),
        _sampled(bad_words_ids=[[3], [9, 4]], temperature=2.0),
        _sampled(renormalize_logits=True, top_k=9),
        _sampled(exponential_decay_length_penalty=(3, 1.2)),
        Setting({"do_sample": True, "watermarking_config": WatermarkingConfig(bias=1.5)},
                "`do_sample=True`, `WatermarkingConfig`"),
        Setting(lambda c: {"do_sample": True, "logits_processor": _list(Turning())},
                "`do_sample=True`, `logits_processor` that counts its calls"),
        Setting({"do_sample": True, "num_return_sequences": 3}, without=("cache",)),
        Setting({"do_sample": True, "temperature": 0.0}, said="library"),
        Setting({"num_return_sequences": 3}, "`num_return_sequences=3` without sampling",
                said="library"),
    ],
    "Streamers and criteria": [
        Setting(lambda c: {"streamer": Tokens()}, "`streamer` of your own"),
        Setting(lambda c: {"streamer": Pieces(c.tokenizer)}, "`TextStreamer`"),
        Setting(lambda c: {"streamer": Pieces(c.tokenizer, skip_prompt=True)},
                "`TextStreamer(skip_prompt=True)`"),
        Setting(lambda c: {"streamer": TextIteratorStreamer(c.tokenizer, timeout=20)},
                "`TextIteratorStreamer`"),
        Setting(lambda c: {"streamer": Tokens()}, "`streamer`, a batch", ids="padded",
                said="streamer"),
        Setting(lambda c: {"stopping_criteria": [Length(14)]}, "`stopping_criteria` of your own"),
        Setting(lambda c: {"stopping_criteria": [lambda ids, rows: ids.shape[1] > 12]},
                "`stopping_criteria`, a function"),
        Setting(lambda c: {"stopping_criteria": [High()]}, "`stopping_criteria` that read scores"),
        Setting(lambda c: {"stopping_criteria": [High()]},
                "`stopping_criteria` that read scores, a batch", ids="padded",
                without=("cache",)),
        Setting(lambda c: {"stopping_criteria": [MaxLengthCriteria(13)]}, "`MaxLengthCriteria`"),
        Setting(lambda c: {"stopping_criteria": [EosTokenCriteria(c.free[14])]},
                "`EosTokenCriteria`"),
        Setting(lambda c: {"stopping_criteria": [MaxLengthCriteria(16)], "max_new_tokens": 3},
                "`MaxLengthCriteria` beyond `max_new_tokens`"),
        Setting(lambda c: {"stopping_criteria": [MaxLengthCriteria(5)]},
                "`MaxLengthCriteria` below the prompt's length: one token"),
        Setting(lambda c: {"stopping_criteria": [EosTokenCriteria(c.free[14])], "min_length": 18},
                "`EosTokenCriteria` before `min_length`"),
        Setting(lambda c: {"stopping_criteria": [lambda ids, rows: rows is not None],
                           "output_scores": False},
                "`stopping_criteria` and logits without scores"),
        Setting(lambda c: {"stopping_criteria": [MaxTimeCriteria(0.0)]}, "`MaxTimeCriteria`"),
        Setting(lambda c: {"stopping_criteria": [
            StopStringCriteria(c.tokenizer, [c.tokenizer.decode(c.free[13:15])])]},
            "`StopStringCriteria`"),
    ],
    "What is given back": [
        Setting(_PLAIN, "a tensor"),
        Setting({"output_scores": False, "output_logits": False}, "`return_dict_in_generate=True`"),
        Setting({"output_logits": False}, "`output_scores=True`"),
        Setting({"output_scores": False}, "`output_logits=True`"),
        Setting({**_PLAIN, "output_scores": True}, "`output_scores=True` without a dictionary"),
        Setting({"output_attentions": True}, said="output_attentions"),
        Setting({"output_hidden_states": True}, said="output_hidden_states"),
        Setting({"use_cache": False}),
    ],
    "Caches": [
        Setting(lambda c: c.cache(DynamicCache(config=c.model.config)), "an empty `DynamicCache`"),
        Setting(lambda c: c.cache(DynamicCache()), "an empty `DynamicCache()` without a config"),
        Setting(lambda c: c.prefilled(), "a `DynamicCache` that holds the prompt's beginning"),
        Setting(lambda c: c.prefilled(8), "one that holds all but the last token"),
        Setting(lambda c: c.cache(StaticCache(config=c.model.config, max_cache_len=64)),
                "a `StaticCache`"),
        Setting(lambda c: c.cache(((torch.zeros(1), torch.zeros(1)),)), "a tuple of tensors",
                said="library"),
        Setting(lambda c: c.cache(StaticCache(config=c.model.config, max_cache_len=64)),
                "a `StaticCache`, a batch", ids="padded", said="static cache"),
        Setting(lambda c: {**c.cache(DynamicCache()), "use_cache": False},
                "an empty `DynamicCache()` and `use_cache=False`", said="use_cache=False and"),
        Setting({"cache_implementation": "dynamic"}),
        Setting({"cache_implementation": "static"}, "`cache_implementation='static'`, one row, "
                "padded on the left", ids=lambda c: c.padded[1:2], said="static cache .* padded"),
        Setting({"cache_implementation": "static"}),
        Setting({"cache_implementation": "static", "max_cache_len": 80}),
        Setting({"cache_implementation": "offloaded"}, said="library|cache_implementation"),
        Setting({"cache_implementation": "offloaded_static"}, said="library|cache_implementation"),
        Setting({"cache_implementation": "sliding_window"}, said="cache_implementation"),
        Setting({"cache_implementation": "hybrid"}, "`cache_implementation='hybrid'`, which "
                "transformers unsets"),
        Setting({"cache_implementation": "hybrid_chunked"}, said="cache_implementation"),
        Setting({"cache_implementation": "quantized"}, said="library"),
        Setting({"cache_implementation": "nonsense"}, said="library"),
        Setting({"cache_config": {"nbits": 4}}, "`cache_config` without a quantized cache"),
        Setting({"prefill_chunk_size": 4}),
        Setting({"low_memory": True}, "`low_memory` (of contrastive search, none here)"),
        Setting({"disable_compile": True}),
        Setting({"compile_config": None}),
    ],
    "Prompts": [
        Setting({}, "int32 ids", ids=lambda c: c.ids.int()),
        Setting({}, "one token", ids=lambda c: c.ids[:, :1]),
        Setting(lambda c: {"input_ids": c.ids}, "`input_ids=` by keyword", ids=lambda c: None),
        Setting({"bos_token_id": 3, "attention_mask": None}, "no prompt but `bos_token_id`",
                ids=lambda c: None),
        Setting({"attention_mask": None}, "no `attention_mask`"),
        Setting({}, "padded on the left, one row", ids=lambda c: c.padded[1:2]),
        Setting({}, "a batch, padded on the left", ids="padded", without=("cache",)),
        Setting({"attention_mask": None}, "a batch, the mask inferred from padding", ids="padded",
                without=("cache",)),
        Setting(lambda c: {"attention_mask": (c.padded != 0)}, "a mask of bool", ids="padded",
                without=("cache",)),
        Setting(lambda c: {"attention_mask": (c.padded != 0).float()}, "a mask of float",
                ids="padded", without=("cache",)),
        Setting({"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}, "a batch with penalties",
                ids="padded", without=("cache",)),
        Setting(lambda c: {"logits_processor": _list(Turning())},
                "a batch, `logits_processor` that counts its calls", ids="padded",
                said="Turning keeps state"),
        Setting({}, "padded on the right", ids=lambda c: c.padded.flip(1), said="padding"),
        Setting({"attention_mask": torch.ones(1, 1, 9, 9)}, "a mask of four dimensions",
                said="library"),
        Setting({"position_ids": torch.arange(9)[None]}, "`position_ids`, those of the mask"),
        Setting({"position_ids": torch.arange(9)[None] + 3}, "`position_ids` of your own",
                said="position_ids"),
        Setting({"token_type_ids": torch.zeros(1, 9, dtype=torch.int64)},
                "`token_type_ids`, a model without", said="library"),
        Setting({"token_type_ids": torch.zeros(1, 9, dtype=torch.int64)},
                "`token_type_ids`, GPT-2", model="gpt2", said="token_type_ids"),
        Setting(lambda c: {"inputs_embeds": c.model.get_input_embeddings()(c.ids)},
                "`inputs_embeds`", ids=lambda c: None, said="inputs_embeds"),
        Setting(lambda c: {"inputs_embeds": c.model.get_input_embeddings()(c.ids)},
                "`inputs_embeds` and `input_ids`", said="inputs_embeds"),
        Setting({}, "a prompt beyond the model's positions", ids=lambda c: prompt(260),
                said="max_new_tokens"),
        Setting({}, "a text that ends beyond them", ids=lambda c: prompt(250),
                said="max_new_tokens"),
        Setting({"max_new_tokens": 6}, "a text that ends at them", ids=lambda c: prompt(250)),
        Setting({"token_healing": True}, "`token_healing` without `tokenizer`", said="library"),
        Setting({"logits_to_keep": 2}),
        Setting({"output_router_logits": True}, said="output_router_logits"),
        Setting({"nonsense": 1}, "an argument that there is not", said="library"),
    ],
    "Other ways to generate": [
        Setting({"num_beams": 2}, said=_BEAMS),
        Setting({"num_beams": 2, "do_sample": True}, said=_BEAMS),
        Setting({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
                said=_BEAMS),
        Setting({"num_beam_groups": 1}),
        Setting({"penalty_alpha": 0.6, "top_k": 4}, said="penalty_alpha"),
        Setting({"dola_layers": "high"}, said="dola_layers"),
        Setting({"constraints": [object()], "num_beams": 2}, "`constraints`", said="constraints"),
        Setting({"force_words_ids": [[4]], "num_beams": 2}, said="force_words_ids"),
        Setting({"prompt_lookup_num_tokens": 4}, said="prompt_lookup_num_tokens", in_one="equal"),
        Setting({"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 3},
                said="prompt_lookup_num_tokens", in_one="equal"),
        Setting({"max_matching_ngram_size": 3}, "`max_matching_ngram_size` alone"),
        Setting(lambda c: {"assistant_model": c.assistant}, "`assistant_model`",
                said="assistant_model", in_one="equal"),
        Setting(lambda c: {"assistant_model": c.assistant, "assistant_tokenizer": c.tokenizer,
                           "tokenizer": c.tokenizer}, "`assistant_tokenizer`",
                said="assistant_model", in_one="assistant_tokenizer"),
        Setting({"assistant_early_exit": 1}, said="assistant_early_exit"),
        Setting({"use_mtp": True}, said="use_mtp"),
        Setting({"is_assistant": True}, said="is_assistant"),
        Setting({"speculation_type": "dflash"}, "`speculation_type` without an assistant"),
        Setting({"num_assistant_tokens": 4}),
        Setting({"num_assistant_tokens_schedule": "constant"}),
        Setting({"assistant_confidence_threshold": 0.1}),
        Setting({"assistant_lookbehind": 4}),
        Setting({"target_lookbehind": 4}),
        Setting({"assistant_ensemble_weight": 0.5}),
        Setting({"synced_gpus": True}, said="synced_gpus"),
        Setting({"synced_gpus": False}),
        Setting({"cache_implementation": "paged"}, said="another loop",
                in_one='cache_implementation="paged"'),
        Setting({"continuous_batching_config": None}),
        Setting({"trust_remote_code": True}),
    ],
    "Configurations": [
        Setting(lambda c: {"generation_config": _config(max_new_tokens=7, do_sample=False)},
                "`generation_config`"),
        Setting(lambda c: {"generation_config": _config(max_new_tokens=7, repetition_penalty=1.4),
                           "repetition_penalty": 1.1},
                "`generation_config` and an argument that overrides it"),
        Setting(lambda c: {"generation_config": _config(num_beams=3)},
                "`generation_config` with beams", said=_BEAMS),
        Setting(lambda c: {"generation_config": _config(stop_strings=["q"]),
                           "tokenizer": c.tokenizer},
                "`generation_config` with `stop_strings`", said="custom code", in_one="equal"),
    ],
    "Models": [
        Setting({}, "bfloat16", model=lambda c: tiny_model("llama", vocab_size=VOCAB).bfloat16(),
                without=("rows",)),
        Setting({}, "float16", model=lambda c: tiny_model("llama", vocab_size=VOCAB).half(),
                without=("rows",)),
        Setting({}, "float64", model=lambda c: tiny_model("llama", vocab_size=VOCAB).double()),
        Setting({}, "GPT-2", model="gpt2"),
        Setting({}, "sliding windows (Mistral)", model="mistral"),
        Setting({}, "full and sliding layers (Gemma 3)", model="gemma3"),
        Setting({}, "recurrent and full layers (Qwen3-Next)", model="qwen3_next",
                without=("cache",)),
        Setting({}, "a recurrent model that can go back (Mamba 2)", model="mamba2",
                without=("cache",)),
        Setting({}, "one that cannot (Mamba)", model="mamba",
                said="a recurrent model, whose state cannot be rolled back"),
        Setting({}, "one without a cache (RWKV)", model="rwkv",
                said="a recurrent model, whose state cannot be rolled back"),
        Setting({}, "encoder and decoder (T5)", model="t5", said="encoder-decoder"),
        Setting({}, "encoder and decoder (BART)", model="bart", said="encoder-decoder"),
        Setting({}, "images and text, text alone (Gemma 3)", model="vlm gemma3",
                ids=lambda c: c.ids.clamp(max=27)),
        Setting({}, "images and text, text alone (Qwen3-VL)", model="vlm qwen3_vl",
                ids=lambda c: c.ids.clamp(max=27)),
        Setting({}, "images and text, text alone (LLaVA), a batch", model="vlm llava",
                ids=lambda c: c.padded.clamp(max=27),
                without=("cache",)),
        Setting({"pixel_values": torch.zeros(1, 3, 8, 8)}, "`pixel_values` (LLaVA)",
                model="vlm llava", said="pixel_values",
                ids=lambda c: torch.tensor([[3, 29, 29, 29, 29, 4, 5]])),
        Setting({}, "in training mode",
                model=lambda c: tiny_model("llama", vocab_size=VOCAB).train(),
                said="training mode"),
        Setting({}, "`torch.compile(model)`", model="compiled torch.compile(model)"),
        Setting({}, "`model.forward = torch.compile(model.forward)`",
                model="compiled model.forward"),
        Setting({}, "`model.compile()`", model="compiled model.compile()"),
    ],
}  # fmt: skip


_HEAD = """\
# Settings of `generate`, one by one

<!-- Generated by `python -m tests.generate_settings`; do not edit. -->

`make test` runs each line on tiny models, through
`model.generate(custom_generate=mv.hf.speculative(...))` and through `mv.hf.generate`, with drafts
that are partly accepted, and compares the result with plain `generate`. Of {all} settings {equal}
are equal in both ways and {more} more in `mv.hf.generate`; {refused} are refused by their name,
{library} by transformers itself. `make compat` runs them on the oldest and newest supported
versions, without the settings that a version does not have.

- *equal*: greedy, the same tokens, dtypes, streamed text, scores, logits and cache, and the same
  names in the result; sampled, the same names and shapes, and each token has a probability above 0
  in its processed row ([distributions are certified](certified.md)). Each sequence of a batch is
  compared up to its end; its scores and logits after that are zeros.
- *no cache*: equal, but a batch of several sequences returns no cache.
- *tokens*: equal, but half precision rounds rows.
- *transformers refuses*: with and without this package.
- *beside custom code*: transformers drops an argument, and then raises for the lack of it.
- *its own loop*: transformers runs its own loop instead of custom code, without a message.

A test enumerates every field of `GenerationConfig`, every parameter of `generate` and every keyword
that forwards take from it, and fails if one is not listed here.
"""


def _word(said: str, setting: Setting) -> str:
    if said == "equal":
        if "cache" in setting.without and setting.ids != "ids":
            return "no cache"
        return "tokens" if "rows" in setting.without else "equal"
    words = {
        "library": "transformers refuses",
        "custom code": "beside custom code",
        "another loop": "its own loop",
    }
    return words.get(said.split("|")[0], "refused")


def page() -> str:
    """The page of the documentation."""
    lines, words = [], []
    for group, settings in GROUPS.items():
        lines += [
            f"\n## {group}\n",
            "| setting | `speculative` | `mv.hf.generate` |",
            "|---|---|---|",
        ]
        for setting in settings:
            both = [_word(said, setting) for said in (setting.said, setting.in_one or setting.said)]
            words.append(both)
            title = setting.title.replace("|", "\\|")
            lines.append(f"| {title} | {both[0]} | {both[1]} |")
    good = ("equal", "no cache", "tokens")
    equal = sum(first in good for first, _ in words)
    more = sum(second in good and first not in good for first, second in words)
    refused = sum("refused" in both and not {*both} & {*good} for both in words)
    library = len(words) - equal - more - refused
    head = _HEAD.format(all=len(words), equal=equal, more=more, refused=refused, library=library)
    return head + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
