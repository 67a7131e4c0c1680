"""`mtp-verify generate`: answer one prompt, and show the text as it is generated."""

from __future__ import annotations

import secrets
import sys
import time
from typing import TYPE_CHECKING

from mtp_verify.commands.command import Command, add_model_arguments, positive
from mtp_verify.commands.demo import add_drafter_argument
from mtp_verify.commands.shared.entrants import CHAINS
from mtp_verify.console.report import Report
from mtp_verify.console.terminal import Progress, TokenPrinter
from mtp_verify.errors import ParamsError
from mtp_verify.verifier.api import rules
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    import argparse

__all__ = ["COMMAND", "add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("prompt", help="the user's message; - reads it from stdin")
    add_model_arguments(parser)
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    add("--max-new-tokens", type=positive, default=256)
    add("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    add("--top-k", type=int, default=0, help="0 is off")
    add("--top-p", type=float, default=1.0)
    add("--min-p", type=float, default=0.0)
    add("--seed", type=int, help="default: a fresh one, reported")
    names = ["auto", *(row["name"] for row in rules())]
    add("--rule", choices=names, default="auto", metavar="RULE", help=f"one of: {', '.join(names)}")
    add_drafter_argument(parser, "none")
    add("--raw", action="store_true", help="continue the text; no chat template")


def run(args: argparse.Namespace) -> Report:
    """Answer the prompt; report the text, the tokens and the statistics."""
    import torch

    from mtp_verify.commands.shared.subjects import planner_for, subject_for
    from mtp_verify.decoder.decode import Decoder

    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    if not prompt.strip():
        message = "the prompt is empty"
        raise ParamsError(message, slug="bad_options")
    params = SamplingParams(args.temperature, args.top_k, args.top_p, args.min_p)
    seed = secrets.randbits(32) if args.seed is None else args.seed
    with Progress() as progress:
        progress.show("loading the model")
        subject = subject_for(folder=args.model, tiny=args.tiny, head=args.head)
        drafter = subject.check_drafter(args.drafter)
        model, _ = subject.prepare(args.dtype, progress.show)
        draft = planner = None
        if drafter != "none":
            entrant = CHAINS[drafter]
            draft = entrant.make(model, subject.head_for(model))
            # Plans depend on measured times: only where tokens do not depend on plans does a seed
            # still name a text.
            if entrant.needs_head and (params.is_greedy or args.rule == "coupled"):
                progress.show("measuring what a forward costs")
                planner = planner_for(model)
        decoder = Decoder(model, draft, params, rule=args.rule, planner=planner)
        ids = subject.encode_raw(prompt) if args.raw else subject.encode(prompt)
        progress.show("generating", on_terminal=False)
        options = {"max_new_tokens": args.max_new_tokens, "seed": seed}
        start = time.perf_counter()
        printer = TokenPrinter(subject.decode)
        made = decoder.generate(torch.tensor([ids]), **options, streamer=printer)
        seconds = time.perf_counter() - start
    tokens, speed = made.tokens[0], len(made.tokens[0]) / seconds
    data = {
        "text": subject.decode(tokens),
        "tokens": tokens,
        "finish_reason": made.finish_reasons[0],
        "drafter": drafter,
        "seed": seed,
        "seconds": seconds,
        "tokens_per_second": speed,
        "stats": made.stats.as_dict(),
    }
    summary = (
        f"{len(tokens)} tokens in {seconds:.1f} s ({speed:.1f} tokens/s), "
        f"tau {made.stats.tau:.2f}, seed {seed}"
    )
    return Report("generate", data=data, summary=summary)


COMMAND = Command(
    "generate",
    "Generate text speculatively.",
    'mtp-verify generate "Write a haiku about bridges." --temperature 0.7 --seed 7',
    add_arguments,
    run,
    extra="demo",
)
