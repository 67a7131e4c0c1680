"""Prompts from a file of the user's, read line by line; errors name the file and the line."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtp_verify.errors import ParamsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["OwnPrompts", "read_lines", "read_object", "read_prompts"]

_MAX_BYTES = 64 << 20
_HELD_OUT_SHARE = 0.1  # most of the prompts that may measure, and not teach


@dataclass(frozen=True)
class OwnPrompts:
    """Users' messages, all different.

    Attributes:
        texts: of the messages.
        places: where each stands, for messages.
    """

    texts: tuple[str, ...]
    places: tuple[str, ...]

    @property
    def digest(self) -> str:
        """A short name of these prompts, in this order."""
        return hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()[:16]

    def split(self, seed: int, most_held_out: int) -> tuple[list[str], list[str]]:
        """The prompts that are trained on, and those that measure, in a random order.

        A tenth is held out, one prompt at least and `most_held_out` at most.

        Args:
            seed: of the order.
            most_held_out: prompts.

        Example:
            >>> made = OwnPrompts(("a", "b", "c"), ("line 1", "line 2", "line 3"))
            >>> [len(part) for part in made.split(0, 32)]
            [2, 1]
        """
        order = list(self.texts)
        random.Random(seed).shuffle(order)
        count = max(1, min(most_held_out, int(_HELD_OUT_SHARE * len(order))))
        return order[count:], order[:count]

    def check_lengths(self, encode: Callable[[str], Sequence[int]], longest: int | None) -> None:
        """Refuse prompts that leave the target no room for an answer.

        Args:
            encode: from a message to the prompt's ids.
            longest: tokens that a prompt may have; None: any number.

        Raises:
            ParamsError: such a prompt; names the file and the line.
        """
        for text, place in zip(self.texts, self.places, strict=True):
            if longest is not None and (found := len(encode(text))) > longest:
                msg = (
                    f"{place}: the prompt has {found} tokens; the target has room for prompts of "
                    f"{longest} beside their answers"
                )
                raise ParamsError(msg, slug="bad_prompts_file")


def read_prompts(path: Path) -> OwnPrompts:
    """Read a file of prompts; a prompt that stands there twice counts once.

    A file whose name ends in `.txt` holds one prompt a line. Any other holds one JSON object a
    line, whose text `prompt` is a prompt; other fields are ignored. Empty lines are skipped.

    Raises:
        ParamsError: the file is not of that form, or has fewer than two prompts; names the line.
        OSError: it cannot be read.
    """
    is_plain = path.suffix.lower() == ".txt"
    found: dict[str, str] = {}
    for where, line in read_lines(path):
        text = line if is_plain else _prompt_of(line, where)
        found.setdefault(text.strip(), where)
    if len(found) < 2:
        msg = (
            f"{path}: found {len(found)} prompts, wanted 2 different ones at least: "
            "one is held out, to measure with"
        )
        raise ParamsError(msg, slug="bad_prompts_file")
    return OwnPrompts(tuple(found), tuple(found.values()))


def read_lines(path: Path) -> list[tuple[str, str]]:
    """The lines of a text file that are not empty, each with the words that say where it stands.

    Raises:
        ParamsError: it is too large, is not UTF-8, or has no such line.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if size > _MAX_BYTES:
        msg = f"{path}: {size:,} bytes; a file of prompts has at most {_MAX_BYTES:,}"
        raise ParamsError(msg, slug="bad_prompts_file")
    content = path.read_bytes()
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        msg = f"{path}, line {number}: not UTF-8 text (byte {error.start} of the file)"
        raise ParamsError(msg, slug="bad_prompts_file") from error
    found = [(f"{path}, line {n}", line) for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        msg = f"{path}: found no prompts"
        raise ParamsError(msg, slug="bad_prompts_file")
    return found


def read_object(line: str, where: str, fields: Sequence[str]) -> list[str]:
    """The texts of some fields of a JSON object.

    Raises:
        ParamsError: a field that is missing, no text or empty.
    """
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        msg = f"{where}: not JSON ({error})"
        raise ParamsError(msg, slug="bad_prompts_file") from error
    texts: list[str] = []
    for name in fields:
        text = value.get(name) if isinstance(value, dict) else None
        if not isinstance(text, str) or not text.strip():
            msg = f'{where}: wanted an object whose "{name}" is a text that is not empty'
            raise ParamsError(msg, slug="bad_prompts_file")
        texts.append(text)
    return texts


def _prompt_of(line: str, where: str) -> str:
    try:
        return read_object(line, where, ("prompt",))[0]
    except ParamsError as error:
        msg = f"{error}; plain text, one prompt a line, wants a name that ends in .txt"
        raise ParamsError(msg, slug=error.slug) from error.__cause__
