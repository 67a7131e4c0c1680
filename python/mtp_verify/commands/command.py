"""The interface of a command, and options that several commands have."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mtp_verify.console.libraries import EXTRAS, need
from mtp_verify.console.terminal import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from mtp_verify.console.report import Report

__all__ = ["Command", "add_model_arguments", "output_file", "positive"]


@dataclass(frozen=True)
class Command:
    """One command of `mtp-verify`.

    Attributes:
        name: What the user types.
        summary: One sentence, for the help.
        example: Command lines, for the help.
        add_arguments: Adds the options; `--json` is common to all commands.
        run: From the parsed options to a report. Wrong use is an `MtpVerifyError` or an `OSError`,
            a missing library an `ImportError`.
        extra: The extra of this package whose libraries it cannot run without.
        activity: What is shown while it runs, until it shows something itself.
    """

    name: str
    summary: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Report]
    extra: str = ""
    activity: str = ""

    def __call__(self, args: argparse.Namespace) -> Report:
        """Check that the libraries are there, and run."""
        # What reads the packaged model is asked for where that is loaded: others may be chosen.
        need(*(EXTRAS["hf"] if self.extra == "demo" else ()), extra=self.extra)
        with Progress() as progress:
            if self.activity:
                progress.show(self.activity)
            return self.run(args)


def positive(text: str) -> int:
    """Read an option that is an integer of at least 1."""
    value = int(text)
    if value < 1:
        message = f"found {value}, wanted at least 1"
        raise argparse.ArgumentTypeError(message)
    return value


def output_file(text: str) -> Path:
    """Read an option that is a file to be written: refuse before the work what fails after it."""
    path = Path(text)
    if not path.absolute().parent.is_dir():
        message = f"{path}: no such folder"
        raise argparse.ArgumentTypeError(message)
    return path


def add_model_arguments(parser: argparse.ArgumentParser, *, model: bool = True) -> None:
    """Add the options `--model` (if wanted), `--tiny` and `--head`, which `subject_for` takes."""
    add = parser.add_argument
    if model:
        add("--model", metavar="FOLDER", help="a local checkpoint (default: SmolLM2-135M)")
    add("--tiny", action="store_true", help="a small random model (smoke test)")
    add(
        "--head",
        metavar="PATH",
        help="a trained or published draft head for the model (default: the one that comes with "
        "SmolLM2)",
    )
