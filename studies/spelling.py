"""A made-up written language, and a small model that has learned to write it.

Words are spelled letter by letter, and each word is followed by one of a few others. So the first
letters of a word are choices and its last ones follow from them, as in real text at this level: a
drafter that does not see the letters drafted so far has to guess which word it is in.
"""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["VOCAB_SIZE", "Spelling", "as_text", "learn", "next_token_loss", "small_target"]

_CONSONANTS, _VOWELS = "bcdfghjklmnpqrstvwxz", "aeiouy"
_ALPHABET = " " + _CONSONANTS + _VOWELS
VOCAB_SIZE = len(_ALPHABET)
_WORDS = 120
_SIZES = (2, 3, 4, 5, 6, 7)  # letters of a word
_SHARES = (0.6, 0.25, 0.1, 0.05)  # of the words that may follow one
_RATE = 4e-3
_TEXTS, _LENGTH = 32, 64  # of an update


class Spelling:
    """The language: a lexicon, and what may follow each word.

    Args:
        seed: of both.
    """

    def __init__(self, seed: int = 0) -> None:
        draw = random.Random(seed)
        words: dict[str, None] = {}
        while len(words) < _WORDS:
            start = draw.randrange(2)
            letters = (
                draw.choice((_CONSONANTS, _VOWELS)[(start + place) % 2])
                for place in range(draw.choice(_SIZES))
            )
            words["".join(letters)] = None
        self.words = tuple(words)
        # The likeliest follower leads once around all words: greedy text does not run in circles.
        self.followers = {
            word: [likeliest, *draw.sample(self.words, len(_SHARES) - 1)]
            for word, likeliest in zip(self.words, self.words[1:] + self.words[:1], strict=True)
        }

    def write(self, count: int, length: int, seed: int) -> torch.Tensor:
        """Texts, (count, length) int64; each begins with a word.

        Args:
            count: number of texts.
            length: letters and spaces of each.
            seed: of the draws.
        """
        draw = random.Random(seed)
        texts = []
        for _ in range(count):
            word = draw.choice(self.words)
            text = word
            while len(text) < length:
                word = draw.choices(self.followers[word], _SHARES)[0]
                text += " " + word
            texts.append([_ALPHABET.index(letter) for letter in text[:length]])
        return torch.tensor(texts)

    def allows(self, text: str) -> bool:
        """Whether every complete pair of words in a text is one of the language's."""
        words = text.split(" ")[:-1]
        return all(after in self.followers.get(word, ()) for word, after in pairwise(words))


def as_text(tokens: Any) -> str:
    """The letters of a sequence of tokens."""
    return "".join(_ALPHABET[int(token)] for token in tokens)


def small_target(
    *, width: int = 64, num_layers: int = 3, intermediate_size: int = 128, seed: int = 0
) -> Any:
    """A Llama of the language's vocabulary, not trained yet.

    Args:
        width: of the hidden states.
        num_layers: of it.
        intermediate_size: of its MLPs.
        seed: of the weights.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=width,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def learn(
    modules: torch.nn.Module,
    loss_of: Callable[[torch.Tensor, float], torch.Tensor],
    *,
    steps: int,
    seed: int = 0,
    watch: Callable[[int], None] | None = None,
) -> None:
    """Train on fresh text of the language.

    Args:
        modules: whose parameters are trained.
        loss_of: from texts (B, T) and the share of the steps that is done to a scalar.
        steps: number of updates; the rate rises over a twentieth of them and falls over the last
            half.
        seed: of the texts.
        watch: called with the number of updates done, before the first and after each.
    """
    language = Spelling()
    optimizer = torch.optim.AdamW(modules.parameters(), lr=_RATE, weight_decay=0.01)
    if watch is not None:
        watch(0)
    for step in range(steps):
        rate = min(1.0, (step + 1) / (steps / 20 + 1), 2 * (steps - step) / steps)
        optimizer.param_groups[0]["lr"] = _RATE * rate
        optimizer.zero_grad()
        loss = loss_of(language.write(_TEXTS, _LENGTH, seed * 1_000_003 + step), step / steps)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        if watch is not None:
            watch(step + 1)


def next_token_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The mean loss of logits (B, T, V) of texts (B, T)."""
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
