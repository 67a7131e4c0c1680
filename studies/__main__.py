"""`python -m studies NAME`: the experiments on claims about multi-token prediction."""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtp_verify.commands.cli import Parser, run_line
from mtp_verify.console.report import Report
from mtp_verify.console.terminal import Progress
from mtp_verify.errors import ParamsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.console.report import Table
    from studies.finding import Finding

__all__ = ["STUDIES", "build_parser", "main", "run"]

# Name -> module; its `run(quick)` gives a `Finding`. Imported when it is run: most need torch.
STUDIES = {
    "choice-points": "choice_points",
    "teacher-forcing": "teacher_forcing",
    "planning": "planning",
    "signal": "training_signal",
    "reasoning": "reasoning",
    "heads": "heads",
    "training-to-inference": "training_to_inference",
    "scale": "scale",
    "block-heads": "block_heads",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="python -m studies",
        description="Run an experiment on a claim about multi-token prediction.",
        epilog="example:\n  python -m studies choice-points\n  python -m studies all --quick",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("command", choices=("all", *STUDIES), help="which experiment")
    parser.add_argument("--quick", action="store_true", help="small: shows that it runs, no more")
    parser.add_argument(
        "--plot", type=Path, default=None, metavar="FOLDER", help="draw each result (matplotlib)"
    )
    parser.set_defaults(function=run)
    return parser


def run(args: argparse.Namespace) -> Report:
    """Run one experiment or all.

    Raises:
        ParamsError: no such folder for the plots.
        ImportError: torch, transformers or matplotlib is missing.
    """
    if args.plot is not None:
        if not args.plot.is_dir():
            msg = f"--plot {args.plot}: no such folder"
            raise ParamsError(msg, slug="bad_options")
        if find_spec("matplotlib") is None:
            msg = 'a plot needs matplotlib; run: pip install "mtp-verify[plot]"'
            raise ImportError(msg, name="matplotlib")
    names = list(STUDIES) if args.command == "all" else [args.command]
    data: dict[str, Any] = {}
    sections: list[Table | str] = []
    for name in names:
        began = time.monotonic()
        with Progress() as progress:
            progress.show(f"study {name}")
            study = import_module(f"studies.{STUDIES[name]}")
            found: Finding = study.run(quick=args.quick)
        data[name] = {
            "claim": found.claim,
            "rule": found.rule,
            "verdict": found.verdict,
            "result": found.result,
            "seconds": time.monotonic() - began,
            **found.data,
        }
        sections += [f"{name}\n  claim: {found.claim}\n  rule: {found.rule}", *found.tables]
        sections.append(f"{found.verdict}: {found.result}")
        if args.plot is not None and found.draw is not None:
            found.draw(args.plot / f"study-{name}.svg")
    return Report("study", data={"quick": args.quick, "studies": data}, sections=sections)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit code."""
    return run_line(build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
