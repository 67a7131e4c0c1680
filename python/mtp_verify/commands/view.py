"""`mtp-verify view`: generate from a prompt and draw what each step drafted and kept."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from mtp_verify.commands.command import Command, add_model_arguments, output_file, positive
from mtp_verify.commands.drawing.page import to_html
from mtp_verify.commands.drawing.recorder import Recorder
from mtp_verify.commands.drawing.tree import caption, to_lines
from mtp_verify.commands.shared.entrants import TREES
from mtp_verify.console.report import Report
from mtp_verify.console.terminal import Progress, has_colour
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from mtp_verify.commands.drawing.recorder import Step

__all__ = ["COMMAND", "add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("prompt", help="the user's message")
    add_model_arguments(parser)
    parser.add_argument(
        "--drafter", choices=tuple(TREES), help="(default: suffix; with --head: head)"
    )
    parser.add_argument("--max-new-tokens", type=positive, default=48, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--html", type=output_file, metavar="FILE", help="also write a page of pictures"
    )


def run(args: argparse.Namespace) -> Report:
    """Generate from a prompt and report every step.

    Raises:
        ParamsError: a setting is out of range, or a drafter that makes no use of the head.
        UnsupportedModelError: the head is not for this model.
        ImportError: torch, transformers or the packaged model is missing.
        OSError: the page cannot be written, or there is no such head.
    """
    import torch

    from mtp_verify.commands.shared import threads
    from mtp_verify.commands.shared.subjects import subject_for
    from mtp_verify.decoder.decode import Decoder

    params = SamplingParams(temperature=args.temperature)
    with Progress() as progress:
        progress.show("loading the model")
        subject = subject_for(folder=args.model, tiny=args.tiny, head=args.head)
        drafter = subject.check_drafter(args.drafter or ("suffix" if args.head is None else "head"))
        model = subject.load("bfloat16")
        progress.show("choosing the number of threads")
        threads.use_best(model)
        entrant = TREES[drafter]
        head = subject.load_head(model) if entrant.needs_head and subject.load_head else None
        recorder = Recorder(entrant.make(model, params, head))
        progress.show("generating")
        made = Decoder(model, recorder, params).generate(
            torch.tensor([subject.encode(args.prompt)]),
            max_new_tokens=args.max_new_tokens,
            seed=args.seed,
        )
    show = _shown_by(subject.decode)
    steps = recorder.steps
    summary = (
        f"{sum(len(step.verdict.tokens) for step in steps)} tokens from {len(steps)} forwards: "
        f"tau {made.stats.tau:.2f} ({subject.name}, drafter {drafter}, seed {args.seed})"
    )
    if args.html is not None:
        page = to_html(steps, subject.decode, show, title=args.prompt, summary=summary)
        args.html.write_text(page, encoding="utf-8")
    return Report(
        "view",
        data={
            "model": subject.name,
            "drafter": drafter,
            "tau": made.stats.tau,
            "steps": [_data(s) for s in steps],
        },
        sections=[_section(step, show) for step in steps],
        summary=summary + (f"\npictures: {args.html}" if args.html is not None else ""),
    )


def _section(step: Step, show: Callable[[int], str]) -> str:
    return "\n".join([caption(step), *to_lines(step, show, colour=has_colour(sys.stdout))])


def _shown_by(decode: Callable[[Sequence[int]], str]) -> Callable[[int], str]:
    def show(token: int) -> str:
        # Special tokens decode to nothing, pieces of a character to the replacement character.
        text = decode([token])
        return repr(text) if text and "\ufffd" not in text else f"<{token}>"

    return show


def _data(step: Step) -> dict[str, Any]:
    return {
        "position": step.position,
        "root": step.root,
        "parents": step.draft.tree.parents,
        "tokens": step.draft.tokens,
        "law": step.draft.law,
        "rule": step.verdict.rule,
        "path": step.verdict.path,
        "emitted": step.verdict.tokens,
        "logprobs": step.verdict.logprobs,
    }


COMMAND = Command(
    "view",
    "Draw what each step of a generation drafted and kept.",
    'mtp-verify view "Repeat: a rose is a rose is a rose." --html steps.html',
    add_arguments,
    run,
    needs=("torch", "transformers"),
    extra="demo",
)
