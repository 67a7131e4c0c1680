from __future__ import annotations

import json

import numpy as np
import pytest
from rich.cells import cell_len

from mtp_verify.console.report import Report, Table


def test_figures_are_aligned_to_the_right_and_text_to_the_left():
    table = Table("speeds", ("way", "tokens/s"), (("plain", "9.5"), ("speculative", "31.0")))
    assert table.to_text().splitlines() == [
        "speeds",
        "way          tokens/s",
        "-----------  --------",
        "plain             9.5",
        "speculative      31.0",
    ]


def test_wide_and_combining_characters_keep_columns_aligned():
    rows = (("日本", "1"), ("e\u0301te\u0301", "2"), ("abcd", "3"))
    lines = Table("", ("word", "n"), rows).to_text().splitlines()[2:]
    assert lines == ["日本  1", "e\u0301te\u0301   2", "abcd  3"]


@pytest.mark.parametrize("word", ["👩‍👩‍👧", "☺️", "🇳🇴", "नमस्ते"])
def test_characters_of_several_code_points_have_their_width(word):
    rows = ((word, "1"), ("a" * 8, "2"))
    line = Table("", ("word", "n"), rows).to_text().splitlines()[2]
    assert line == word + " " * (8 - cell_len(word)) + "  1"


def test_cells_are_folded_where_the_terminal_is_narrow():
    rows = (("a drafter with a very long name", "12.5"), ("b", "9.5"))
    lines = Table("title", ("drafter", "tokens/s"), rows).to_text(24).splitlines()
    assert lines == [
        "title",
        "drafter         tokens/s",
        "--------------  --------",
        "a drafter with      12.5",
        "a very long",
        "name",
        "b                    9.5",
    ]


@pytest.mark.parametrize("width", [4, 10, 17, 40, 80])
def test_no_width_loses_a_character(width):
    columns = ("rule", "law", "cases", "branches")
    rows = (
        ("target_only", "top_plus_one", "56,727", "1,530,000"),
        ("日本" * 9, "x" * 70, "1", "2"),
    )
    text = Table("", columns, rows).to_text(width)
    shown = sorted("".join(text.split()).replace("-", ""))
    assert shown == sorted("".join(cell for row in (columns, *rows) for cell in row))
    if width >= 17:  # a column has one place at least, and two beside it
        assert max(map(cell_len, text.splitlines())) <= width


def test_cells_are_no_markup_and_have_no_colour(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = Table("", ("[bold]a[/bold]", "n"), (("[red]x", ":smile: 3.14"),)).to_text()
    assert text.splitlines()[2].split("  ")[0] == "[red]x"
    assert "[bold]a[/bold]" in text
    assert ":smile: 3.14" in text
    assert "\x1b" not in text


def test_a_file_is_as_wide_as_it_has_to_be():
    assert len(Table("", ("a",), (("x" * 5000,),)).to_text().splitlines()) == 3


def test_notes_follow_the_rows():
    assert Table("", ("a",), (("x",),), notes=("why",)).to_text().splitlines()[-1] == "why"


def test_text_joins_sections_and_ends_with_the_summary():
    report = Report("demo", sections=["first", Table("", ("a",), (("x",),))], summary="done")
    assert report.to_text() == "first\n\na\n-\nx\n\ndone"


def test_json_holds_command_status_and_data_in_order():
    document = json.loads(Report("demo", data={"b": 1, "a": 2}).to_json())
    assert list(document) == ["command", "status", "b", "a"]
    assert document["status"] == "ok"


def test_a_failure_shows_in_status_and_exit_code():
    report = Report("demo", ok=False)
    assert report.exit_code == 1
    assert json.loads(report.to_json())["status"] == "failed"


def test_numpy_values_and_tuples_become_plain_json():
    data = {"a": np.float32(0.5), "b": np.arange(3), "c": (1, (2, None)), 3: {"d": np.int64(4)}}
    document = json.loads(Report("x", data=data).to_json())
    assert document["a"] == 0.5
    assert document["b"] == [0, 1, 2]
    assert document["c"] == [1, [2, None]]
    assert document["3"] == {"d": 4}


def test_numbers_that_json_cannot_hold_become_null():
    document = json.loads(Report("x", data={"v": [np.nan, np.inf, -np.inf, 1.0]}).to_json())
    assert document["v"] == [None, None, None, 1.0]
