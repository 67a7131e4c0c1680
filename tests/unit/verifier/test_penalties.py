"""Penalties, biases, bans and masks: per node, equal to the libraries' own, and named errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

import mtp_verify as mv
from mtp_verify.verifier import reference

VOCAB, PROMPT_LEN = 40, 6
HISTORY = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3]
#       3
#     / | \        the root is HISTORY's last token
#    1  9  4
#   / \     \
#  4   5     1
#  |         |
#  1         5
PARENTS = [-1, 0, 0, 0, 1, 1, 3, 4, 6]
TOKENS = [3, 1, 9, 4, 4, 5, 1, 1, 5]


def draft(law: str = "deterministic", **options: object) -> mv.Draft:
    return mv.Draft(mv.TokenTree(PARENTS), TOKENS, law, **options)


def noise_rows(seed: int = 0, vocab: int = VOCAB) -> np.ndarray:
    return (3 * np.random.default_rng(seed).standard_normal((len(PARENTS), vocab))).astype(
        np.float32
    )


def prefix(node: int) -> list[int]:
    return [*HISTORY, *(TOKENS[n] for n in mv.TokenTree(PARENTS).path(node))]


def rows_seen(logits: np.ndarray, params: mv.SamplingParams) -> np.ndarray:
    """The rows of all nodes after the penalties, as a processor is given them."""
    seen: dict[tuple[int, ...], np.ndarray] = {}

    def spy(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        seen.update(zip(map(tuple, ids.tolist()), scores.copy(), strict=True))
        return np.zeros_like(scores)  # every node is reached

    mv.expected_accepted(
        draft(), logits, params, history=HISTORY, prompt_len=PROMPT_LEN, processors=[spy]
    )
    return np.stack([seen[tuple(prefix(node))] for node in range(len(PARENTS))])


TRANSFORMERS = {
    "repetition": (
        {"repetition_penalty": 1.3},
        [hf.RepetitionPenaltyLogitsProcessor(1.3)],
    ),
    "ngram": ({"no_repeat_ngram_size": 2}, [hf.NoRepeatNGramLogitsProcessor(2)]),
    "longer ngram": ({"no_repeat_ngram_size": 3}, [hf.NoRepeatNGramLogitsProcessor(3)]),
    "single tokens": ({"no_repeat_ngram_size": 1}, [hf.NoRepeatNGramLogitsProcessor(1)]),
    "bias": (
        {"logit_bias": {7: 1.5, 0: -2.25, 39: 0.1}},
        [hf.SequenceBiasLogitsProcessor([[[7], 1.5], [[0], -2.25], [[39], 0.1]])],
    ),
    "banned": ({"banned": [2, 38]}, [hf.SuppressTokensLogitsProcessor([2, 38])]),
    "min new tokens": (
        {"min_new_tokens": 12, "stop_ids": [5, 30]},
        [hf.MinNewTokensLengthLogitsProcessor(PROMPT_LEN, 12, [5, 30])],
    ),
    "all": (
        {
            "logit_bias": {7: 1.5, 5: -2.25},
            "repetition_penalty": 0.7,
            "no_repeat_ngram_size": 2,
            "banned": [2],
            "min_new_tokens": 11,
            "stop_ids": [30],
        },
        [
            hf.SequenceBiasLogitsProcessor([[[7], 1.5], [[5], -2.25]]),
            hf.RepetitionPenaltyLogitsProcessor(0.7),
            hf.NoRepeatNGramLogitsProcessor(2),
            hf.SuppressTokensLogitsProcessor([2]),
            hf.MinNewTokensLengthLogitsProcessor(PROMPT_LEN, 11, [30]),
        ],
    ),
}


@pytest.mark.parametrize("case", TRANSFORMERS, ids=lambda name: name.replace(" ", "-"))
def test_rows_equal_transformers_processors_bit_for_bit(case: str) -> None:
    fields, processors = TRANSFORMERS[case]
    logits = noise_rows()
    found = rows_seen(logits, mv.SamplingParams(**fields))
    assert not np.array_equal(found, logits)
    for node, row in enumerate(found):
        scores = torch.from_numpy(logits[node : node + 1].copy())
        for processor in processors:
            scores = processor(torch.tensor([prefix(node)]), scores)
        np.testing.assert_array_equal(row, scores[0].numpy(), err_msg=f"node {node}")


def vllm_penalties(
    logits: torch.Tensor, prompt: list[int], output: list[int], theta: float, f: float, p: float
) -> torch.Tensor:
    """The formulas of vllm.model_executor.layers.utils.apply_penalties, for one sequence."""
    counts = torch.bincount(torch.tensor(output, dtype=torch.int64), minlength=VOCAB)
    in_prompt = torch.bincount(torch.tensor(prompt), minlength=VOCAB) > 0
    penalties = torch.where(in_prompt | (counts > 0), torch.tensor(theta), torch.tensor(1.0))
    logits = logits * torch.where(logits > 0, 1.0 / penalties, penalties)
    logits = logits - torch.tensor(f) * counts
    return logits - torch.tensor(p) * (counts > 0)


@pytest.mark.parametrize(
    ("theta", "frequency", "presence"),
    [(1.3, 0.0, 0.0), (1.0, 0.7, 0.0), (1.0, 0.0, -0.4), (0.8, -0.3, 1.1)],
)
def test_rows_equal_vllms_formulas_bit_for_bit(
    theta: float, frequency: float, presence: float
) -> None:
    params = mv.SamplingParams(
        repetition_penalty=theta, frequency_penalty=frequency, presence_penalty=presence,
        preset="vllm",
    )  # fmt: skip
    logits = noise_rows(1)
    for node, row in enumerate(rows_seen(logits, params)):
        tokens = prefix(node)
        wanted = vllm_penalties(
            torch.from_numpy(logits[node]), tokens[:PROMPT_LEN], tokens[PROMPT_LEN:],
            theta, frequency, presence,
        )  # fmt: skip
        np.testing.assert_array_equal(row, wanted.numpy(), err_msg=f"node {node}")


ALL = {
    "repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2,
    "no_repeat_ngram_size": 2, "logit_bias": {5: 2.0, 9: 1.0}, "banned": [8],
    "min_new_tokens": 11, "stop_ids": [1],
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("preset", ["transformers", "vllm"])
@pytest.mark.parametrize("shaping", [{}, {"temperature": 0.0}, {"top_k": 5, "top_p": 0.8}])
def test_verdicts_are_those_of_rows_penalised_by_hand(
    dtype: type, preset: str, shaping: dict[str, float]
) -> None:
    # The vocabulary crosses a block's end, and tokens concerned stand on both sides of it.
    vocab = 2048 + 30
    fields = {**ALL, "banned": [8, 2047, 2048], "logit_bias": {5: 2.0, 2077: 9.0}}
    params = mv.SamplingParams(**fields, **shaping, preset=preset)
    plain = mv.SamplingParams(**shaping, preset=preset)
    probs = np.full((4, vocab), 1 / vocab)
    drafts = [
        draft(),
        mv.Draft(mv.TokenTree(PARENTS), TOKENS, "swor", probs=probs, rows=[0, 1, 2, 3, *[0] * 5]),
    ]
    for seed in range(6):
        logits = noise_rows(seed, vocab).astype(dtype)
        edited = np.stack(
            [
                reference.penalise(logits[node], prefix(node), PROMPT_LEN, params)
                for node in range(len(PARENTS))
            ]
        )
        for drafted in drafts:
            address = {"seed": seed, "position": len(HISTORY) - 1}
            found = mv.verify(
                drafted, logits, params, history=HISTORY, prompt_len=PROMPT_LEN, **address
            )
            wanted = mv.verify(drafted, edited, plain, **address)
            assert found.tokens.tolist() == wanted.tokens.tolist()
            np.testing.assert_array_equal(found.logprobs, wanted.logprobs)
            mean = mv.expected_accepted(
                drafted, logits, params, history=HISTORY, prompt_len=PROMPT_LEN
            )
            assert mean == mv.expected_accepted(drafted, edited, plain)


def pack(allowed: np.ndarray) -> np.ndarray:
    bits = np.zeros((len(allowed), -(-allowed.shape[1] // 32) * 32), bool)
    bits[:, : allowed.shape[1]] = allowed
    return np.packbits(bits, axis=1, bitorder="little").view(np.int32)


@pytest.mark.parametrize("as_torch", [False, True])
@pytest.mark.parametrize("fields", [{}, ALL, {"temperature": 0.0}])
def test_a_mask_is_minus_infinity_per_node(fields: dict[str, object], *, as_torch: bool) -> None:
    vocab = 2048 + 30
    params = mv.SamplingParams(**fields)
    options = {"history": HISTORY, "prompt_len": PROMPT_LEN}
    for seed in range(6):
        logits = noise_rows(seed, vocab)
        allowed = np.random.default_rng(seed).random(logits.shape) < 0.3
        allowed[1:4] = True  # whole rows are left alone
        masked = np.where(allowed, logits, -np.inf).astype(np.float32)
        mask = pack(allowed)
        found = mv.verify(
            draft(), torch.from_numpy(logits) if as_torch else logits, params,
            seed=seed, position=15, bitmask=torch.from_numpy(mask) if as_torch else mask, **options,
        )  # fmt: skip
        wanted = mv.verify(draft(), masked, params, seed=seed, position=15, **options)
        assert found.tokens.tolist() == wanted.tokens.tolist()
        np.testing.assert_array_equal(found.logprobs, wanted.logprobs)
        nodes = [0, *found.path.tolist()]
        assert all(allowed[n, t] for n, t in zip(nodes, found.tokens, strict=True))


def test_a_mask_covers_nan_and_a_row_without_a_token_names_its_node() -> None:
    logits = np.zeros((2, 40), np.float32)
    logits[0, 3] = np.nan
    allowed = np.ones((2, 40), bool)
    allowed[0, 3], allowed[1] = False, False
    allowed[0, :5] = [True, False, False, False, False]
    allowed[0, 5:] = False
    with pytest.raises(mv.errors.NumericsError, match="no token is left") as caught:
        mv.verify(mv.Draft.chain([0]), logits, seed=0, position=0, bitmask=pack(allowed))
    assert caught.value.row == 1
    everything = mv.SamplingParams(banned=range(40))
    with pytest.raises(mv.errors.NumericsError, match="target row 0"):
        mv.verify(mv.Draft.chain([]), np.zeros((1, 40), np.float32), everything, seed=0, position=0)


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (np.zeros((3, 2), np.int32), r"wanted \(2, 2\)"),
        (np.zeros((2, 1), np.int32), r"wanted \(2, 2\)"),
        (np.zeros((2, 2), np.int64), "int64"),
        (np.zeros((2, 4), np.int32)[:, ::2], "contiguous"),
        (np.zeros(4, np.int32), "nodes, words"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask: np.ndarray, text: str) -> None:
    with pytest.raises(mv.errors.DraftError, match=f"bitmask.*{text}"):
        mv.verify(
            mv.Draft.chain([0]), np.zeros((2, 40), np.float32), seed=0, position=0, bitmask=mask
        )


@pytest.mark.parametrize(
    ("fields", "options", "text"),
    [
        ({"repetition_penalty": 1.1}, {}, "history: found None with repetition_penalty"),
        ({"no_repeat_ngram_size": 2}, {}, "history: found None with no_repeat_ngram_size"),
        ({"presence_penalty": 1.0}, {"history": [1, 40]}, "token 40 at index 1"),
        ({"presence_penalty": 1.0}, {"history": [-1, 3]}, "token -1 at index 0"),
        ({"banned": [40]}, {}, "banned: found token 40"),
        ({"logit_bias": {41: 1.0}}, {}, "logit_bias: found token 41"),
        ({"frequency_penalty": 1.0}, {"history": [1, 2], "prompt_len": 3}, "prompt_len"),
        ({}, {"history": [1, 2, 3]}, r"wanted position \+ 1 = 2"),
    ],
)
def test_what_does_not_fit_is_named(
    fields: dict[str, object], options: dict[str, object], text: str
) -> None:
    logits = np.zeros((1, 40), np.float32)
    with pytest.raises(mv.errors.ParamsError, match=text):
        mv.verify(
            mv.Draft.chain([]), logits, mv.SamplingParams(**fields), seed=0, position=1, **options
        )


def test_a_history_that_does_not_end_with_the_root_is_refused() -> None:
    drafted = mv.Draft.chain([1], root=7)
    with pytest.raises(
        mv.errors.ParamsError, match=r"ends with token 3, wanted the root's token 7"
    ):
        mv.verify(drafted, np.zeros((2, 9), np.float32), seed=0, position=1, history=[7, 3])


def test_logits_are_not_modified() -> None:
    logits = noise_rows()
    before = logits.copy()
    mv.verify(
        draft(), logits, mv.SamplingParams(**ALL), seed=0, position=15, history=HISTORY,
        bitmask=np.full((len(PARENTS), 2), -2, np.int32),
    )  # fmt: skip
    np.testing.assert_array_equal(logits, before)
