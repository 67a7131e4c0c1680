from __future__ import annotations

import contextlib
import io
import threading
import time

import numpy as np
import pytest

from mtp_verify import terminal
from mtp_verify.terminal import Progress, TokenPrinter, has_colour


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


def test_printer_takes_arrays_and_skips_a_prompt_of_two_dimensions():
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


def test_short_work_is_silent_unless_stderr_is_a_terminal(monkeypatch):
    plain, terminal = io.StringIO(), Terminal()
    for stream in (plain, terminal):
        monkeypatch.setattr("sys.stderr", stream)
        progress = Progress(2)
        progress.step("loading")
        progress.clear()
    assert plain.getvalue() == ""
    assert "[1/2] loading" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_progress_estimates_the_time_left_when_asked(monkeypatch):
    screen, now = Terminal(), iter([0.0, 10.0, 200.0])
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("mtp_verify.terminal.time.monotonic", lambda: next(now))
    progress = Progress(5, shows_time_left=True)
    for name in "abc":
        progress.step(name)
    shown = [line.replace("\x1b[K", "") for line in screen.getvalue().split("\r")[1:]]
    assert shown == ["[1/5] a", "[2/5] 40 s left: b", "[3/5] 5 min left: c"]


def log_of(monkeypatch):
    """A stderr that is no terminal, where lines follow each other quickly."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(terminal, "_SECONDS_BETWEEN_LINES", 0.01)
    return stream


def until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("nothing came in 10 seconds")


def test_a_step_that_takes_long_is_told_again_and_again_off_a_terminal(monkeypatch):
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
