from __future__ import annotations

import json

import pytest

import mtp_verify as mv
from mtp_verify.commands.shared.prompts import OWN, BenchPrompt, load, pick

GOOD = {"id": "a", "category": "chat", "prompt": "Hello."}


def write(tmp_path, *lines):
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return path


def test_own_prompts_are_distinct_and_spread_over_categories():
    assert len({prompt.id for prompt in OWN}) == len({prompt.prompt for prompt in OWN}) == len(OWN)
    assert {len(pick(OWN, 2)), len(pick(OWN, None))} == {len(OWN)}


def test_file_is_read_in_order_without_what_is_not_asked_for(tmp_path):
    path = write(tmp_path, GOOD, "", GOOD | {"id": "b", "source": "x", "prompt": "Grüße"})
    assert load(path) == [
        BenchPrompt("a", "chat", "Hello."),
        BenchPrompt("b", "chat", "Grüße"),
    ]


def test_some_of_each_category_are_picked():
    prompts = [BenchPrompt(str(i), "ab"[i % 2], "x") for i in range(6)]
    assert [prompt.id for prompt in pick(prompts, 2)] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "found no prompts"),
        ([GOOD, "{"], "line 2: not JSON"),
        (["[" * 100_000], "line 1: not JSON"),
        ([[1]], 'line 1: wanted an object whose "id"'),
        ([GOOD | {"prompt": " "}], 'wanted an object whose "prompt"'),
        ([GOOD | {"category": 3}], 'wanted an object whose "category"'),
        ([GOOD, GOOD], 'the id "a" occurs 2 times'),
    ],
    ids=["empty", "broken", "deep", "list", "blank", "number", "twice"],
)
def test_bad_files_are_refused_by_line(tmp_path, lines, message):
    with pytest.raises(mv.errors.ParamsError, match=message):
        load(write(tmp_path, *lines))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"id": "\xff"}')
    with pytest.raises(mv.errors.ParamsError, match="not UTF-8"):
        load(path)


def test_huge_files_are_refused_unread(tmp_path):
    path = tmp_path / "prompts.jsonl"
    with path.open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(mv.errors.ParamsError, match="at most"):
        load(path)
