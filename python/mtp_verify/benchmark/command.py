"""The options of `mtp-verify bench`, and what they run."""

from __future__ import annotations

import platform
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import mtp_verify as mv
from mtp_verify.benchmark.entrants import ENTRANTS
from mtp_verify.benchmark.prompts import OWN, load, pick
from mtp_verify.errors import ParamsError
from mtp_verify.report import Report

if TYPE_CHECKING:
    import argparse

__all__ = ["add_arguments", "run"]

_MODES = ("greedy", "sampled")
_PICTURES = (".svg", ".png", ".pdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; `--json` is the command's own."""
    parser.add_argument(
        "what", nargs="?", choices=("decode",), default="decode", help="(default: decode)"
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        default=None,
        metavar="PATH",
        help='one JSON object a line with "id", "category", "prompt" (default: a small set)',
    )
    parser.add_argument(
        "--per-category", type=int, default=None, metavar="N", help="prompts of each (default: all)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, help="per run (default 64)")
    parser.add_argument(
        "--mode", action="append", choices=_MODES, help="may be repeated (default: both)"
    )
    parser.add_argument(
        "--drafter",
        action="append",
        choices=list(ENTRANTS),
        help="may be repeated (default: all); self is the target itself, an upper bound",
    )
    parser.add_argument(
        "--model", default=None, metavar="FOLDER", help="a local checkpoint (default: SmolLM2-135M)"
    )
    parser.add_argument("--tiny", action="store_true", help="a small random model (smoke test)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0, help="of the sampled runs (default 0)")
    parser.add_argument(
        "--plot",
        type=Path,
        default=None,
        metavar="FILE",
        help=f"draw tau by category ({', '.join(_PICTURES)}; needs matplotlib)",
    )


def run(args: argparse.Namespace) -> Report:
    """Measure tau and speed of the drafters on prompts.

    Raises:
        ParamsError: an option or the file of prompts cannot be right.
        ImportError: torch, transformers, the packaged model or matplotlib is missing.
        OSError: a file cannot be read or written.
    """
    for name in ("per_category", "max_new_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            msg = f"--{name.replace('_', '-')}: found {value}, wanted an int >= 1"
            raise ParamsError(msg, slug="param_out_of_range")
    if args.model is not None and not Path(args.model).is_dir():
        msg = f"--model {args.model}: no such folder (models are never downloaded)"
        raise ParamsError(msg, slug="bad_options")
    if args.plot is not None:
        _check_plot(args.plot)
    source = OWN if args.prompts is None else load(args.prompts)
    prompts = pick(source, args.per_category)

    import torch
    import transformers

    from mtp_verify import threads
    from mtp_verify.benchmark import report
    from mtp_verify.benchmark.measure import measure
    from mtp_verify.subjects import subject_for
    from mtp_verify.terminal import Progress

    entrants = [ENTRANTS[name] for name in dict.fromkeys(args.drafter or ENTRANTS)]
    modes = list(dict.fromkeys(args.mode or _MODES))
    subject = subject_for(folder=args.model, tiny=args.tiny)
    model = subject.load(args.dtype)
    policy = threads.use_best(model)
    progress = Progress(len(prompts) * len(modes) * (1 + len(entrants)), shows_time_left=True)
    runs = list(
        measure(
            model,
            [subject.encode(prompt.prompt) for prompt in prompts],
            entrants,
            modes,
            max_new_tokens=args.max_new_tokens,
            seed=args.seed,
            tell=lambda index, mode, name: progress.step(f"{prompts[index].id}: {name}, {mode}"),
        )
    )
    progress.clear()
    figures = report.summarise(runs, prompts, entrants)
    data = {
        "model": subject.name,
        "dtype": args.dtype,
        "threads": policy.best,
        "prompts": "own" if args.prompts is None else args.prompts.name,
        "num_prompts": len(prompts),
        "max_new_tokens": args.max_new_tokens,
        "seed": args.seed,
        "machine": platform.processor() or platform.machine(),
        "versions": {
            "mtp_verify": mv.__version__,
            "torch": str(torch.__version__),
            "transformers": str(transformers.__version__),
        },
        "settings": {
            entrant.name: {"drafter": entrant.kind, **entrant.settings} for entrant in entrants
        },
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
    return Report("bench", data=data, sections=list(report.tables(figures)), summary=summary)


def _check_plot(path: Path) -> None:
    """Refuse before the work what would fail after it."""
    if path.suffix not in _PICTURES:
        msg = f"--plot {path}: wanted a name that ends in {', '.join(_PICTURES)}"
        raise ParamsError(msg, slug="bad_options")
    if not path.absolute().parent.is_dir():
        msg = f"--plot {path}: no such folder"
        raise ParamsError(msg, slug="bad_options")
    if find_spec("matplotlib") is None:
        msg = 'a plot needs matplotlib; run: pip install "mtp-verify[plot]"'
        raise ImportError(msg, name="matplotlib")
