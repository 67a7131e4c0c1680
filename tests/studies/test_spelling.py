"""The made-up language, and a model that learns it."""

from __future__ import annotations

import torch

from studies.spelling import (
    VOCAB_SIZE,
    Spelling,
    as_text,
    learn,
    next_token_loss,
    small_target,
)


def test_texts_are_words_that_may_follow_each_other() -> None:
    language = Spelling()
    texts = language.write(20, 50, seed=1)
    assert texts.shape == (20, 50)
    assert set(texts.flatten().tolist()) <= set(range(VOCAB_SIZE))
    assert all(language.allows(as_text(text)) for text in texts)
    assert torch.equal(texts, language.write(20, 50, seed=1))
    assert not torch.equal(texts, language.write(20, 50, seed=2))
    assert not language.allows("no such words ")


def test_the_likeliest_followers_lead_once_around_all_words() -> None:
    language = Spelling()
    word, met = language.words[0], set()
    while word not in met:
        met.add(word)
        word = language.followers[word][0]
    assert len(met) == len(language.words)


def test_a_model_learns_and_is_watched() -> None:
    model = small_target(width=32, num_layers=1, intermediate_size=64)
    losses: list[float] = []
    steps: list[int] = []

    def loss_of(tokens: torch.Tensor, share: float) -> torch.Tensor:
        assert 0.0 <= share < 1.0
        loss = next_token_loss(model(tokens, use_cache=False).logits, tokens)
        losses.append(float(loss.detach()))
        return loss

    learn(model, loss_of, steps=12, watch=steps.append)
    assert steps == list(range(13))
    assert losses[-1] < losses[0] - 0.2
