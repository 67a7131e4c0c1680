"""Penalties, processors and top log-probabilities of whole generations and of requests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.verifier import reference
from tests.models import VOCAB, TreeDrafter, prompt, tiny_model

PARENTS = [-1, 0, 0, 0, 1, 1, 2, 5, 0]
PENALTIES = mv.SamplingParams(
    temperature=0.0, repetition_penalty=1.2, presence_penalty=0.4, frequency_penalty=0.3,
    no_repeat_ngram_size=2, logit_bias={3: 1.0}, banned=[7], min_new_tokens=5, stop_ids=[9],
)  # fmt: skip


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_model("llama")


def penalised_greedy(model: Any, ids: torch.Tensor, params: mv.SamplingParams, count: int) -> Any:
    """Token by token, each row penalised by the plain twin."""
    tokens = ids[0].tolist()
    while len(tokens) < ids.shape[1] + count:
        with torch.no_grad():
            row = model(torch.tensor([tokens])).logits[0, -1].numpy()
        row = reference.penalise(row, tokens, ids.shape[1], params)
        tokens.append(int(row.argmax()))
        if tokens[-1] in params.stop_ids:
            break
    return tokens


def test_every_token_is_penalised_by_its_own_text(llama: Any) -> None:
    expected = penalised_greedy(llama, prompt(), PENALTIES, 20)
    for drafter in (None, TreeDrafter(PARENTS, text=expected), mv.drafters.NGram()):
        decoder = Decoder(llama, drafter, PENALTIES)
        found = decoder.generate(prompt(), max_new_tokens=20)
        assert found.sequences[0].tolist() == expected


def test_min_new_tokens_holds_back_eos_and_stop_ids_alike(llama: Any) -> None:
    free = Decoder(llama, None, mv.SamplingParams(temperature=0.0))
    tokens = free.generate(prompt(), max_new_tokens=12).tokens[0]
    params = mv.SamplingParams(temperature=0.0, min_new_tokens=6, stop_ids=[tokens[2]])
    found = Decoder(llama, TreeDrafter(PARENTS, text=tokens), params).generate(
        prompt(), max_new_tokens=12, eos_token_id=[tokens[1], 10**6]
    )
    assert found.tokens[0][0] == tokens[0]
    assert not {tokens[1], tokens[2]} & set(found.tokens[0][:6])
    stop = Decoder(llama, None, mv.SamplingParams(temperature=0.0, stop_ids=[tokens[2]]))
    stopped = stop.generate(prompt(), max_new_tokens=12)
    assert stopped.tokens[0] == tokens[: tokens.index(tokens[2]) + 1]
    assert stopped.finish_reasons == ["stop"]


def test_requests_have_their_own_params_and_processors(llama: Any) -> None:
    def no_token_twice(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.scatter(1, ids, -torch.inf)

    decoder = Decoder(llama, mv.drafters.NGram(), mv.SamplingParams(temperature=0.0))
    plain = decoder.submit(prompt(), max_new_tokens=10, eos_token_id=())
    bare = decoder.submit(prompt(), max_new_tokens=10, eos_token_id=(), params=PENALTIES)
    own = decoder.submit(
        prompt(), max_new_tokens=10, eos_token_id=(), processors=[no_token_twice], top_logprobs=2
    )
    results = {}
    while decoder.num_unfinished:
        decoder.step()
        results |= decoder.results()
    assert results[bare].sequences[0].tolist() == penalised_greedy(llama, prompt(), PENALTIES, 10)
    assert results[plain].tokens[0] != results[own].tokens[0]
    text = results[own].sequences[0].tolist()
    assert len(set(text[9:])) == 10
    assert not set(text[9:]) & set(text[:9])
    top = results[own].top_logprobs
    assert top is not None
    assert top[0].tokens.shape == (10, 2)
    assert results[plain].top_logprobs is None


def test_top_logprobs_of_a_batch_are_those_of_the_raw_rows(llama: Any) -> None:
    rows = [prompt(9)[0].tolist(), prompt(5, seed=5)[0].tolist()]
    params = mv.SamplingParams(repetition_penalty=1.3, temperature=0.7)
    decoder = Decoder(llama, mv.drafters.NGram(), params)
    found = decoder.generate(rows, max_new_tokens=7, seed=1, top_logprobs=3, output_logits=True)
    assert found.top_logprobs is not None
    assert found.logits is not None
    for tokens, top, logits in zip(found.tokens, found.top_logprobs, found.logits, strict=True):
        raw = torch.log_softmax(logits.double(), dim=-1)
        best = raw.topk(3)
        np.testing.assert_array_equal(top.tokens, best.indices.numpy())
        np.testing.assert_allclose(top.raw, best.values.numpy(), atol=1e-5)
        np.testing.assert_allclose(top.emitted, raw[range(7), tokens].numpy(), atol=1e-5)


def test_lossy_acceptance_goes_with_penalties(llama: Any) -> None:
    params = mv.SamplingParams(repetition_penalty=1.3, banned=[7, 31])
    lossy = mv.lossy.threshold(0.2)
    decoder = Decoder(llama, mv.drafters.NGram(), params, lossy=lossy)
    found = decoder.generate(prompt(), max_new_tokens=12, seed=2)
    assert not {7, 31} & set(found.tokens[0])
    assert not found.stats.lossless


class Told:
    """Keeps what it was told; bans that."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def fork(self) -> Told:
        return Told(list(self.tokens))

    def accept(self, token: int) -> None:
        self.tokens.append(token)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert ids[0, -len(self.tokens) :].tolist() == self.tokens or not self.tokens
        return scores.index_fill(1, torch.tensor(self.tokens, dtype=torch.int64), -torch.inf)


class OnlyBack(Told):
    fork = None  # type: ignore[assignment]

    def rollback(self, n: int) -> None:
        del self.tokens[-n:]


def test_processors_with_state_are_forked_for_each_row(llama: Any) -> None:
    told = Told([])
    rows = [prompt(9)[0].tolist(), prompt(5, seed=5)[0].tolist()]
    decoder = Decoder(llama, mv.drafters.NGram(), mv.SamplingParams(temperature=0.0))
    found = decoder.generate(rows, max_new_tokens=8, processors=[told])
    assert all(len(set(tokens)) == 8 for tokens in found.tokens)
    assert told.tokens == []


@pytest.mark.parametrize(
    ("processors", "text"),
    [
        ([[], [], []], "found 3 lists, wanted 2"),
        ([7], r"processors\[0\]"),
    ],
)
def test_processors_that_do_not_fit_are_refused(
    llama: Any, processors: list[Any], text: str
) -> None:
    decoder = Decoder(llama)
    with pytest.raises(mv.errors.ParamsError, match=text):
        decoder.generate([[1, 2], [3]], max_new_tokens=2, processors=processors)


def test_what_a_processor_raises_ends_the_request_alone(llama: Any) -> None:
    def fail(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError

    decoder = Decoder(llama)
    bad = decoder.submit([1, 2], max_new_tokens=3, processors=[fail])
    good = decoder.submit([1, 2], max_new_tokens=3)
    while decoder.num_unfinished:
        decoder.step()
    results = decoder.results()
    assert isinstance(results[bad].errors[0], ZeroDivisionError)
    assert len(results[good].tokens[0]) == 3
    assert max(results[good].tokens[0]) < VOCAB
