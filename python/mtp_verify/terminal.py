"""What commands write while they work: a progress line, and text as it is generated."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Progress", "TokenPrinter", "has_colour"]

_ACCEPTED = "\x1b[32m"  # green
_PLAIN = "\x1b[0m"
_CLEAR_LINE = "\r\x1b[K"
_SECONDS_BETWEEN_LINES = 8.0  # where no terminal shows them: 10 at most, on a loaded machine too
_UNFINISHED = "\ufffd"  # what decoders give for a character whose bytes are not all there


def has_colour(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that shows colour, and the user did not turn it off."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM", "") != "dumb"


class Progress:
    """What a command is doing, on stderr: one line that is written over, if it is a terminal.

    Elsewhere (a file, a pipe, a log) the latest line is written every 8 seconds, new or not, with
    the time since the beginning: whoever waits sees that the command lives. What takes less time
    writes nothing there.

    Use it as a context: what happens at its end, whatever ends it, is `clear`.

    Args:
        total: Number of steps to come.
        shows_time_left: Estimate the rest from the mean time of the steps so far; for steps of
            about the same length.
    """

    def __init__(self, total: int = 1, *, shows_time_left: bool = False) -> None:
        self._total = total
        self._done = 0
        self._is_shown = sys.stderr.isatty()
        self._shows_time_left = shows_time_left
        self._start = time.monotonic()
        self._text = ""
        self._ended: threading.Event | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def step(self, text: str) -> None:
        """Say that the next step, `text`, begins."""
        self._done += 1
        left = self._time_left() if self._shows_time_left else ""
        self.show(f"[{self._done}/{self._total}] {left}{text}")

    def show(self, text: str) -> None:
        """Show a line of the caller's own making; no step is counted."""
        self._text = text
        if self._is_shown:
            sys.stderr.write(f"{_CLEAR_LINE}{text}")
            sys.stderr.flush()
        elif self._ended is None:
            self._ended = threading.Event()
            threading.Thread(target=self._repeat, args=(self._ended,), daemon=True).start()

    def clear(self) -> None:
        """Take the line away, so that other output can be written."""
        if self._is_shown:
            sys.stderr.write(_CLEAR_LINE)
            sys.stderr.flush()
        elif self._ended is not None:
            self._ended.set()
            self._ended = None

    def _repeat(self, ended: threading.Event) -> None:
        """Write the latest line again and again: a step may itself take minutes."""
        while not ended.wait(_SECONDS_BETWEEN_LINES):
            seconds = time.monotonic() - self._start
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
                sys.stderr.write(f"{self._text} ({seconds:.0f} s so far)\n")
                sys.stderr.flush()

    def _time_left(self) -> str:
        finished = self._done - 1
        if not finished:
            return ""
        left = (time.monotonic() - self._start) / finished * (self._total - finished)
        return f"{left / 60:.0f} min left: " if left >= 90 else f"{left:.0f} s left: "


class TokenPrinter:
    """A streamer, as `generate` takes it, that prints each step's tokens.

    Tokens that came from an accepted draft are green where colour is shown: the step's last token
    is the verifier's own. Half-finished characters wait for the rest of their bytes.

    Args:
        decode: Turns all token ids so far into text.
        stream: Where the text goes; `None` is stdout, looked up at each call.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stream: TextIO | None = None
    ) -> None:
        self._decode = decode
        self._stream = stream
        self._ids: list[int] = []
        self._num_shown = 0

    def put(self, value: Any) -> None:
        """Print the tokens of one step: a list, array or tensor of ids, in order."""
        ids = value.tolist() if hasattr(value, "tolist") else list(value)
        if ids and isinstance(ids[0], list):  # (1, n), as transformers passes a prompt
            return
        self._print(ids[:-1], _ACCEPTED)
        self._print(ids[-1:], "")

    def end(self) -> None:
        """Print what still waits, and end the line if there is one."""
        if not self._ids:
            return
        out = self._out()
        out.write(self._decode(self._ids)[self._num_shown :] + "\n")
        out.flush()

    def _out(self) -> TextIO:
        return sys.stdout if self._stream is None else self._stream

    def _print(self, ids: Sequence[int], colour: str) -> None:
        if not ids:
            return
        self._ids += ids
        text = self._decode(self._ids)
        if text.endswith(_UNFINISHED):
            return
        out = self._out()
        new = text[self._num_shown :]
        out.write(f"{colour}{new}{_PLAIN}" if colour and has_colour(out) else new)
        out.flush()
        self._num_shown = len(text)
