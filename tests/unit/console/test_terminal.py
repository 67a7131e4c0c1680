from __future__ import annotations

import contextlib
import io
import re
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from rich.cells import cell_len

from mtp_verify.console import terminal
from mtp_verify.console.terminal import Progress, TokenPrinter, has_colour


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def decode(ids):
    return bytes(ids).decode(errors="replace")


def put(printer, text: str) -> None:
    printer.put(list(text.encode()))


def test_printer_prints_each_step_and_ends_the_line():
    out = io.StringIO()
    printer = TokenPrinter(decode, out)
    put(printer, "ab")
    put(printer, "c")
    assert out.getvalue() == "abc"
    printer.end()
    assert out.getvalue() == "abc\n"


def test_printer_takes_arrays_and_skips_the_prompt():
    out = io.StringIO()
    printer = TokenPrinter(decode, out)
    printer.put(np.array([[120, 121]]))
    printer.put(np.array([97, 98]))
    printer.end()
    assert out.getvalue() == "ab\n"


def test_half_a_character_waits_for_its_other_half():
    out = io.StringIO()
    printer = TokenPrinter(decode, out)
    first, second = "é".encode()
    printer.put([97, first])
    assert out.getvalue() == "a"
    printer.put([second])
    assert out.getvalue() == "aé"


def test_text_that_stays_unfinished_is_printed_at_the_end():
    out = io.StringIO()
    printer = TokenPrinter(decode, out)
    printer.put(["é".encode()[0]])
    printer.end()
    assert out.getvalue() == "\ufffd\n"


def test_ending_without_tokens_prints_nothing():
    out = io.StringIO()
    TokenPrinter(decode, out).end()
    assert out.getvalue() == ""


def test_accepted_tokens_are_green_in_a_terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    put(TokenPrinter(decode, out), "abc")
    assert out.getvalue() == "\x1b[32mab\x1b[0mc"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colour_can_be_turned_off(monkeypatch, name, value):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert has_colour(Terminal())
    monkeypatch.setenv(name, value)
    assert not has_colour(Terminal())


def screen_of(monkeypatch):
    """A stderr that is a terminal of 40 columns."""
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return stream


