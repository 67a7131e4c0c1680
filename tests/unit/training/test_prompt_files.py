"""Prompts of one's own: what is read, what is held out, and what is refused by file and line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import mtp_verify as mv
from mtp_verify.training.prompt_files import read_prompts

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, *lines: object) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def test_both_forms_give_the_same_prompts(tmp_path: Path) -> None:
    plain = write(tmp_path / "mine.TXT", "Why?", "", "  Grüße  ", "Why?", "{1}\r")
    objects = write(
        tmp_path / "mine.jsonl",
        {"prompt": "Why?", "id": 3}, {"prompt": " Grüße"}, "",
        {"prompt": "Why?"}, {"prompt": "{1}"},
    )  # fmt: skip
    one, two = read_prompts(plain), read_prompts(objects)
    assert one.texts == two.texts == ("Why?", "Grüße", "{1}")
    assert one.digest == two.digest
    assert one.places == tuple(f"{plain}, line {number}" for number in (1, 3, 5))


def test_a_mark_of_utf_8_at_the_beginning_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(b"\xef\xbb\xbfone\ntwo")
    assert read_prompts(path).texts == ("one", "two")


@pytest.mark.parametrize(
    ("count", "most", "held_out"), [(2, 32, 1), (19, 32, 1), (40, 32, 4), (1000, 32, 32)]
)
def test_a_tenth_is_held_out_and_nothing_is_on_both_sides(
    count: int, most: int, held_out: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "mine.txt", *(f"prompt {n % count}" for n in range(2 * count)))
    prompts = read_prompts(path)
    text, measured = prompts.split(7, most)
    assert len(measured) == held_out
    assert sorted(text + measured) == sorted(f"prompt {n}" for n in range(count))
    assert (text, measured) == prompts.split(7, most)
    if count > 2:
        assert measured != prompts.split(8, most)[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt: found no prompts"),
        ("a.txt", b"\n \none\n", "a.txt: found 1 prompts, wanted 2 different ones at least"),
        ("a.txt", b"one\none", "found 1 prompts"),
        ("a.txt", b"one\ntw\xff", r"a.txt, line 2: not UTF-8 text \(byte 6 of the file\)"),
        ("a.jsonl", b'{"prompt": "x"}\nWhy?', r"a.jsonl, line 2: not JSON .*ends in \.txt"),
        ("a.jsonl", b'{"text": "x"}', 'a.jsonl, line 1: wanted an object whose "prompt" is a text'),
        ("a.jsonl", b'\n{"prompt": 3}', 'a.jsonl, line 2: wanted an object whose "prompt"'),
    ],
)
def test_bad_files_are_refused_by_file_and_line(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(mv.errors.ParamsError, match=message) as seen:
        read_prompts(tmp_path / name)
    assert seen.value.slug == "bad_prompts_file"


def test_prompts_without_room_for_an_answer_are_refused_by_line(tmp_path: Path) -> None:
    prompts = read_prompts(write(tmp_path / "mine.txt", "short", "as long as this"))
    prompts.check_lengths(lambda text: list(text.encode()), 15)
    prompts.check_lengths(lambda text: list(text.encode()), None)
    with pytest.raises(
        mv.errors.ParamsError,
        match=r"mine.txt, line 2: found a prompt of 15 tokens, wanted at most 14",
    ):
        prompts.check_lengths(lambda text: list(text.encode()), 14)
