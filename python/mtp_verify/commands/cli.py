"""The command `mtp-verify`: reads the command line, runs a command and writes its report.

Exit codes: 0 all is well, 1 a comparison or check failed, 2 wrong use (a missing extra included).
With `--json` exactly one JSON document goes to stdout, errors too; everything else goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from mtp_verify.commands import registry
from mtp_verify.console.clock import process_start
from mtp_verify.console.terminal import Progress, is_terminal
from mtp_verify.errors import InternalError, MtpVerifyError
from mtp_verify.verifier.api import build_info

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtp_verify.console.report import Report

__all__ = ["Parser", "build_parser", "main", "run_line"]

_INTERRUPTED = 130  # what shells report for a command that Ctrl-C ended


class UsageError(Exception):
    """The command line cannot be carried out as written."""


class Parser(argparse.ArgumentParser):
    """A parser that raises, so that wrong use can be reported as JSON too."""

    def error(self, message: str) -> NoReturn:
        """Raise what `run_line` reports."""
        text = f"{message}\nTry: {self.prog} --help"
        raise UsageError(text)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command; imports nothing heavy."""
    parser = Parser(
        prog="mtp-verify",
        description="The exact verifier for speculative decoding: any drafter, tree and decoder.",
        epilog="example: mtp-verify demo",
    )
    version = f"%(prog)s {build_info()['version']}"
    parser.add_argument("--version", action="version", version=version)
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in registry.COMMANDS:
        own = parsers.add_parser(
            command.name,
            help=command.summary,
            description=command.summary,
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        own.add_argument("--json", action="store_true", help="one JSON document on stdout")
        own.set_defaults(function=command)
        command.add_arguments(own)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit code."""
    return run_line(build_parser, argv)


def run_line(make_parser: Callable[[], argparse.ArgumentParser], argv: Sequence[str] | None) -> int:
    """Run a command line with a parser that sets `function` and `command`; return the exit code.

    Limits of time count from the process's start where the command line is the process's own, else
    from this call.
    """
    # Who calls this function with words of its own has been there longer than the command.
    began = process_start() if argv is None else time.monotonic()
    if argv is None:
        # Bars of transformers, which write carriage returns into logs: we say what is done.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    try:
        parser = make_parser()
        args = parser.parse_args(words)
        args.began = began
        # Libraries print where they like: with --json only the document may reach stdout.
        guard = contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext()
        with guard, Progress() as progress:
            # Until the command itself says what it does: its libraries alone may take long to load.
            progress.show(f"{parser.prog} {args.command}")
            report: Report = args.function(args)
        width = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None
        print(report.to_json() if args.json else report.to_text(width), flush=True)
        return report.exit_code
    except (UsageError, ImportError, MtpVerifyError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader left, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if isinstance(error, InternalError):
            raise
        _report_error(error, as_json=as_json)
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        if argv is None:
            # All is cleaned up. What is left is taking the libraries down, which takes seconds.
            with contextlib.suppress(OSError):  # the reader may have closed it
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(_INTERRUPTED)
        return _INTERRUPTED


def _report_error(error: Exception, *, as_json: bool) -> None:
    sys.stderr.write(f"mtp-verify: {error}\n")
    if as_json:
        kind, slug = type(error).__name__, getattr(error, "slug", None)
        found = {"type": kind, "slug": slug, "message": str(error)}
        print(json.dumps({"status": "error", "error": found}, indent=2), flush=True)
