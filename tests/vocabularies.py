"""Tiny tokenizers: of a few given tokens, or trained on this project's own pages."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Sequence

_PAGES = Path(__file__).parents[1] / "docs"


def of_words(words: Sequence[str], *, end: str | None = None) -> Any:
    """A byte-level tokenizer of single letters, pairs of them, and maybe an end token."""
    merges = [(word[0], word[1]) for word in words if len(word) == 2]
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=numbers, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if end is not None:
        tokenizer.add_special_tokens([AddedToken(end, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end)


@cache
def trained(kind: str, size: int) -> Any:
    """A tokenizer of `size` tokens: "bytes" (as GPT-2's) or "pieces" (as SentencePiece's)."""
    specials = ["<s>", "</s>", "<only here>"] if kind == "pieces" else ["<end>"]
    tokenizer = Tokenizer(models.BPE(byte_fallback=kind == "pieces"))
    alphabet: list[str] = []
    if kind == "pieces":
        specials += [f"<0x{byte:02X}>" for byte in range(256)]
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    else:
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    pages = ("explanation/glossary.md", "reference/rules.md")
    tokenizer.train([str(_PAGES / page) for page in pages], trainer)
    if kind == "bytes":
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    # What the trainer calls special is one in name only: byte tokens are ordinary.
    text = Tokenizer(
        models.BPE(
            vocab=tokenizer.get_vocab(with_added_tokens=False),
            merges=_merges(tokenizer),
            byte_fallback=True,
        )
    )
    text.pre_tokenizer, text.decoder = tokenizer.pre_tokenizer, tokenizer.decoder
    text.add_special_tokens([AddedToken(word, special=True) for word in specials[:3]])
    return PreTrainedTokenizerFast(tokenizer_object=text, bos_token="<s>", eos_token="</s>")


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(merge) for merge in merges]
