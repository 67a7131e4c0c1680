"""The command `mtp-verify`: each command is a function from its arguments to a report.

Exit codes: 0 all is well, 1 a comparison or check failed, 2 wrong use (a missing extra included).
With `--json` exactly one JSON document goes to stdout, errors too; everything else goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, NoReturn

from mtp_verify.commands import certify as engine_command
from mtp_verify.commands import heads as head_commands
from mtp_verify.commands import train as train_command
from mtp_verify.commands.bench import command as bench_command
from mtp_verify.commands.bench.entrants import CHAINS
from mtp_verify.commands.view import command as view_command
from mtp_verify.console.clock import process_start
from mtp_verify.console.report import Report
from mtp_verify.console.terminal import Progress, is_terminal
from mtp_verify.errors import InternalError, MtpVerifyError
from mtp_verify.verifier.api import build_info, rules
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtp_verify.console.report import Report

__all__ = ["Parser", "build_parser", "main", "run_line"]

_INTERRUPTED = 130  # what shells report for a command that Ctrl-C ended


class UsageError(Exception):
    """The command line cannot be carried out as written."""


class Parser(argparse.ArgumentParser):
    """A parser that raises, so that wrong use can be reported as JSON too."""

    def error(self, message: str) -> NoReturn:
        """Raise what `run_line` reports."""
        text = f"{message}\nTry: {self.prog} --help"
        raise UsageError(text)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command; imports nothing heavy."""
    parser = Parser(
        prog="mtp-verify",
        description="The exact verifier for speculative decoding: any drafter, tree and decoder.",
        epilog="example: mtp-verify demo",
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {build_info()['version']}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, function: Callable[[argparse.Namespace], Report], summary: str, example: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("--json", action="store_true", help="one JSON document on stdout")
        command.set_defaults(function=function)
        return command

    _demo_arguments(
        add(
            "demo",
            demo,
            "Watch a real model generate speculatively; compare speed and tokens.",
            "mtp-verify demo --max-new-tokens 64",
        )
    )
    _generate_arguments(
        add(
            "generate",
            generate,
            "Generate text speculatively.",
            'mtp-verify generate "Write a haiku about bridges." --temperature 0.7 --seed 7',
        )
    )
    add(
        "doctor",
        doctor,
        "Show versions, CPU features, thread policy, extras and engine hooks.",
        "mtp-verify doctor --json",
    ).add_argument("--quick", action="store_true", help="measure nothing")
    certify_parser = add(
        "certify",
        certify,
        "Prove the shipped rules by exact enumeration, or test any decoder against an exact law.",
        "mtp-verify certify --self\n  mtp-verify certify --engine transformers --html report.html",
    )
    certify_parser.add_argument(
        "--self", dest="subject_self", action="store_true", help="prove this package's own rules"
    )
    engine_command.add_arguments(certify_parser)
    bench_command.add_arguments(
        add(
            "bench",
            bench,
            "Measure tokens per step and speed of the drafters on prompts.",
            "mtp-verify bench decode --per-category 1 --plot tau.svg",
        )
    )
    head_commands.add_inspect_arguments(
        add(
            "inspect",
            inspect,
            "Say what a checkpoint's draft head is, what is wrong with it, and what it is worth.",
            "mtp-verify inspect path/to/checkpoint --json",
        )
    )
    head_commands.add_reattach_arguments(
        add(
            "reattach",
            reattach,
            "Put the original's draft modules back into a fine-tune that lost them.",
            "mtp-verify reattach --base original --tuned tuned --out tuned-with-head",
        )
    )
    head_commands.add_export_arguments(
        add(
            "export",
            export,
            "Write a draft head in the layout that a serving engine reads.",
            "mtp-verify export my-head --layout in_checkpoint --base target --out served",
        )
    )
    train_command.add_arguments(
        add(
            "train",
            train,
            "Train a draft head for a model, on text that the model writes itself.",
            "mtp-verify train --model smollm2 --out my-head --minutes 37",
        )
    )
    view_command.add_arguments(
        add(
            "view",
            view,
            "Draw what each step of a generation drafted and kept.",
            'mtp-verify view "Repeat: a rose is a rose is a rose." --html steps.html',
        )
    )
    return parser


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tiny", action="store_true", help="a small random model (smoke test)")
    parser.add_argument(
        "--max-new-tokens", type=_positive, default=None, help="per prompt (default 128; tiny 24)"
    )
    parser.add_argument(
        "--repeats", type=_positive, default=2, help="timed runs of each way; the best counts"
    )
    parser.add_argument("--seed", type=int, default=7, help="of the sampled comparison")
    parser.add_argument(
        "--drafter",
        choices=tuple(CHAINS),
        default=None,
        help="head: suffix drafting, and a trained head where nothing repeats (default: head if "
        "there is one, else suffix)",
    )
    _head_argument(parser)


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="the user's message; - reads it from stdin")
    parser.add_argument(
        "--model", default=None, metavar="FOLDER", help="a local checkpoint (default: SmolLM2-135M)"
    )
    parser.add_argument("--tiny", action="store_true", help="a small random model (smoke test)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--max-new-tokens", type=_positive, default=256)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-k", type=int, default=0, help="0 is off")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=None, help="default: a fresh one, reported")
    names = ["auto", *(row["name"] for row in rules())]
    parser.add_argument(
        "--rule", choices=names, default="auto", metavar="RULE", help=f"one of: {', '.join(names)}"
    )
    parser.add_argument("--drafter", choices=(*CHAINS, "none"), default=None, help="as in demo")
    _head_argument(parser)
    parser.add_argument("--raw", action="store_true", help="continue the text; no chat template")


