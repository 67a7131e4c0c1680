"""`mtp-verify inspect`: what a checkpoint's draft head is, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtp_verify.commands.command import Command
from mtp_verify.commands.shared.targets import load_target
from mtp_verify.console.report import Report, Table
from mtp_verify.errors import MtpVerifyError

if TYPE_CHECKING:
    import argparse

    from mtp_verify.heads.io.inspect import Inspection

__all__ = ["COMMAND", "add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a folder, or a safetensors file")
    add("--target", metavar="FOLDER", help="the target's checkpoint (default: CHECKPOINT itself)")
    add("--reference", metavar="FOLDER", help="the original checkpoint: is the head stale?")
    add("--tokens", type=int, default=256, help="that the target writes for the probe; 0: no probe")
    add("--prompt", help="text that the probe starts from")


def run(args: argparse.Namespace) -> Report:
    """Say what a checkpoint's head is, what is wrong with it, and what it is worth."""
    from mtp_verify.checkpoints.folder import Checkpoint
    from mtp_verify.heads.io.inspect import Inspection, inspect_head
    from mtp_verify.heads.io.native import is_native

    native = is_native(Path(args.checkpoint))
    target, note = load_target(args.target or (None if native else args.checkpoint))
    found = Inspection()
    options = {"prompts": _prompts(args, target), "num_tokens": args.tokens}
    try:
        reference = _reference(args, options)
        if native:
            _inspect_native(found, args, target, options)
        else:
            checkpoint = Checkpoint(args.checkpoint)
            found = inspect_head(checkpoint, target, reference=reference, **options)
    except MtpVerifyError as error:
        found.defects.append(("damaged", str(error)))
    if note and _wants_target(found, args):
        found.defects.append(("unchecked", note))
    elif note:
        found.notes.append(note)
    return _report(found, args.checkpoint)


def _wants_target(found: Inspection, args: argparse.Namespace) -> bool:
    """Return whether a target that could not be loaded should have been."""
    from mtp_verify.heads.families import block_of

    spec = found.spec
    if spec is None or not spec.is_inside_target:
        return args.target is not None
    return bool(args.tokens) or block_of(spec).needs_target


def _prompts(args: argparse.Namespace, target: Any | None) -> list[list[int]] | None:
    if args.prompt is None or target is None:
        return None
    from transformers import AutoTokenizer

    folder = args.target or args.checkpoint
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return [list(tokenizer(args.prompt)["input_ids"])]


def _reference(args: argparse.Namespace, options: dict[str, Any]) -> Any | None:
    if args.reference is None or not args.tokens:
        return None
    from mtp_verify.heads import load, probe

    model, _ = load_target(args.reference)
    return probe(load(args.reference, model), model, **options)


def _inspect_native(
    found: Inspection, args: argparse.Namespace, target: Any | None, options: dict[str, Any]
) -> None:
    from mtp_verify.checkpoints.folder import Checkpoint
    from mtp_verify.heads import load, probe

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        head = load(args.checkpoint, target)
    found.notes += [str(warning.message) for warning in caught]
    found.spec = head.spec
    tensors = list(head.state_dict().values())
    found.tensors, found.parameters = len(tensors), sum(tensor.numel() for tensor in tensors)
    # As they are stored: the head was loaded in the target's dtype, to be measured.
    stored = Checkpoint(args.checkpoint).tensors
    found.dtypes = dict(Counter(stored[name].dtype for name in head.state_dict()))
    if target is not None and args.tokens:
        found.probe = probe(head, target, **options)
        found.judge()


def _report(found: Inspection, checkpoint: str) -> Report:
    spec = found.spec
    report = Report("inspect", ok=found.status == "ok", summary=f"status: {found.status}")
    report.data = {
        "status": found.status,
        "checkpoint": checkpoint,
        "family": spec.family if spec else None,
        "num_modules": spec.num_modules if spec else 0,
        "claimed_modules": found.claimed,
        "num_layers": spec.num_layers if spec else None,
        **{name: getattr(found, name) for name in ("tensors", "parameters", "dtypes", "copies")},
        "defects": [{"kind": kind, "what": what} for kind, what in found.defects],
        "notes": found.notes,
        "engines": found.engines,
        "probe": None,
        "spec": dataclasses.asdict(spec) if spec else None,
    }
    if spec is not None:
        report.sections.append(_facts(found, spec))
    if found.engines:
        rows = tuple(found.engines.items())
        report.sections.append(Table("Would it load?", ("engine", "answer"), rows, left=2))
    if found.probe is not None:
        report.sections.append(found.probe.table())
        report.data["probe"] = [
            {"choices": reading.choices, "accepted": reading.accepted}
            for reading in found.probe.readings
        ]
    report.sections += [f"note: {note}" for note in found.notes]
    report.sections += [f"{kind}: {what}" for kind, what in found.defects]
    return report


def _facts(found: Inspection, spec: Any) -> Table:
    rows = [
        ("family", spec.family),
        ("modules x blocks", f"{spec.num_modules} x {spec.num_layers}"),
        ("the configuration claims", "nothing" if found.claimed is None else str(found.claimed)),
        ("fed with, hands on", f"{spec.feed}, {spec.recycle}"),
        ("fusion, block", f"{spec.fusion}, {spec.block}"),
        ("output head", spec.output_head),
        ("tensors, parameters", f"{found.tensors}, {found.parameters:,}"),
        ("dtypes", ", ".join(f"{kind} ({count})" for kind, count in sorted(found.dtypes.items()))),
    ]
    if spec.kind == "block":
        words = f"{spec.block_size}, {spec.offset}, {spec.in_block}"
        rows[3:4] = [
            ("slots, offset, in a block", words),
            ("hidden states", ", ".join(map(str, spec.hidden_layers))),
            ("correction", spec.correction),
        ]
    if spec.draft_vocab_size is not None:
        rows.insert(-2, ("draft vocabulary", f"{spec.draft_vocab_size:,}"))
    rows += [
        (name, "equals the target's" if same else "differs from the target's")
        for name, same in found.copies.items()
    ]
    return Table("", ("head", ""), tuple(rows), left=2)


COMMAND = Command(
    "inspect",
    "Say what a checkpoint's draft head is, what is wrong with it, and what it is worth.",
    "mtp-verify inspect path/to/checkpoint --json",
    add_arguments,
    run,
    extra="hf",
    activity="reading the checkpoint ...",
)
