"""The commands about checkpoints of heads: `inspect`, `reattach`, `export`."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtp_verify.console.report import Report, Table
from mtp_verify.errors import MtpVerifyError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from mtp_verify.heads.io.inspect import Inspection

__all__ = [
    "add_export_arguments",
    "add_inspect_arguments",
    "add_reattach_arguments",
    "export",
    "inspect",
    "reattach",
]

_PACKED = 8  # parameters that one stored number may hold, in four-bit checkpoints


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `inspect`."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder, or a safetensors file")
    parser.add_argument(
        "--target", metavar="FOLDER", help="the target's checkpoint (default: CHECKPOINT itself)"
    )
    parser.add_argument(
        "--reference", metavar="FOLDER", help="the original checkpoint: is the head stale?"
    )
    parser.add_argument(
        "--tokens", type=int, default=256, help="that the target writes for the probe; 0: no probe"
    )
    parser.add_argument("--prompt", help="text that the probe starts from")


def add_reattach_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `reattach`."""
    parser.add_argument("--base", metavar="FOLDER", required=True, help="the original, with heads")
    parser.add_argument("--tuned", metavar="FOLDER", required=True, help="the fine-tune, without")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="a new folder")


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `export`."""
    parser.add_argument("head", metavar="HEAD", help="a folder with a head, in any layout")
    parser.add_argument(
        "--layout", required=True, metavar="LAYOUT",
        help="native, eagle, speculators, medusa or in_checkpoint",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FOLDER", required=True, help="a new folder")
    parser.add_argument("--base", metavar="FOLDER", help="the target's checkpoint, where needed")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), default=None,
        help="of what is written (default: that of HEAD, whatever the target's is)",
    )  # fmt: skip


def inspect(args: argparse.Namespace) -> Report:
    """Say what a checkpoint's head is, what is wrong with it, and what it is worth."""
    from mtp_verify.checkpoints.folder import Checkpoint
    from mtp_verify.heads.io.inspect import Inspection, inspect_head

    report = Report("inspect")
    native = (Path(args.checkpoint) / "head.json").is_file()
    target, note = _target(args.target or (None if native else args.checkpoint))
    prompts = _prompts(args, target)
    found = Inspection()
    try:
        reference = _reference(args, prompts)
        if native:
            _inspect_native(found, args, target, prompts)
        else:
            found = inspect_head(
                Checkpoint(args.checkpoint), target, prompts=prompts,
                num_tokens=args.tokens, reference=reference,
            )  # fmt: skip
    except MtpVerifyError as error:
        found.defects.append(("damaged", str(error)))
    if note:
        found.notes.append(note)
    return _report(report, found, args.checkpoint)


def reattach(args: argparse.Namespace) -> Report:
    """Put the original's modules into a copy of a fine-tune."""
    from mtp_verify.heads import reattach as put_back

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = put_back(args.base, args.tuned, args.out)
    drift = "unknown" if done.drift is None else f"{done.drift:.2%}"
    data = {
        "family": done.spec.family,
        "tensors": done.names,
        "retied": done.retied,
        "embedding_drift": done.drift,
        "warnings": [str(warning.message) for warning in caught],
    }
    lines = [
        f"{done.spec.family}: {len(done.names)} tensors of {done.spec.num_modules} module(s) put "
        f"back, {len(done.retied)} of them tied to the fine-tune's own; drift of the embedding: "
        f"{drift}",
        *(str(warning.message) for warning in caught),
    ]
    return Report("reattach", data=data, sections=list(lines), summary=f"written: {args.out}")


