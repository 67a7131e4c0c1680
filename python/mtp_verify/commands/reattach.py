"""`mtp-verify reattach`: the original's draft modules, put back into a fine-tune."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from mtp_verify.commands.command import Command
from mtp_verify.console.report import Report

if TYPE_CHECKING:
    import argparse

__all__ = ["COMMAND", "add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--base", metavar="FOLDER", required=True, help="the original, with heads")
    parser.add_argument("--tuned", metavar="FOLDER", required=True, help="the fine-tune, without")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="a new folder")


def run(args: argparse.Namespace) -> Report:
    """Put the original's modules into a copy of a fine-tune."""
    from mtp_verify.heads import reattach as put_back

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = put_back(args.base, args.tuned, args.out)
    drift = "unknown" if done.drift is None else f"{done.drift:.2%}"
    warned = [str(warning.message) for warning in caught]
    data = {
        "family": done.spec.family,
        "tensors": done.names,
        "retied": done.retied,
        "embedding_drift": done.drift,
        "warnings": warned,
    }
    line = (
        f"{done.spec.family}: {len(done.names)} tensors of {done.spec.num_modules} module(s) put "
        f"back, {len(done.retied)} of them tied to the fine-tune's own; drift of the embedding: "
        f"{drift}"
    )
    return Report("reattach", data=data, sections=[line, *warned], summary=f"written: {args.out}")


COMMAND = Command(
    "reattach",
    "Put the original's draft modules back into a fine-tune that lost them.",
    "mtp-verify reattach --base original --tuned tuned --out tuned-with-head",
    add_arguments,
    run,
    extra="torch",
    activity="writing the checkpoint ...",
)
