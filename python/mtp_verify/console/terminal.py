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

    from rich.live import Live
    from rich.text import Text

__all__ = ["Progress", "TokenPrinter", "has_colour", "is_terminal"]

_ACCEPTED = "\x1b[32m"  # green
_PLAIN = "\x1b[0m"
_SECONDS_BETWEEN_LINES = 8.0  # where no terminal shows them: 10 at most, on a loaded machine too
_UNFINISHED = "\ufffd"  # what decoders give for a character whose bytes are not all there


def is_terminal(stream: TextIO) -> bool:
    """Return whether `stream` is a terminal on which a line can be written over."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


def has_colour(stream: TextIO) -> bool:
    """Return whether `stream` is a terminal with colour, which the user did not turn off."""
    return is_terminal(stream) and "NO_COLOR" not in os.environ


class Progress:
    """What a command is doing, on stderr: one line that is written over, if it is a terminal.

    Elsewhere (a file, a pipe, a log) the latest line is written whenever nothing else was for 8
    seconds, with the time since the beginning, to show that the command still runs. What takes
    less time writes nothing there.

    Use it as a context, whose end calls `clear`. Of several at a time the one that began to show
    something last is shown, and the one before it when that is cleared.

    Args:
        total: Number of steps to come.
        shows_time_left: Estimate the rest from the mean time of the steps so far.
    """

    def __init__(self, total: int = 1, *, shows_time_left: bool = False) -> None:
        self._total, self._done, self._shows_time_left = total, 0, shows_time_left
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def step(self, text: str, *, on_terminal: bool = True) -> None:
        """Say that the next step, `text`, begins; arguments as those of `show`."""
        self._done += 1
        left = self._time_left() if self._shows_time_left else ""
        self.show(f"[{self._done}/{self._total}] {left}{text}", on_terminal=on_terminal)

    def show(self, text: str, *, on_terminal: bool = True) -> None:
        """Show a line; without `on_terminal` a terminal is left to what others write meanwhile."""
        _line.put(self, (text, self._start, on_terminal))

    def clear(self) -> None:
        """Take the line away, so that other output can be written."""
        _line.take(self)

    def _time_left(self) -> str:
        finished = self._done - 1
        if not finished:
            return ""
        left = (time.monotonic() - self._start) / finished * (self._total - finished)
        return f"{left / 60:.0f} min left: " if left >= 90 else f"{left:.0f} s left: "


class _Line:
    """The one line of this process that says what is done now."""

    def __init__(self) -> None:
        # By who shows it: the text, since when it works, and whether a terminal shows it.
        self._texts: dict[Progress, tuple[str, float, bool]] = {}
        self._live: Live | None = None  # while a terminal shows it
        self._drawn = ("", 0.0)  # what it shows, and since when that works
        self._ended: threading.Event | None = None
        self.last_output = 0.0  # when something was written last, of `time.monotonic()`

    def put(self, whose: Progress, what: tuple[str, float, bool]) -> None:
        """Show a text, in place of all that is shown."""
        self._texts[whose] = what
        self._refresh()

    def take(self, whose: Progress) -> None:
        """Show it no longer."""
        if self._texts.pop(whose, None) is not None:
            self._refresh()

    def _refresh(self) -> None:
        text, start, on_terminal = self._latest()
        if text and not is_terminal(sys.stderr):
            if self._ended is None:
                self.last_output = time.monotonic()
                self._ended = threading.Event()
                threading.Thread(target=self._repeat, args=(self._ended,), daemon=True).start()
        elif self._ended is not None:
            self._ended.set()
            self._ended = None
        with contextlib.suppress(OSError, ValueError):  # the stream was closed
            if text and on_terminal and is_terminal(sys.stderr):
                self._drawn = (text, start)
                self._draw()
            elif self._live is not None:
                live, self._live = self._live, None
                live.stop()

    def _draw(self) -> None:
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(stderr=True),
                get_renderable=self._shown,
                refresh_per_second=1,  # drawing takes time from what is timed
                transient=True,
                redirect_stdout=False,  # it would go to stderr
            )
            self._live.start(refresh=True)
        else:
            self._live.refresh()

    def _shown(self) -> Text:
        """Return the line as a terminal shows it: cut at the terminal's edge."""
        from rich.text import Text

        text = f"{self._drawn[0]} ({time.monotonic() - self._drawn[1]:.0f} s)"
        return Text(text, no_wrap=True, overflow="ellipsis")

    def _latest(self) -> tuple[str, float, bool]:
        return next(reversed(self._texts.values()), ("", 0.0, False))

    def _repeat(self, ended: threading.Event) -> None:
        """Write the latest line again and again: a step may itself take minutes."""
        wait = _SECONDS_BETWEEN_LINES
        while not ended.wait(wait):
            now = time.monotonic()
            wait = self.last_output + _SECONDS_BETWEEN_LINES - now
            if wait > 0:
                continue
            wait, self.last_output = _SECONDS_BETWEEN_LINES, now
            text, start, _ = self._latest()
            if not text:  # it was taken away this moment
                return
            with contextlib.suppress(OSError, ValueError):  # the stream was closed
                sys.stderr.write(f"{text} ({now - start:.0f} s so far)\n")
                sys.stderr.flush()


_line = _Line()


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
        self._decode, self._stream = decode, stream
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
        if self._ids:
            self._write(self._decode(self._ids)[self._num_shown :] + "\n", "")

    def _print(self, ids: Sequence[int], colour: str) -> None:
        if not ids:
            return
        self._ids += ids
        text = self._decode(self._ids)
        if not text.endswith(_UNFINISHED):
            self._write(text[self._num_shown :], colour)
            self._num_shown = len(text)

    def _write(self, text: str, colour: str) -> None:
        out = sys.stdout if self._stream is None else self._stream
        out.write(f"{colour}{text}{_PLAIN}" if colour and has_colour(out) else text)
        out.flush()
        _line.last_output = time.monotonic()
