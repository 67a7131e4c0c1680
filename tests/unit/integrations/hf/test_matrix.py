"""A matrix of `GenerationConfig`s: ours against plain `generate`, setting by setting.

Greedy: tokens, length, scores and logits equal. Sampled: the log-probability that the verifier
found for each token is that of the library's own processed row.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)
from transformers.generation import LogitsProcessor, LogitsProcessorList, StopStringCriteria

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from tests.models import ScriptDrafter, TreeDrafter, prompt, tiny_model

if TYPE_CHECKING:
    from mtp_verify.decoder.generation import Generation

PARENTS = [-1, 0, 0, 0, 1, 1, 2, 5, 0]
EOS = 5
VOCAB = 48  # a watermark's self-hash looks at the 40 most likely tokens
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers comments on some settings


class OddsOff(LogitsProcessor):
    """Takes from each token that stands in the text, the more the later it stands."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        weights = torch.arange(input_ids.shape[1]).expand_as(input_ids) / 10
        return scores.scatter_add(1, input_ids, -weights)


def allowed(row: int, tokens: torch.Tensor) -> list[int]:
    return [t for t in range(VOCAB) if (t + int(tokens[-1]) + row) % 3]


GREEDY: dict[str, dict[str, Any]] = {
    "plain": {},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "repetition_reward": {"repetition_penalty": 0.6},
    "no_repeat_2": {"no_repeat_ngram_size": 2},
    "no_repeat_3": {"no_repeat_ngram_size": 3},
    "no_repeat_1": {"no_repeat_ngram_size": 1, "max_new_tokens": 8},
    "bad_words": {"bad_words_ids": [[3], [9], [17]]},
    "bad_words_of_two": {"bad_words_ids": [[3], [9, 4], [1, 2, 8]]},
    "bias": {"sequence_bias": [[[3], 1.5], [[7], -2.0]]},
    "bias_of_two": {"sequence_bias": [[[3], 1.5], [[7, 9], 4.0]]},
    "bias_of_two_then_repetition": {
        "sequence_bias": [[[7, 9], 4.0]],
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 2,
    },
    "min_length": {"min_length": 16},
    "min_new_tokens": {"min_new_tokens": 7},
    "min_both": {"min_length": 12, "min_new_tokens": 5},
    "eos": {"eos_token_id": [EOS, 12, 20]},
    "max_length": {"max_length": 14, "max_new_tokens": None},
    "forced_eos": {"forced_eos_token_id": 8},
    "suppress": {"suppress_tokens": [1, 2, 3, 4]},
    "begin_suppress": {"begin_suppress_tokens": list(range(0, VOCAB, 2))},
    "decay": {"exponential_decay_length_penalty": (2, 1.4)},
    "remove_invalid": {"remove_invalid_values": True},
    "renormalize": {"renormalize_logits": True, "repetition_penalty": 1.2},
    "encoder_repetition": {"encoder_repetition_penalty": 1.5},
    "encoder_no_repeat": {"encoder_no_repeat_ngram_size": 2},
    "watermark": {"watermarking_config": WatermarkingConfig(bias=2.0)},
    "watermark_selfhash": {
        "watermarking_config": WatermarkingConfig(bias=2.0, seeding_scheme="selfhash"),
        "max_new_tokens": 4,
    },
    "own_processor": {"logits_processor": LogitsProcessorList([OddsOff()])},
    "own_after_penalties": {
        "repetition_penalty": 1.2,
        "suppress_tokens": [4],
        "logits_processor": LogitsProcessorList([OddsOff()]),
    },
    "prefix_function": {"prefix_allowed_tokens_fn": allowed},
    "penalties_and_bans": {
        "sequence_bias": [[[3], 1.5]],
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[9]],
        "min_new_tokens": 4,
        "suppress_tokens": [11],
    },
}
SAMPLED: dict[str, dict[str, Any]] = {
    "plain": {"top_k": 0},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 4},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.2},
    "typical": {"typical_p": 0.6},
    "epsilon": {"epsilon_cutoff": 0.03},
    "eta": {"eta_cutoff": 0.05},
    "top_h": {"top_h": 0.5},
    "all": {"temperature": 1.4, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "temperature": 1.2},
    "min_new_tokens": {"min_new_tokens": 9, "top_p": 0.9},
    "bad_words": {"bad_words_ids": [[3], [9, 4]], "temperature": 2.0},
    "typical_after_top_p": {"top_p": 0.9, "typical_p": 0.8, "repetition_penalty": 1.1},
    "renormalize": {"renormalize_logits": True, "top_k": 9},
    "watermark": {"watermarking_config": WatermarkingConfig(bias=1.5), "top_k": 12},
    "own_processor": {"logits_processor": LogitsProcessorList([OddsOff()]), "top_p": 0.8},
    "decay": {"exponential_decay_length_penalty": (3, 1.2)},
}


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_model("llama", vocab_size=VOCAB)


