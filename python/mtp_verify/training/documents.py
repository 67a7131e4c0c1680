"""Prompts with a document in them: what the target wrote before is the text that a task is about.

A head that was trained on short questions has never seen a long input, nor an answer that copies,
translates or shortens one.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from mtp_verify.training.prompts import TASKS
from mtp_verify.training.shards import Shards

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mtp_verify.training.questions import Frame

__all__ = ["document_prompts", "read_documents"]

_MOST_TOGETHER = 4  # documents of one prompt
_LONGEST = 720  # tokens of them together
_SHORTEST = 24  # tokens of a document: less is an answer of a few words, and nothing to work on
_EXCERPT, _PASSAGE = "passage", 64  # a task of this word is about so many tokens of a document
_QUESTION = "\n\nQuestion:"


def read_documents(paths: Sequence[Path], ends: Sequence[int]) -> list[list[int]]:
    """Return the token ids of all answers in some shards, without `ends`, the ids that end them."""
    shards = Shards(paths)
    found = []
    for index in range(len(shards)):
        text = shards[index]
        answer = text.tokens[text.top_probs.sum(1) > 0].tolist()
        found.append([token for token in answer if token not in ends])
    return [document for document in found if len(document) >= _SHORTEST]


def document_prompts(
    documents: Sequence[Sequence[int]],
    count: int,
    encode: Callable[[str], Sequence[int]],
    frame: Frame,
    seed: int,
    *,
    room: int | None = None,
    is_open: bool = False,
) -> list[list[int]]:
    """Return the token ids of `count` prompts, each a task and one to four documents.

    None if there are no documents. `room` is the most tokens of a prompt: documents end there. With
    `is_open` the target is to complete the prompts: they end where a question about the documents
    begins, without the frame's closing ids.
    """

    def inner(text: str) -> list[int]:
        ids = list(encode(text)) if text else [*frame.opening, *frame.closing]
        return ids[len(frame.opening) : len(ids) - len(frame.closing)]

    generator, gap = random.Random(f"documents:{seed}"), inner("\n\n")
    prompts: list[list[int]] = []
    for _ in range(count if documents else 0):
        before, after = ("", _QUESTION) if is_open else generator.choice(TASKS).split("{}")
        is_excerpt = _EXCERPT in before
        number = 1 if is_excerpt else generator.randint(1, _MOST_TOGETHER)
        longest = generator.randint(_SHORTEST, _PASSAGE) if is_excerpt else _LONGEST
        body: list[int] = []
        for document in generator.choices(documents, k=number):
            body += [*(gap if body else ()), *document]
        first = [*frame.opening, *inner(before)]
        last = [*inner(after), *(() if is_open else frame.closing)]
        if room is not None:
            longest = max(0, min(longest, room - len(first) - len(last)))
        prompts.append([*first, *body[:longest], *last])
    return prompts
