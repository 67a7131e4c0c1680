"""The options of `mtp-verify study`, and the table of experiments."""

from __future__ import annotations

import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtp_verify.errors import ParamsError
from mtp_verify.report import Report
from mtp_verify.terminal import Progress

if TYPE_CHECKING:
    import argparse

    from mtp_verify.report import Table
    from mtp_verify.study.finding import Finding

__all__ = ["STUDIES", "add_arguments", "run"]

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
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; `--json` is the command's own."""
    parser.add_argument("name", choices=("all", *STUDIES), help="of the experiment")
    parser.add_argument("--quick", action="store_true", help="small: shows that it runs, no more")
    parser.add_argument(
        "--plot", type=Path, default=None, metavar="FOLDER", help="draw each result (matplotlib)"
    )


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
    names = list(STUDIES) if args.name == "all" else [args.name]
    data: dict[str, Any] = {}
    sections: list[Table | str] = []
    for name in names:
        began = time.monotonic()
        with Progress() as progress:
            progress.show(f"study {name}")
            study = import_module(f"mtp_verify.study.{STUDIES[name]}")
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