def shown(stream):
    """The lines that a terminal showed, one after the other, without seconds and escapes."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    lines = [line.removesuffix(" (0 s)") for line in re.split("[\r\n]", text)]
    return [
        line for line, before in zip(lines, ["", *lines], strict=False) if line not in ("", before)
    ]


def test_short_work_is_silent_off_a_terminal(monkeypatch):
    plain = io.StringIO()
    monkeypatch.setattr("sys.stderr", plain)
    with Progress(2) as progress:
        progress.step("loading")
    assert plain.getvalue() == ""


def test_a_terminal_shows_one_line_and_takes_it_away(monkeypatch):
    screen = screen_of(monkeypatch)
    with Progress(2) as progress:
        progress.step("loading")
        progress.step("writing")
        assert "\x1b[?25l" in screen.getvalue()
    assert shown(screen) == ["[1/2] loading", "[2/2] writing"]
    assert screen.getvalue().endswith("\x1b[2K")  # the line is empty again
    assert "\x1b[?25h" in screen.getvalue()  # and the cursor is seen


def test_a_line_that_is_too_long_for_the_terminal_is_cut(monkeypatch):
    screen = screen_of(monkeypatch)
    with Progress() as progress:
        progress.show("日本語 " * 20)
    (line,) = shown(screen)
    assert line.endswith("…")
    assert 30 < cell_len(line) <= 40


def test_text_that_looks_like_markup_is_shown_as_it_is(monkeypatch):
    screen = screen_of(monkeypatch)
    with Progress() as progress:
        progress.show("[bold]model[/bold]")
    assert shown(screen) == ["[bold]model[/bold]"]


@pytest.mark.parametrize("kind", ["file", "dumb"])
def test_whole_lines_are_written_off_a_terminal(kind, monkeypatch):
    log = log_of(monkeypatch, Terminal() if kind == "dumb" else io.StringIO())
    monkeypatch.setenv("TERM", "dumb" if kind == "dumb" else "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as CI sets it
    with Progress() as progress:
        progress.show("loading")
        until(lambda: log.getvalue().count("\n") >= 2)
    assert set(log.getvalue()) & {"\r", "\x1b"} == set()


def test_the_last_of_several_is_shown_then_the_one_before(monkeypatch):
    screen = screen_of(monkeypatch)
    with Progress() as outer:
        outer.show("outer")
        with Progress() as inner:
            inner.show("inner")
            outer.show("outer again")  # waits
        assert shown(screen) == ["outer", "inner", "outer again"]


def test_a_terminal_is_left_to_the_text_that_is_generated(monkeypatch):
    screen = screen_of(monkeypatch)
    with Progress() as outer, Progress() as inner:
        outer.show("outer")
        inner.show("generating", on_terminal=False)
        before = screen.getvalue()
        time.sleep(1.2)  # it would be drawn each second
        assert screen.getvalue() == before
        assert shown(screen) == ["outer"]


def test_generated_text_stands_for_a_line(monkeypatch):
    log = log_of(monkeypatch)
    monkeypatch.setattr(terminal, "_SECONDS_BETWEEN_LINES", 0.5)
    printer = TokenPrinter(decode, io.StringIO())
    with Progress() as progress:
        progress.show("generating", on_terminal=False)
        for _ in range(75):
            put(printer, "abc")
            time.sleep(0.02)
        assert log.getvalue() == ""
        until(lambda: log.getvalue().startswith("generating (2 s so far)\n"))


def test_progress_estimates_the_time_left_when_asked(monkeypatch):
    now = iter([0.0, 10.0, 200.0])
    progress = Progress(5, shows_time_left=True)
    progress._start = 0.0
    told = []
    monkeypatch.setattr(progress, "show", lambda text, **_: told.append(text))
    monkeypatch.setattr(
        "mtp_verify.console.terminal.time", SimpleNamespace(monotonic=lambda: next(now))
    )
    next(now)
    for name in "abc":
        progress.step(name)
    assert told == ["[1/5] a", "[2/5] 40 s left: b", "[3/5] 5 min left: c"]


def log_of(monkeypatch, stream=None):
    """A stderr that is no terminal, where lines follow each other quickly."""
    stream = io.StringIO() if stream is None else stream
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(terminal, "_SECONDS_BETWEEN_LINES", 0.01)
    return stream


def until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("nothing came in 10 seconds")


def test_a_long_step_is_repeated_off_a_terminal(monkeypatch):
    log = log_of(monkeypatch)
    with Progress(2) as progress:
        progress.step("loading")
        until(lambda: log.getvalue().count("[1/2] loading (0 s so far)\n") >= 3)
        progress.step("writing")
        until(lambda: "[2/2] writing (0 s so far)\n" in log.getvalue())
    assert "\r" not in log.getvalue()


@pytest.mark.parametrize("ends", ["clear", "error"])
def test_nothing_is_told_of_work_that_has_ended(monkeypatch, ends):
    log = log_of(monkeypatch)
    before = threading.active_count()
    with contextlib.suppress(KeyboardInterrupt), Progress() as progress:
        progress.show("working")
        until(log.getvalue)
        if ends == "error":
            raise KeyboardInterrupt
        progress.clear()
        until(lambda: threading.active_count() == before)
        progress.show("more")  # a progress that was cleared can go on
        until(lambda: "more" in log.getvalue())
    until(lambda: threading.active_count() == before)
    told = log.getvalue()
    time.sleep(0.05)
    assert log.getvalue() == told


def test_a_stream_that_was_closed_ends_no_work(monkeypatch):
    log = log_of(monkeypatch)
    with Progress() as progress:
        progress.show("working")
        until(log.getvalue)
        log.close()
        time.sleep(0.05)


def test_lines_come_at_least_every_ten_seconds():
    assert terminal._SECONDS_BETWEEN_LINES <= 8.0
