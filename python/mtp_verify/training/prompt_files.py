"""Prompts from a user's file, read line by line; errors name the file and the line."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from mtp_verify.errors import ParamsError
from mtp_verify.verifier.files import read_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["OwnPrompts", "read_lines", "read_object", "read_prompts"]

_MAX_BYTES = 64 << 20
_HELD_OUT_SHARE = 0.1  # most of the prompts that may measure, and not teach


@dataclass(frozen=True)
class OwnPrompts:
    """Users' messages, all different, and the file and line of each."""

    texts: tuple[str, ...]
    places: tuple[str, ...]

    @property
    def digest(self) -> str:
        """An identifier of these prompts, in this order."""
        return hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()[:16]

    def split(self, seed: int, most_held_out: int) -> tuple[list[str], list[str]]:
        """Return the prompts that are trained on, and those that measure, in a random order.

        A tenth is held out, one prompt at least and `most_held_out` at most.

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
        """Refuse prompts of more than `longest` tokens: ParamsError names the file and the line."""
        for text, place in zip(self.texts, self.places, strict=True):
            if longest is not None and (found := len(encode(text))) > longest:
                what = f"found a prompt of {found} tokens, wanted at most {longest}"
                _refuse(f"{place}: {what}: the target needs room for the answer")


def read_prompts(path: Path) -> OwnPrompts:
    """Read a file of prompts; a prompt that is there twice counts once.

    A file whose name ends in `.txt` holds one prompt a line. Any other holds one JSON object a
    line, whose text `prompt` is a prompt; other fields are ignored. Empty lines are skipped.
    ParamsError names the line that is not of that form, or says why it cannot be read.
    """
    is_plain = path.suffix.lower() == ".txt"
    found: dict[str, str] = {}
    for where, line in read_lines(path):
        text = line if is_plain else _prompt_of(line, where)
        found.setdefault(text.strip(), where)
    if len(found) < 2:
        what = f"found {len(found)} prompts, wanted 2 different ones at least"
        _refuse(f"{path}: {what}: one is held out, to measure with")
    return OwnPrompts(tuple(found), tuple(found.values()))


def read_lines(path: Path) -> list[tuple[str, str]]:
    """Return the lines of a text file that are not empty, each with its place in words.

    ParamsError: it is no file, too large, not UTF-8, or has no such line.
    """
    content = read_file(path, _MAX_BYTES)
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        place = f"byte {error.start} of the file"
        _refuse(f"{path}, line {number}: not UTF-8 text ({place})", error)
    found = [(f"{path}, line {n}", line) for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        _refuse(f"{path}: found no prompts")
    return found


def read_object(line: str, where: str, fields: Sequence[str]) -> list[str]:
    """Return the texts of some fields of a JSON object; ParamsError if one is missing or empty."""
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        _refuse(f"{where}: not JSON ({error})", error)
    texts: list[str] = []
    for name in fields:
        text = value.get(name) if isinstance(value, dict) else None
        if not isinstance(text, str) or not text.strip():
            _refuse(f'{where}: wanted an object whose "{name}" is a text that is not empty')
        texts.append(text)
    return texts


def _prompt_of(line: str, where: str) -> str:
    try:
        return read_object(line, where, ("prompt",))[0]
    except ParamsError as error:
        what = f"{error}; plain text, one prompt a line, wants a name that ends in .txt"
        _refuse(what, error.__cause__)


def _refuse(message: str, cause: BaseException | None = None) -> NoReturn:
    raise ParamsError(message, slug="bad_prompts_file") from cause
