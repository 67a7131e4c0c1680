"""History, masks and processors of a batch: as `verify` takes them, sequence by sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mtp_verify as mv

VOCAB = 40
HISTORIES = [[3, 1, 4, 1], [7], [2, 2, 9]]
PROMPT_LENS = [2, 1, 0]
PARAMS = [
    mv.SamplingParams(repetition_penalty=1.4, no_repeat_ngram_size=2),
    mv.SamplingParams(temperature=0.5, logit_bias={3: 4.0}, banned=[5]),
    mv.SamplingParams(presence_penalty=1.0, frequency_penalty=0.5),
]


def last_banned(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
    scores = scores.copy()
    np.put_along_axis(scores, ids[:, -1:], -np.inf, axis=1)
    return scores


def batch() -> tuple[list[mv.Draft], list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(3)
    drafts = [
        mv.Draft(mv.TokenTree([-1, 0, 0, 1]), [history[-1], 1, 2, 3]) for history in HISTORIES
    ]
    logits = [rng.standard_normal((4, VOCAB)).astype(np.float32) for _ in drafts]
    masks = [rng.integers(-(2**31), 2**31, (4, 2), np.int32) for _ in drafts]
    return drafts, logits, masks


def first_banned(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
    scores = scores.copy()
    np.put_along_axis(scores, ids[:, :1], -np.inf, axis=1)
    return scores


@pytest.mark.parametrize("processors", [[], [last_banned], [[], [last_banned], [first_banned]]])
@pytest.mark.parametrize("tops", [0, 3, [0, 2, 40]])
def test_verdicts_are_those_of_each_alone(processors: list[Any], tops: int | list[int]) -> None:
    drafts, logits, masks = batch()
    is_own = bool(processors) and isinstance(processors[0], list)
    for seed in range(5):
        seeds = [mv.derive_seed(seed, b) for b in range(3)]
        found = mv.verify_batch(
            drafts, logits, PARAMS, seeds=seeds, positions=[3, 0, 2], histories=HISTORIES,
            prompt_lens=PROMPT_LENS, bitmasks=[masks[0], None, masks[2]], processors=processors,
            top_logprobs=tops,
        )  # fmt: skip
        for b, mask in enumerate([masks[0], None, masks[2]]):
            alone = mv.verify(
                drafts[b], logits[b], PARAMS[b], seed=seeds[b], position=len(HISTORIES[b]) - 1,
                history=HISTORIES[b], prompt_len=PROMPT_LENS[b], bitmask=mask,
                processors=processors[b] if is_own else processors,
                top_logprobs=tops[b] if isinstance(tops, list) else tops,
            )  # fmt: skip
            cut = found.cut([1, 1, 1])[b]
            for one, other in [(found[b], alone), (cut, alone.cut(1))]:
                assert one.tokens.tolist() == other.tokens.tolist()
                np.testing.assert_array_equal(one.logprobs, other.logprobs)
                assert (one.top_logprobs is None) == (other.top_logprobs is None)
                for mine, theirs in zip(
                    one.top_logprobs or (), other.top_logprobs or (), strict=True
                ):
                    np.testing.assert_array_equal(mine, theirs)


def test_biases_and_bans_need_no_history() -> None:
    drafts, logits, _ = batch()
    params = mv.SamplingParams(banned=range(1, VOCAB))
    found = mv.verify_batch(drafts, logits, params, seeds=[1, 2, 3], positions=[3, 0, 2])
    assert found.tokens.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("options", "sequence", "text"),
    [
        ({"params": PARAMS}, 0, "history: found None with repetition_penalty"),
        ({"histories": [None, [7, 7], None]}, 1, r"wanted position \+ 1 = 1"),
        ({"histories": HISTORIES, "prompt_lens": [0, 2, 0]}, 1, "prompt_len"),
        ({"bitmasks": [None, None, np.zeros((4, 1), np.int32)]}, 2, r"wanted \(4, 2\)"),
        ({"histories": HISTORIES[:2]}, None, "histories: found 2 entries, wanted 3"),
        ({"processors": [last_banned]}, 0, "history: found None with processors"),
        ({"processors": [[last_banned]]}, None, "processors: found 1 entries, wanted 3"),
        ({"top_logprobs": -1}, None, "top_logprobs: found -1"),
        ({"top_logprobs": [0, -1, 0]}, 1, "top_logprobs: found -1"),
        ({"top_logprobs": [0, 1]}, None, "top_logprobs: found 2 entries"),
        ({"top_logprobs": [0, 0, 41]}, 2, "at most the size of the vocabulary"),
    ],
)
def test_what_does_not_fit_names_the_sequence(
    options: dict[str, Any], sequence: int | None, text: str
) -> None:
    drafts, logits, _ = batch()
    with pytest.raises(mv.MtpVerifyError, match=text) as caught:
        mv.verify_batch(drafts, logits, seeds=[1, 2, 3], positions=[3, 0, 2], **options)
    assert caught.value.sequence == sequence


def test_what_a_processor_raises_comes_out_as_it_is() -> None:
    def fail(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError

    drafts, logits, _ = batch()
    with pytest.raises(ZeroDivisionError) as caught:
        mv.verify_batch(
            drafts, logits, seeds=[1, 2, 3], positions=[3, 0, 2], histories=HISTORIES,
            processors=[[last_banned], [fail], [fail]],
        )  # fmt: skip
    assert caught.value.sequence == 1