def export(args: argparse.Namespace) -> Report:
    """Write a head in the layout that a serving engine reads."""
    import torch

    from mtp_verify.heads import export as write
    from mtp_verify.heads import load

    target, note = _target(args.base)
    kept = load(args.head, target, probe=False, dtype="auto")
    stored = _dtypes(kept)
    head, how = kept, "as in HEAD"
    if args.dtype is not None:
        head = kept.to(getattr(torch, args.dtype))
        how = f"as asked for; HEAD: {_counted(stored)}"
    written = _dtypes(head)
    write(head, args.out, args.layout, base=args.base, target=target)
    spec = head.spec
    data = {
        "family": spec.family,
        "layout": args.layout,
        "out": args.out,
        "dtypes": written,
        "head_dtypes": stored,
        "note": note,
    }
    line = f"a {spec.family} head as {args.layout}, {_counted(written)} ({how}): {args.out}"
    return Report("export", data=data, summary=line)


def _dtypes(head: Any) -> dict[str, int]:
    """How many of a head's tensors have each dtype."""
    names = (str(tensor.dtype).removeprefix("torch.") for tensor in head.state_dict().values())
    return dict(sorted(Counter(names).items()))


def _counted(dtypes: Mapping[str, int]) -> str:
    """Dtypes in words, with numbers of tensors where there are several."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return ", ".join(f"{kind} ({count})" for kind, count in dtypes.items())


def _target(folder: str | None) -> tuple[Any | None, str]:
    """A target from its checkpoint, or None and the reason."""
    if folder is None:
        return None, "no target was given: nothing was measured"
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from mtp_verify.checkpoints.folder import Checkpoint

    try:
        held = sum(math.prod(info.shape) for info in Checkpoint(folder).tensors.values())
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            wanted = AutoModelForCausalLM.from_config(config).num_parameters()
        if wanted > _PACKED * held:
            # transformers would fill whatever is missing with random numbers, terabytes if need be.
            return None, f"the target has {wanted:,} parameters and its files hold {held:,} numbers"
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    except Exception as error:  # noqa: BLE001 - whatever keeps a foreign checkpoint from loading
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        return None, f"transformers cannot load the target: {reason}"
    return model.eval(), ""


def _prompts(args: argparse.Namespace, target: Any | None) -> list[list[int]] | None:
    if args.prompt is None or target is None:
        return None
    from transformers import AutoTokenizer

    folder = args.target or args.checkpoint
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return [list(tokenizer(args.prompt)["input_ids"])]


def _reference(args: argparse.Namespace, prompts: list[list[int]] | None) -> Any | None:
    if args.reference is None or not args.tokens:
        return None
    from mtp_verify.heads import load, probe

    model, _ = _target(args.reference)
    head = load(args.reference, model)
    return probe(head, model, prompts=prompts, num_tokens=args.tokens)


def _inspect_native(
    found: Inspection, args: argparse.Namespace, target: Any | None, prompts: Any
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
        found.probe = probe(head, target, prompts=prompts, num_tokens=args.tokens)
        found.judge()


def _report(report: Report, found: Inspection, checkpoint: str) -> Report:
    spec = found.spec
    report.ok = found.status == "ok"
    report.data = {
        "status": found.status,
        "checkpoint": checkpoint,
        "family": spec.family if spec else None,
        "num_modules": spec.num_modules if spec else 0,
        "claimed_modules": found.claimed,
        "num_layers": spec.num_layers if spec else None,
        "tensors": found.tensors,
        "parameters": found.parameters,
        "dtypes": found.dtypes,
        "copies": found.copies,
        "defects": [{"kind": kind, "what": what} for kind, what in found.defects],
        "notes": found.notes,
        "engines": found.engines,
        "probe": None,
        "spec": dataclasses.asdict(spec) if spec else None,
    }
    if spec is not None:
        report.sections.append(_facts(found))
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
    report.summary = f"status: {found.status}"
    return report


def _facts(found: Inspection) -> Table:
    spec = found.spec
    if spec is None:
        return Table("", ("head", ""), (), left=2)
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
    if spec.draft_vocab_size is not None:
        rows.insert(6, ("draft vocabulary", f"{spec.draft_vocab_size:,}"))
    rows += [
        (name, "equals the target's" if same else "differs from the target's")
        for name, same in found.copies.items()
    ]
    return Table("", ("head", ""), tuple(rows), left=2)
