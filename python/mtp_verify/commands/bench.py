"""`mtp-verify bench`: what the drafters are worth on prompts, against plain decoding."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from mtp_verify.commands.command import Command, add_model_arguments, output_file, positive
from mtp_verify.commands.shared.entrants import ENTRANTS, Entrant
from mtp_verify.commands.shared.prompts import OWN, BenchPrompt, held_out, load, pick
from mtp_verify.console.libraries import need
from mtp_verify.console.report import Report
from mtp_verify.console.terminal import Progress
from mtp_verify.errors import ParamsError
from mtp_verify.verifier.api import derive_seed

if TYPE_CHECKING:
    import argparse

__all__ = ["COMMAND", "add_arguments", "run"]

_MODES = ("greedy", "sampled")
_PICTURES = (".svg", ".png", ".pdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("what", nargs="?", choices=("decode",), default="decode", help="(default: decode)")
    add(
        "--prompts",
        type=Path,
        metavar="PATH",
        help='one JSON object a line with "id", "category", "prompt" (default: a small set)',
    )
    add(
        "--held-out",
        type=positive,
        metavar="N",
        help="instead, N prompts on the topics that `mtp-verify train` holds out",
    )
    add("--per-category", type=positive, metavar="N", help="prompts of each (default: all)")
    add("--max-new-tokens", type=positive, default=64, help="per run (default 64)")
    add("--mode", action="append", choices=_MODES, help="may be repeated (default: both)")
    add(
        "--drafter",
        action="append",
        choices=list(ENTRANTS),
        help="may be repeated (default: all that can run); self is the target itself, an upper "
        "bound",
    )
    add_model_arguments(parser)
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    add("--seed", type=int, default=0, help="of the sampled runs (default 0)")
    add(
        "--draws",
        type=positive,
        default=3,
        help="drafts with a head at each place of a sampled text, where all are compared (default "
        "3)",
    )
    add(
        "--plot",
        type=output_file,
        metavar="FILE",
        help=f"draw tau by category ({', '.join(_PICTURES)}; needs matplotlib)",
    )


def run(args: argparse.Namespace) -> Report:
    """Measure tau and speed of the drafters on prompts."""
    if args.plot is not None:
        if args.plot.suffix not in _PICTURES:
            message = f"--plot {args.plot}: wanted a name that ends in {', '.join(_PICTURES)}"
            raise ParamsError(message, slug="bad_options")
        need(extra="plot", subject="a plot needs")
    source, prompts = _prompts(args)
    from mtp_verify.commands.benchmark import report
    from mtp_verify.commands.benchmark.measure import MODES, PLAIN, measure
    from mtp_verify.commands.benchmark.paired import expectations
    from mtp_verify.commands.shared.subjects import subject_for, versions

    modes = list(dict.fromkeys(args.mode or _MODES))
    with Progress() as progress:
        subject = subject_for(folder=args.model, tiny=args.tiny, head=args.head)
        entrants = _entrants(args.drafter, has_head=subject.load_head is not None)
        model, policy = subject.prepare(args.dtype, progress.show)
        head = subject.head_for(model)
    texts = [subject.encode(prompt.prompt) for prompt in prompts]
    options = {"max_new_tokens": args.max_new_tokens, "seed": args.seed, "head": head}
    heads = [entrant for entrant in entrants if entrant.needs_head and not entrant.is_planned]
    count = len(prompts) * len(modes) * (3 + len(entrants))
    with Progress(count, shows_time_left=True) as progress:

        def tell(at: int, mode: str, name: str) -> None:
            progress.step(f"{prompts[at].id}: {name}, {mode}")

        runs = list(measure(model, texts, entrants, modes, tell=tell, **options))
        pairs = {}
        for run in (run for run in runs if run.entrant == PLAIN):
            tell(run.prompt, run.mode, "equal places")
            pairs[run.prompt, run.mode] = expectations(
                model,
                texts[run.prompt],
                run.tokens,
                heads,
                MODES[run.mode],
                head=head,
                draws=args.draws,
                seed=derive_seed(args.seed, run.prompt),
            )
    figures = report.summarise(runs, prompts, entrants, pairs)
    data = {
        "model": subject.name,
        "dtype": args.dtype,
        "threads": policy.best,
        "prompts": source,
        "num_prompts": len(prompts),
        "max_new_tokens": args.max_new_tokens,
        "seed": args.seed,
        "draws": args.draws,
        "machine": platform.processor() or platform.machine(),
        "versions": versions(),
        "head": None if head is None else {**head.record, "curve": None},
        "settings": {entrant.name: entrant.describe() for entrant in entrants},
        "figures": report.as_data(figures),
        "runs": [
            {
                "prompt": prompts[run.prompt].id,
                "category": prompts[run.prompt].category,
                "mode": run.mode,
                "drafter": run.entrant,
                "stats": run.stats.as_dict(),
            }
            for run in runs
        ],
    }
    title = f"{subject.name}, {len(prompts)} prompts, {args.max_new_tokens} tokens each"
    if args.plot is not None:
        report.draw(figures, title, args.plot)
    summary = f"{title}, {args.dtype}, {policy.best} thread(s)"
    return Report("bench", data=data, sections=[*report.tables(figures)], summary=summary)


def _prompts(args: argparse.Namespace) -> tuple[str, list[BenchPrompt]]:
    """Return where the prompts are from, and the prompts."""
    if args.held_out is not None:
        if args.prompts is not None:
            message = "--held-out and --prompts name two sets of prompts; give one of them"
            raise ParamsError(message, slug="bad_options")
        return "held-out topics", held_out(args.held_out)
    if args.prompts is None:
        return "own", pick(OWN, args.per_category)
    return args.prompts.name, pick(load(args.prompts), args.per_category)


def _entrants(names: list[str] | None, *, has_head: bool) -> list[Entrant]:
    """Return the drafters that were asked for, or all that can run."""
    if names is None:
        return [entrant for entrant in ENTRANTS.values() if has_head or not entrant.needs_head]
    chosen = [ENTRANTS[name] for name in dict.fromkeys(names)]
    if (name := next((e.name for e in chosen if e.needs_head), None)) and not has_head:
        message = f"--drafter {name!r} needs a trained head; give --head FOLDER"
        raise ParamsError(message, slug="bad_options")
    return chosen


COMMAND = Command(
    "bench",
    "Measure tokens per step and speed of the drafters on prompts.",
    "mtp-verify bench decode --per-category 1 --plot tau.svg",
    add_arguments,
    run,
    extra="demo",
)