def generate(model: Any, ids: torch.Tensor, options: dict[str, Any], **more: Any) -> Any:
    defaults: dict[str, Any] = {
        "max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": EOS, "do_sample": False,
        "return_dict_in_generate": True, "output_scores": True, "output_logits": True,
        "attention_mask": (ids != 0).long(),
    }  # fmt: skip
    return model.generate(ids, **{**defaults, **options, **more})


def ours(model: Any, ids: torch.Tensor, options: dict[str, Any], drafter: Any, **more: Any) -> Any:
    call = mv.hf.speculative(drafter, seed=more.pop("seed", 3), stats=more.pop("stats", None))
    return generate(model, ids, options, custom_generate=call, **more)


def check_equal(found: Any, expected: Any, width: int) -> None:
    assert torch.equal(found.sequences, expected.sequences)
    assert len(found.scores) == len(expected.scores) == found.sequences.shape[1] - width
    for name in ("scores", "logits"):
        for one, other in zip(getattr(found, name), getattr(expected, name), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Generation]:
    """Every generation of the decoder from here on."""
    seen: list[Generation] = []
    original = Decoder.generate

    def spy(self: Decoder, *args: Any, **options: Any) -> Generation:
        seen.append(original(self, *args, **options))
        return seen[-1]

    monkeypatch.setattr(Decoder, "generate", spy)
    return seen


