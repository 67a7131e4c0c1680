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

    from mtp_verify.commands.drawing.recorder import Step

__all__ = ["COMMAND", "add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("prompt", help="the user's message")
    add_model_arguments(parser)
    add("--drafter", choices=tuple(TREES), help="(default: suffix; with --head: head)")
    add("--max-new-tokens", type=positive, default=48, metavar="N")
    add("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    add("--seed", type=int, default=0)
    add("--html", type=output_file, metavar="FILE", help="also write a page of pictures")


def run(args: argparse.Namespace) -> Report:
    """Generate from a prompt and report every step."""
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
        recorder = Recorder(entrant.make(model, head))
        progress.show("generating")
        ids = torch.tensor([subject.encode(args.prompt)])
        options = {"max_new_tokens": args.max_new_tokens, "seed": args.seed}
        made = Decoder(model, recorder, params).generate(ids, **options)

    def show(token: int) -> str:
        # Special tokens decode to nothing, pieces of a character to the replacement character.
        text = subject.decode([token])
        return repr(text) if text and "\ufffd" not in text else f"<{token}>"

    steps = recorder.steps
    colour = has_colour(sys.stdout)
    summary = (
        f"{sum(len(step.verdict.tokens) for step in steps)} tokens from {len(steps)} forwards: "
        f"tau {made.stats.tau:.2f} ({subject.name}, drafter {drafter}, seed {args.seed})"
    )
    if args.html is not None:
        page = to_html(steps, subject.decode, show, title=args.prompt, summary=summary)
        args.html.write_text(page, encoding="utf-8")
        summary += f"\npictures: {args.html}"
    data = {
        "model": subject.name,
        "drafter": drafter,
        "tau": made.stats.tau,
        "steps": [_data(step) for step in steps],
    }
    texts = ["\n".join([caption(s), *to_lines(s, show, colour=colour)]) for s in steps]
    return Report("view", data=data, sections=[*texts], summary=summary)


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
    extra="demo",
)
