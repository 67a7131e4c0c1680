"""What settings of `generate` are made of: a model, prompts, processors, criteria, streamers."""

from __future__ import annotations

import functools
import string
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import DynamicCache, PreTrainedTokenizerFast
from transformers.generation import LogitsProcessor, StoppingCriteria, TextStreamer

from mtp_verify.caches.names import cache_name
from tests.models import prompt, tiny_model

__all__ = ["EOS", "VOCAB", "Context", "High", "Length", "OddsOff", "Pieces", "Tokens", "Turning"]

VOCAB = 48  # a watermark's self-hash looks at the 40 most likely tokens
EOS = 5


class Context:
    """What settings are made of: a model, its prompt, and its greedy text."""

    @functools.cached_property
    def model(self) -> Any:
        return tiny_model("llama", vocab_size=VOCAB)

    @functools.cached_property
    def assistant(self) -> Any:
        return tiny_model("llama", seed=5, vocab_size=VOCAB)

    @functools.cached_property
    def ids(self) -> torch.Tensor:
        return prompt()

    @functools.cached_property
    def padded(self) -> torch.Tensor:
        """(3, 9), rows of 9, 4 and 7 tokens, padded on the left."""
        rows = [prompt(length, seed=length) for length in (9, 4, 7)]
        return torch.cat([torch.nn.functional.pad(row, (9 - row.shape[1], 0)) for row in rows])

    @functools.cached_property
    def free(self) -> list[int]:
        """The prompt and 12 greedy tokens."""
        made: list[int] = self.model.generate(
            self.ids, attention_mask=torch.ones_like(self.ids), max_new_tokens=12, do_sample=False,
            pad_token_id=0, eos_token_id=None,
        )[0].tolist()  # fmt: skip
        return made

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        letters = string.ascii_letters[:VOCAB]
        words = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
        words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        words.decoder = decoders.ByteLevel()
        return PreTrainedTokenizerFast(tokenizer_object=words)

    def prefilled(self, length: int = 5) -> dict[str, Any]:
        """A cache that holds the first tokens of the prompt, under the name of this version."""
        name = cache_name(self.model.forward) or ""
        cache = DynamicCache(config=self.model.config)
        with torch.no_grad():
            self.model(self.ids[:, :length], **{name: cache})
        return {name: cache}

    def cache(self, made: Any) -> dict[str, Any]:
        return {cache_name(self.model.forward) or "": made}


class OddsOff(LogitsProcessor):
    """Takes from each token that stands in the text, the more the later it stands."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        weights = torch.arange(input_ids.shape[1]).expand_as(input_ids) / 10
        return scores.scatter_add(1, input_ids, -weights)


class Turning(LogitsProcessor):
    """Moves the row by a token more at each of its calls."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return scores.roll(self.count, 1)


class High(StoppingCriteria):
    """Ends a text after a token whose score is high."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_options: Any) -> torch.Tensor:
        return scores[-1].max(-1).values > 3.0


class Length(StoppingCriteria):
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_options: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


class Pieces(TextStreamer):
    """A streamer of text that keeps what it would print."""

    def __init__(self, tokenizer: Any, **options: Any) -> None:
        super().__init__(tokenizer, **options)
        self.shown = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.shown += text + ("." if stream_end else "")


class Tokens:
    """A streamer of one's own: anything with `put` and `end`."""

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.shown += value.reshape(-1).tolist()

    def end(self) -> None:
        self.shown.append("end")
