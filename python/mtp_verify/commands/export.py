"""`mtp-verify export`: a draft head in the layout that a serving engine reads."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from mtp_verify.commands.command import Command
from mtp_verify.commands.shared.targets import load_target
from mtp_verify.console.report import Report

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

__all__ = ["COMMAND", "add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("head", metavar="HEAD", help="a folder with a head, in any layout")
    parser.add_argument(
        "--layout", required=True, metavar="LAYOUT",
        help="native, eagle, speculators, medusa, dflash, dspark or in_checkpoint",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FOLDER", required=True, help="a new folder")
    parser.add_argument("--base", metavar="FOLDER", help="the target's checkpoint, where needed")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), default=None,
        help="of what is written (default: that of HEAD)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> Report:
    """Write a head in the layout that a serving engine reads."""
    import torch

    from mtp_verify.heads import export as write
    from mtp_verify.heads import load

    target, note = load_target(args.base)
    head = load(args.head, target, probe=False, dtype="auto")
    stored, how = _dtypes(head), "as in HEAD"
    if args.dtype is not None:
        head = head.to(getattr(torch, args.dtype))
        how = f"as asked for; HEAD: {_counted(stored)}"
    written = _dtypes(head)
    write(head, args.out, args.layout, base=args.base, target=target)
    family = head.spec.family
    data = {
        "family": family,
        "layout": args.layout,
        "out": args.out,
        "dtypes": written,
        "head_dtypes": stored,
        "note": note,
    }
    line = f"a {family} head as {args.layout}, {_counted(written)} ({how}): {args.out}"
    return Report("export", data=data, summary=line)


def _dtypes(head: Any) -> dict[str, int]:
    """Count how many of a head's tensors have each dtype."""
    names = (str(tensor.dtype).removeprefix("torch.") for tensor in head.state_dict().values())
    return dict(sorted(Counter(names).items()))


def _counted(dtypes: Mapping[str, int]) -> str:
    """Name the dtypes, with numbers of tensors where there are several."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return ", ".join(f"{kind} ({count})" for kind, count in dtypes.items())


COMMAND = Command(
    "export",
    "Write a draft head in the layout that a serving engine reads.",
    "mtp-verify export my-head --layout in_checkpoint --base target --out served",
    add_arguments,
    run,
    extra="hf",
    activity="writing the head ...",
)