@pytest.mark.parametrize("case", GREEDY)
def test_greedy_equals_generate(case: str, llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, options = prompt(), GREEDY[case]
    expected = generate(llama, ids, options)
    text = expected.sequences[0].tolist()
    seen = watched(monkeypatch)
    for drafter in (TreeDrafter(PARENTS, text=text), mv.drafters.NGram()):
        found = ours(llama, ids, options, drafter)
        check_equal(found, expected, ids.shape[1])
        ends_with_eos = text[-1] in torch.tensor(options.get("eos_token_id", EOS)).reshape(-1)
        assert seen[-1].finish_reasons == ["stop" if ends_with_eos else "length"]
    assert seen[0].stats.accepted > 0


@pytest.mark.parametrize("case", SAMPLED)
def test_sampled_tokens_come_from_the_processed_rows(
    case: str, llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched(monkeypatch)
    plain = generate(llama, prompt(), {})
    drafter = TreeDrafter(PARENTS, text=plain.sequences[0].tolist())
    found = ours(llama, prompt(), SAMPLED[case], drafter, do_sample=True)
    tokens = found.sequences[0, 9:]
    rows = torch.log_softmax(torch.cat(found.scores).double(), dim=-1)
    wanted = rows[range(len(tokens)), tokens]
    np.testing.assert_allclose(seen[0].logprobs[0], wanted.numpy(), atol=1e-5)


def padded_batch() -> torch.Tensor:
    rows = [prompt(length, seed=length) for length in (9, 4, 7)]
    ids = torch.zeros((3, 9), dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, 9 - row.shape[1] :] = row
    return ids


BATCHED = (
    "repetition_penalty", "no_repeat_2", "bad_words_of_two", "bias_of_two_then_repetition",
    "min_length", "min_new_tokens", "forced_eos", "begin_suppress", "decay", "watermark",
    "encoder_repetition", "encoder_no_repeat", "own_processor", "prefix_function",
)  # fmt: skip


@pytest.mark.parametrize("case", BATCHED)
def test_padded_batches_equal_generate(case: str, llama: Any) -> None:
    ids = padded_batch()
    expected = generate(llama, ids, GREEDY[case])
    found = ours(llama, ids, GREEDY[case], mv.drafters.NGram())
    assert torch.equal(found.sequences, expected.sequences)
    ended = torch.zeros(3, dtype=torch.bool)
    for step, (one, other) in enumerate(zip(found.scores, expected.scores, strict=True)):
        # What the library computes for rows that have ended is of padding.
        torch.testing.assert_close(one[~ended], other[~ended], atol=1e-5, rtol=1e-5)
        ended |= expected.sequences[:, 9 + step] == EOS


def test_several_sequences_of_one_prompt_obey_the_settings(llama: Any) -> None:
    options = {"no_repeat_ngram_size": 1, "num_return_sequences": 3, "max_new_tokens": 8}
    found = ours(llama, prompt(), options, mv.drafters.NGram(), do_sample=True)
    rows = found.sequences[:, 9:].tolist()
    assert len({tuple(row) for row in rows}) == 3
    for row in rows:
        assert not set(row) & set(prompt()[0].tolist())
        assert len(set(row)) == 8 or EOS in row


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    letters = string.ascii_letters[:VOCAB]
    model = models.BPE({letter: token for token, letter in enumerate(letters)}, [])
    words = Tokenizer(model)
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def test_stop_strings_cut_in_mid_path(llama: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    free = generate(llama, prompt(), {"eos_token_id": None}).sequences[0].tolist()
    strings = [tokenizer.decode(free[13:15])]
    plain = {"eos_token_id": None, "stop_strings": strings, "tokenizer": tokenizer}
    expected = generate(llama, prompt(), plain)
    assert 9 < expected.sequences.shape[1] < len(free)
    # `generate` keeps `tokenizer=` from custom code, and so cannot build the criterion itself.
    options = {"eos_token_id": None, "stopping_criteria": [StopStringCriteria(tokenizer, strings)]}
    check_equal(ours(llama, prompt(), options, ScriptDrafter(free, 8)), expected, 9)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"guidance_scale": 1.5}, "guidance_scale brings .* UnbatchedClassifierFreeGuidance"),
        (
            {"watermarking_config": SynthIDTextWatermarkingConfig(5, [654, 400])},
            "watermarking_config brings .* SynthIDText",
        ),
    ],
)
def test_processors_that_keep_state_are_refused_by_name(
    llama: Any, options: dict[str, Any], name: str
) -> None:
    with pytest.raises(mv.errors.ParamsError, match=name):
        ours(llama, prompt(), options, mv.drafters.NGram())


class ForkingBan(LogitsProcessor):
    """Bans each token of the text once it has been told of it."""

    def __init__(self, gone: frozenset[int]) -> None:
        self.gone = gone

    def fork(self) -> ForkingBan:
        return ForkingBan(self.gone)

    def accept(self, token: int) -> None:
        self.gone |= {token}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, torch.tensor(sorted(self.gone)), -torch.inf)


def test_users_processors_with_state_are_forked_along_paths(llama: Any) -> None:
    processor = ForkingBan(frozenset(prompt()[0].tolist()))
    options = {"logits_processor": LogitsProcessorList([processor])}
    expected = generate(llama, prompt(), {"no_repeat_ngram_size": 1, "max_new_tokens": 8})
    text = expected.sequences[0].tolist()
    found = ours(llama, prompt(), options, TreeDrafter(PARENTS, text=text), max_new_tokens=8)
    check_equal(found, expected, prompt().shape[1])
    assert processor.gone == frozenset(prompt()[0].tolist())