def _head_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--head",
        default=None,
        metavar="PATH",
        help="a trained or published draft head for the model (default: the one that comes with "
        "SmolLM2)",
    )


def demo(args: argparse.Namespace) -> Report:
    """Run the demonstration; see `mtp_verify.commands.demo`."""
    from mtp_verify.commands import demo as demonstration

    _tell_when_missing("torch", "transformers", extra="demo")
    return demonstration.run(
        tiny=args.tiny,
        max_new_tokens=args.max_new_tokens,
        repeats=args.repeats,
        seed=args.seed,
        drafter=args.drafter,
        head=args.head,
    )


def generate(args: argparse.Namespace) -> Report:
    """Generate from one prompt, streaming the text."""
    from mtp_verify.commands import demo as demonstration

    _tell_when_missing("torch", "transformers", extra="demo")
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    if not prompt.strip():
        msg = "the prompt is empty"
        raise UsageError(msg)
    params = SamplingParams(
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, min_p=args.min_p
    )
    return demonstration.generate(
        prompt,
        params=params,
        folder=args.model,
        tiny=args.tiny,
        dtype=args.dtype,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
        rule=args.rule,
        drafter=args.drafter,
        head=args.head,
        raw=args.raw,
    )


def doctor(args: argparse.Namespace) -> Report:
    """Look at this installation and machine; see `mtp_verify.commands.doctor`."""
    from mtp_verify.commands import doctor as examination

    with Progress() as progress:
        progress.show("looking, and timing forwards of a model")
        return examination.run(measure=not args.quick)


def certify(args: argparse.Namespace) -> Report:
    """Prove the rules of this package by exact enumeration, or certify another engine."""
    from mtp_verify.commands import proof

    subjects = (args.engine, args.accept, args.rerun)
    if args.subject_self + sum(subject is not None for subject in subjects) != 1:
        msg = "say what to certify: one of --self, --engine, --accept and --rerun"
        raise UsageError(msg)
    if not args.subject_self:
        return engine_command.run(args)
    with Progress() as progress:
        progress.show("enumerating every choice of every rule (about a minute) ...")
        return proof.run()


def bench(args: argparse.Namespace) -> Report:
    """Compare the drafters with plain decoding; see `mtp_verify.commands.bench`."""
    _tell_when_missing("torch", "transformers", extra="demo")
    return bench_command.run(args)


def inspect(args: argparse.Namespace) -> Report:
    """Look at a draft head; see `mtp_verify.heads.io.inspect`."""
    _tell_when_missing("torch", "transformers", extra="hf")
    with Progress() as progress:
        progress.show("reading the checkpoint ...")
        return head_commands.inspect(args)


def reattach(args: argparse.Namespace) -> Report:
    """Put lost draft modules back; see `mtp_verify.heads.io.reattach`."""
    _tell_when_missing("torch", extra="torch")
    with Progress() as progress:
        progress.show("writing the checkpoint ...")
        return head_commands.reattach(args)


def export(args: argparse.Namespace) -> Report:
    """Write a draft head in another layout; see `mtp_verify.heads.io.export`."""
    _tell_when_missing("torch", "transformers", extra="hf")
    with Progress() as progress:
        progress.show("writing the head ...")
        return head_commands.export(args)


def train(args: argparse.Namespace) -> Report:
    """Train a draft head; see `mtp_verify.training`."""
    _tell_when_missing("torch", "transformers", extra="demo")
    return train_command.run(args)


def view(args: argparse.Namespace) -> Report:
    """Draw the steps of a generation; see `mtp_verify.commands.view`."""
    _tell_when_missing("torch", "transformers", extra="demo")
    return view_command.run(args)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        msg = f"{value} is not a positive number"
        raise argparse.ArgumentTypeError(msg)
    return value


def _tell_when_missing(*modules: str, extra: str) -> None:
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        msg = f'this command needs {" and ".join(missing)}; run: pip install "mtp-verify[{extra}]"'
        raise ImportError(msg, name=missing[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit code."""
    return run_line(build_parser, argv)


def run_line(make_parser: Callable[[], argparse.ArgumentParser], argv: Sequence[str] | None) -> int:
    """Run a command line with a parser that sets `function` and `command`; return the exit code.

    Limits of time count from the process's start where the command line is the process's own, else
    from this call.
    """
    # Who calls this function with words of its own has been there longer than the command.
    began = process_start() if argv is None else time.monotonic()
    if argv is None:
        # Bars of transformers, which write carriage returns into logs: we say what is done.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    try:
        parser = make_parser()
        args = parser.parse_args(words)
        args.began = began
        # Libraries print where they like: with --json only the document may reach stdout.
        guard = contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext()
        with guard, Progress() as progress:
            # Until the command itself says what it does: its libraries alone may take long to load.
            progress.show(f"{parser.prog} {args.command}")
            report: Report = args.function(args)
        print(report.to_json() if args.json else report.to_text(_width()), flush=True)
        return report.exit_code
    except (UsageError, ImportError, MtpVerifyError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader left, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if isinstance(error, InternalError):
            raise
        _report_error(error, as_json=as_json)
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        if argv is None:
            # All is cleaned up. What is left is taking the libraries down, which takes seconds.
            with contextlib.suppress(OSError):  # whoever read it may have left
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(_INTERRUPTED)
        return _INTERRUPTED


def _width() -> int | None:
    """Columns of the terminal that stdout is, if it is one."""
    return shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None


def _report_error(error: Exception, *, as_json: bool) -> None:
    sys.stderr.write(f"mtp-verify: {error}\n")
    if as_json:
        found = {
            "type": type(error).__name__,
            "slug": getattr(error, "slug", None),
            "message": str(error),
        }
        print(json.dumps({"status": "error", "error": found}, indent=2), flush=True)
